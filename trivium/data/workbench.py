"""Long passes over documents that can be killed: finished parts are kept beside the target until all is done.

A part is committed by its `.json`, which is written last and holds the hashes of the other files. Where parts end
depends on the documents only, so the parts of a pass that was killed and continued are those of one that was not.
Nothing is flushed to the disk: a part that was lost with the power does not have its hash, and is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trivium.artifacts import faults
from trivium.artifacts.temporary import discard, is_at, lock
from trivium.artifacts.writer import make_folder, write_file, write_plain

_KEY = "key"
_LOCK = "lock"
_BUSY = "busy"


@dataclass(frozen=True)
class Part:
    """A finished part: its files by name, and what was noted with it."""

    files: Mapping[str, Path]
    facts: Mapping[str, Any]


class Workbench:
    """The parts of one pass; `key` says what from and how, and parts of anything else are thrown away."""

    def __init__(self, folder: Path, *, key: str) -> None:
        self._folder = folder
        self._key = key
        self.parts: list[Part] = []
        while (part := finished_part(folder, len(self.parts), key=key)) is not None:
            self.parts.append(part)

    def commit(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Part:
        """Keep the next part."""
        number = len(self.parts)
        _make(self._folder)
        for name, data in files.items():
            write_plain(_path(self._folder, number, name), iter([data]))
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        mark = {"key": self._key, "files": hashes, "facts": dict(facts)}
        write_plain(_path(self._folder, number, "json"), iter([json.dumps(mark).encode()]))
        self.parts.append(Part({name: _path(self._folder, number, name) for name in files}, dict(facts)))
        return self.parts[-1]


def finished_part(folder: Path, number: int, *, key: str) -> Part | None:
    """Part `number` of the workbench in `folder` if it is complete and undamaged."""
    try:
        mark = json.loads(_path(folder, number, "json").read_bytes())
        if mark["key"] != key:
            return None
        files = {name: _path(folder, number, name) for name in mark["files"]}
        if any(_hash(files[name]) != expected for name, expected in mark["files"].items()):
            return None
        return Part(files, mark["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def workbench(target: Path, *, key: str) -> Iterator[Workbench]:
    """The workbench for `target`, held by one process at a time and removed once `target` is there."""
    with work_folder(target, key=key) as folder:
        yield Workbench(folder, key=key)


@contextmanager
def work_folder(target: Path, *, key: str) -> Iterator[Path]:
    """A folder beside `target`, held by one process at a time and removed once `target` is there.

    What was left there with another key is thrown away. Waits for helpers of a process that died (see `busy`).
    """
    folder = target.with_name(f".{target.name}.unfinished")
    held = _take(folder)
    try:
        with _no_helpers(folder):
            if _read_key(folder) != key:
                _empty(folder, but=(_LOCK, _BUSY))
            write_file(folder / _KEY, key)
        yield folder
        if target.exists():
            with _no_helpers(folder):
                _empty(folder, but=(_LOCK,))
                discard(folder)  # the lock goes last: nobody else can take the folder before it is empty
    finally:
        os.close(held)


def _take(folder: Path) -> int:
    """A descriptor that holds the lock of a folder; the folder is made if it is not there."""
    while True:
        make_folder(folder)
        with suppress(FileNotFoundError):  # whoever held it just removed it
            held = lock(folder / _LOCK, os.O_RDWR | os.O_CREAT)
            if is_at(folder / _LOCK, held):
                return held
            os.close(held)


@contextmanager
def _no_helpers(folder: Path) -> Iterator[None]:
    """Waits until no helper writes into the folder, and lets none begin."""
    held = lock(folder / _BUSY, os.O_RDWR | os.O_CREAT)
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def busy(folder: Path, *, key: str) -> Iterator[None]:
    """Says that a helper of the process that holds the work folder is writing into it.

    Raises FileNotFoundError where that process died and somebody else has taken or removed the folder.
    """
    descriptor = os.open(folder / _BUSY, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _read_key(folder) != key:
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(descriptor)


def _read_key(folder: Path) -> str | None:
    path = folder / _KEY
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _empty(folder: Path, *, but: Sequence[str]) -> None:
    for entry in folder.iterdir():
        if entry.name not in but:
            discard(entry)


@cache
def code_fingerprint() -> str:
    """Changes with the code that reads, cleans and encodes; what older code left behind is then made again."""
    package = Path(__file__).parents[1]
    files = [*package.glob("data/**/*.py"), *package.glob("tokenizers/*.py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _make(folder: Path) -> None:
    """Create a folder, without waiting for the disk."""
    if not folder.is_dir():
        _make(folder.parent)
        with suppress(FileExistsError):
            faults.mkdir(folder)


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"part-{number:05d}.{name}"


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
