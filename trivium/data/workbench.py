"""Long passes over documents that can be killed: finished parts are kept beside the target until all is done.

A part is committed by its `.json`, which is written last and holds the hashes of the other files. Where parts end
depends on the documents only, so the parts of a pass that was killed and continued are those of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trivium.artifacts.temporary import discard, lock
from trivium.artifacts.writer import write_file


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
        while (part := self._finished(len(self.parts))) is not None:
            self.parts.append(part)

    def commit(self, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Part:
        """Keep the next part."""
        number = len(self.parts)
        for name, data in files.items():
            write_file(self._path(number, name), data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        mark = {"key": self._key, "files": hashes, "facts": dict(facts)}
        write_file(self._path(number, "json"), json.dumps(mark))
        self.parts.append(Part({name: self._path(number, name) for name in files}, dict(facts)))
        return self.parts[-1]

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"part-{number:05d}.{name}"

    def _finished(self, number: int) -> Part | None:
        """Part `number` if it is complete and undamaged."""
        try:
            mark = json.loads(self._path(number, "json").read_bytes())
            if mark["key"] != self._key:
                return None
            files = {name: self._path(number, name) for name in mark["files"]}
            if any(_hash(files[name]) != expected for name, expected in mark["files"].items()):
                return None
            return Part(files, mark["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


@contextmanager
def workbench(target: Path, *, key: str) -> Iterator[Workbench]:
    """The workbench for `target`, held by one process at a time and removed once `target` is there."""
    folder = target.with_name(f".{target.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        yield Workbench(folder, key=key)
        if target.exists():
            discard(folder)
    finally:
        os.close(held)


@cache
def code_fingerprint() -> str:
    """Changes with the code that reads, cleans and encodes; what older code left behind is then made again."""
    package = Path(__file__).parents[1]
    files = [*package.glob("data/**/*.py"), *package.glob("tokenizers/*.py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
