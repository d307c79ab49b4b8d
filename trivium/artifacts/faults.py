"""Every call of the artifact writer to the operating system, in one place, so that tests can make any of them fail.

`hook`, when set, is called before each operation with its name and path. It may raise `OSError` (disk full, read
error), end the process, or, for a write, return the number of bytes that this one call may write (a short write).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

Hook = Callable[[str, Path], "int | None"]

hook: Hook | None = None

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _before(operation: str, path: Path) -> int | None:
    return None if hook is None else hook(operation, path)


def open(path: Path, flags: int) -> int:
    """A file descriptor; created files get the permissions of the user's umask."""
    _before("create" if flags & os.O_CREAT else "open", path)
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


def write(descriptor: int, data: bytes | memoryview, path: Path) -> None:
    """Write all of `data`, however many calls that takes."""
    view = memoryview(data)
    while len(view):
        limit = _before("write", path)
        view = view[os.write(descriptor, view if limit is None else view[:limit]) :]


def read_into(descriptor: int, buffer: memoryview, path: Path) -> int:
    """Fill `buffer` from the file; returns the number of bytes, 0 at the end."""
    _before("read", path)
    return os.readv(descriptor, [buffer])


def fsync(descriptor: int, path: Path) -> None:
    """Wait until the file, or the entries of the folder, are on the disk."""
    _before("fsync", path)
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name; an existing file or empty folder of that name is replaced."""
    _before("rename", target)
    source.rename(target)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one atomic step; False where the system or file system cannot."""
    _before("exchange", other)
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def unlink(path: Path) -> None:
    """Remove a file."""
    _before("unlink", path)
    path.unlink()


def rmdir(path: Path) -> None:
    """Remove an empty folder."""
    _before("rmdir", path)
    path.rmdir()


def mkdir(path: Path) -> None:
    """Create a folder whose parent exists."""
    _before("mkdir", path)
    path.mkdir()


def listdir(path: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, in the order of their names."""
    _before("listdir", path)
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)
