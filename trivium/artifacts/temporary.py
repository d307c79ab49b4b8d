"""Temporary names beside a target: taken under a lock, removed when their owner has died.

A temporary name is locked (flock) by the process that uses it. Names that nobody has locked are leftovers of a
process that died; the next write into the same folder removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from trivium.artifacts import faults

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<use>new|old)-[0-9a-f]{8}~trivium$")


@contextlib.contextmanager
def temporary_place(target: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """A new folder or file beside `target` and its descriptor; what still has that name at the end is removed."""
    temporary, descriptor = _take_name(target, folder=folder)
    try:
        yield temporary, descriptor
    finally:
        try:
            discard(temporary)
        finally:
            os.close(descriptor)


def _take_name(target: Path, *, folder: bool) -> tuple[Path, int]:
    """A temporary name, and the descriptor whose lock says that it is in use."""
    while True:
        temporary, descriptor = temporary_name(target, "new"), None
        if folder:
            faults.mkdir(temporary)
            with contextlib.suppress(FileNotFoundError):
                descriptor = lock(temporary, os.O_RDONLY)
        else:
            descriptor = lock(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if descriptor is not None:
            if is_at(temporary, descriptor):
                return temporary, descriptor
            os.close(descriptor)
        # another process took the name for a leftover between its creation and its lock: once more


def lock(path: Path, flags: int) -> int:
    """A descriptor of `path` that holds the lock on it until it is closed."""
    descriptor = faults.open(path, flags)
    with contextlib.suppress(OSError):  # file systems without locks: leftovers stay, nothing else is lost
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder still has this path: who waits for a lock may get that of a removed file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def temporary_name(target: Path, use: str) -> Path:
    """A name beside `target`; `old` in `use` marks what may have to come back."""
    return target.with_name(f".{target.name}.{use}-{secrets.token_hex(4)}~trivium")


def remove_leftovers(folder: Path, *, name: str | None = None) -> None:
    """Remove what writers that died left in `folder` (only those of the file `name`, if given).

    An artifact that was being replaced where names cannot be exchanged, and has no name now, gets its name back.
    """
    for entry in faults.listdir(folder):
        leftover = _TEMPORARY.match(entry.name)
        if leftover is None or name not in (None, leftover["name"]):
            continue
        with contextlib.suppress(OSError):
            descriptor = faults.open(Path(entry.path), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover["use"] == "old" and not (folder / leftover["name"]).exists():
                    faults.rename(Path(entry.path), folder / leftover["name"])
                discard(Path(entry.path))
            finally:
                os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or a tree as far as that succeeds; what stays is a leftover for the next write."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for entry in faults.listdir(path):
                discard(Path(entry.path))
            faults.rmdir(path)
        else:
            faults.unlink(path)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            faults.mkdir(folder)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = faults.open(path, os.O_RDONLY)
    try:
        faults.fsync(descriptor, path)
    finally:
        os.close(descriptor)
