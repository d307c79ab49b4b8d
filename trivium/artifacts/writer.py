"""The only code that writes files.

Everything is written under a temporary name beside its target, flushed to the disk, and renamed: whenever the
process or the machine stops, the target is what it was or what it was to become, and never something between.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trivium.artifacts import faults
from trivium.artifacts.manifest import (
    MANIFEST,
    RECORD,
    THREADS,
    Manifest,
    damages,
    hash_file,
    plain_files,
    read_manifest,
)
from trivium.artifacts.record import Parent, new_record, read_record
from trivium.artifacts.temporary import (
    discard,
    flush,
    lock,
    make_folder,
    remove_leftovers,
    temporary_name,
    temporary_place,
)
from trivium.errors import ArtifactDamaged, ArtifactError

__all__ = [
    "DiskFull",
    "JsonLines",
    "check_target",
    "explained",
    "make_folder",
    "remove_artifact",
    "require_space",
    "write_artifact",
    "write_file",
    "write_plain",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(ArtifactError):
    """There is no room for what was to be written; nothing that was there before is lost."""


@contextlib.contextmanager
def write_artifact(
    target: Path,
    *,
    kind: str,
    parents: Sequence[Parent] = (),
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    replace: bool = False,
) -> Iterator[Path]:
    """Write the folder `target`, all or nothing.

    Yields a temporary folder to fill, by whatever means. When the block ends without an error the files are hashed
    and flushed, `trivium.json` and, last of all, `MANIFEST.json` are added, and the folder gets its name.

    An artifact that is there already is left alone if its content is the same, and replaced in one step if `replace`
    is set; otherwise, and for any folder that is no artifact, ArtifactError. DiskFull when the space runs out.
    """
    target = Path(target).resolve()
    with contextlib.ExitStack() as stack:
        with explained(target):
            check_target(target, kind=kind, replace=replace)
            make_folder(target.parent)
            remove_leftovers(target.parent)
            temporary, _ = stack.enter_context(temporary_place(target, folder=True))
        with explained(target, only=_FULL):
            yield temporary
        with explained(target):
            manifest = _seal(temporary, target, kind=kind, parents=tuple(parents), config=config, seed=seed)
            _publish(temporary, target, manifest, kind=kind, replace=replace)


def check_target(target: Path, *, kind: str, replace: bool) -> None:
    """Refuse, before any work is done, a target that `write_artifact` would refuse whatever is written."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    record = None
    if (target / MANIFEST).is_file():
        try:
            record = read_record(target)
        except ArtifactDamaged:
            if replace:
                return
            raise
    if record is None:
        raise ArtifactError(
            "there is something else at the place to write to", where=target, fix="move it away, or choose another name"
        )
    if record.kind != kind and not replace:
        raise ArtifactError(
            f"the place to write a {kind} to holds a {record.kind}", where=target, fix="choose another name"
        )


def write_file(path: Path, data: bytes | str) -> None:
    """Write one file, all or nothing; text is UTF-8. The folder is made if it is missing."""
    path = Path(path)
    with explained(path):
        make_folder(path.parent)
        remove_leftovers(path.parent, name=path.name)
        with temporary_place(path, folder=False) as (temporary, descriptor):
            faults.write(descriptor, data.encode() if isinstance(data, str) else data, temporary)
            faults.fsync(descriptor, temporary)
            faults.rename(temporary, path)
            flush(path.parent)


def write_plain(path: Path, chunks: Iterator[bytes | memoryview]) -> None:
    """Write a new file inside the folder that `write_artifact` yielded (which is flushed as a whole later)."""
    with explained(path):
        descriptor = faults.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for chunk in chunks:
                faults.write(descriptor, chunk, path)
        finally:
            os.close(descriptor)


def require_space(folder: Path, size: int, *, purpose: str) -> None:
    """Raise DiskFull unless `size` bytes fit on the file system that `folder` lies, or will lie, on."""
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    system = os.statvfs(there)
    free = system.f_bavail * system.f_frsize
    if size > free:
        raise DiskFull(
            f"{purpose} needs {size / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free",
            where=folder,
            fix="free some space, or write to another disk",
        )


def remove_artifact(folder: Path) -> None:
    """Remove an artifact; it loses its name first, so that no one ever sees half of it."""
    with explained(folder):
        trash = temporary_name(folder, "new")
        faults.rename(folder, trash)
        flush(folder.parent)
        discard(trash)


@contextlib.contextmanager
def explained(target: Path, *, only: Container[int] = range(sys.maxsize)) -> Iterator[None]:
    """Turn failures of the operating system (those with an error number in `only`) into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in only:
            raise
        if error.errno in _FULL:
            raise DiskFull(
                f"cannot be written: {error.strerror}",
                where=target,
                fix="free some space or write to another disk, then run the same command again; nothing is lost",
            ) from error
        raise ArtifactError(
            f"cannot be written: {error.strerror or error}",
            where=error.filename or target,
            fix="check the permissions and the disk, or choose another place",
        ) from error


def _seal(
    temporary: Path,
    target: Path,
    *,
    kind: str,
    parents: tuple[Parent, ...],
    config: Mapping[str, Any] | None,
    seed: int | None,
) -> Manifest:
    """Hash and flush the files; add the record and the manifest. Flushing and hashing overlap."""
    names = []
    for name, regular in plain_files(temporary):
        if not regular:
            raise ArtifactError("links and special files cannot be part of an artifact", where=target / name)
        if name not in (MANIFEST, RECORD):
            names.append(name)
    with ThreadPoolExecutor(THREADS) as pool:
        work = [(pool.submit(flush, temporary / name), pool.submit(hash_file, temporary / name)) for name in names]
    entries = {}
    for name, (flushed, hashed) in zip(names, work, strict=True):
        flushed.result()
        entries[name] = hashed.result()
    record = new_record(target, kind=kind, content=Manifest(entries).content, parents=parents, config=config, seed=seed)
    _writeflushed(temporary / RECORD, record.to_bytes())
    manifest = Manifest({**entries, RECORD: hash_file(temporary / RECORD)})
    for folder in sorted({folder for name in names for folder in Path(name).parents}, reverse=True):
        flush(temporary / folder)
    _writeflushed(temporary / MANIFEST, manifest.to_bytes())
    flush(temporary)
    return manifest


def _publish(temporary: Path, target: Path, manifest: Manifest, *, kind: str, replace: bool) -> None:
    try:
        faults.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        check_target(target, kind=kind, replace=replace)
        if not replace and _holds(target, manifest):
            return
        if not replace:
            raise ArtifactError(
                "an artifact with other content is there already",
                where=target,
                fix="choose another name, or ask for it to be replaced",
            ) from error
        _swap(temporary, target)
    flush(target.parent)


def _holds(target: Path, manifest: Manifest) -> bool:
    """Whether `target` is undamaged and has the same content."""
    try:
        return read_manifest(target).content == manifest.content and not damages(target)
    except ArtifactDamaged:
        return False


def _swap(temporary: Path, target: Path) -> None:
    """Replace `target`. Where names cannot be exchanged in one step, `remove_leftovers` repairs a stop in between."""
    if faults.exchange(temporary, target):
        return
    aside = temporary_name(target, "old")
    held = lock(target, os.O_RDONLY)
    try:
        faults.rename(target, aside)
        try:
            faults.rename(temporary, target)
        except BaseException:
            faults.rename(aside, target)
            raise
        flush(target.parent)
        discard(aside)
    finally:
        os.close(held)


def _writeflushed(path: Path, data: bytes) -> None:
    write_plain(path, iter([data]))
    flush(path)


class JsonLines:
    """A file to which one JSON object a line is added; only `cut_back` ever changes what it holds.

    A line is handed to the operating system at once and survives the death of the process; it survives the death of
    the machine after `sync`. A line that was cut in the middle is ignored in reading and removed before the next
    line is added. Infinities and not-a-number are stored as text, and read as the floats they were.
    """

    def __init__(self, path: Path) -> None:
        """The file is created by the first line."""
        self.path = Path(path)
        self._descriptor: int | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line."""
        line = json.dumps(_walk(row, _as_text), allow_nan=False)
        with explained(self.path):
            try:
                faults.write(self._open(), f"{line}\n".encode(), self.path)
            except OSError:
                self.close()  # half of the line may be there; opening the file again removes it
                raise

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with explained(self.path):
            faults.fsync(self._open(), self.path)

    def read(self) -> list[dict[str, Any]]:
        """All complete lines. ArtifactDamaged, naming the line, if one of them is not a JSON object."""
        return list(map(self._parse, *self._numbered()))

    def cut_back(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the lines for which `keep` is true, byte for byte, in one step."""
        numbers, lines = self._numbered()
        kept = [line for number, line in zip(numbers, lines, strict=True) if keep(self._parse(number, line))]
        self.close()
        if self.path.exists():
            write_file(self.path, b"".join(kept))

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _numbered(self) -> tuple[range, list[bytes]]:
        found = self.path.read_bytes() if self.path.exists() else b""
        lines = [line + b"\n" for line in found[: _complete(found)].split(b"\n")[:-1]]
        return range(1, len(lines) + 1), lines

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return dict(_walk(json.loads(line), _as_number))
        except (ValueError, TypeError, RecursionError) as error:
            raise ArtifactDamaged(
                "the line is no JSON object",
                where=f"{self.path}:{number}",
                value=line.decode(errors="replace"),
                fix="remove this line, or restore the file from a copy",
            ) from error

    def _open(self) -> int:
        if self._descriptor is None:
            make_folder(self.path.parent)
            created = not self.path.exists()
            self._descriptor = faults.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            if created:
                flush(self.path.parent)
            else:
                os.truncate(self._descriptor, _complete(self.path.read_bytes()))
        return self._descriptor


def _complete(found: bytes) -> int:
    """Length of the part that ends with a whole line; a machine that loses power may leave zero bytes behind."""
    end = found.rfind(b"\n") + 1
    while b"\0" in found[found.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]:
        end = found.rfind(b"\n", 0, end - 1) + 1
    return end


def _walk(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(item, leaf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, leaf) for item in value]
    return leaf(value)


def _as_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _as_number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
