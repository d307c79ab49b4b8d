"""Archives (zip, tar) of files in any other format: each is read as if the archive were a folder.

The whole archive is unpacked into a temporary folder first, so that files that belong together (LaTeX) find each other.
Names that lead out of it, and archives that unpack to far more than texts do, are refused; links and devices are left
out. Archives inside of archives are not opened.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trivium.data.intake import Intake
from trivium.data.plain import DAMAGED, FREE_BYTES, MOST_EXPANSION, open_bytes, packed
from trivium.errors import DataError

_TAR = (*packed(".tar"), ".tgz")
EXTENSIONS = (".zip", *_TAR)

MOST_FILES = 1_000_000

_WRONG = (
    *DAMAGED,
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,
    ValueError,
    LookupError,
    ArithmeticError,
    struct.error,
)
"""What the standard library raises for damaged archives."""


def unpack(path: Path, folder: Path, intake: Intake) -> None:
    """Write the regular files of an archive below `folder`; DataError if it is damaged or not to be trusted."""
    room = max(FREE_BYTES, MOST_EXPANSION * path.stat().st_size)
    try:
        for number, (name, size, opened) in enumerate(_members(path, intake)):
            room -= size
            if room < 0 or number == MOST_FILES:
                raise DataError(
                    "the archive unpacks to far more than texts do: a decompression bomb",
                    where=path,
                    value=name,
                    fix="do not trust this file; if it is what it should be, unpack it into a folder yourself",
                )
            target = folder / _checked(name, path)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                stream = target.open("xb")
            except OSError:  # a name too long, or one that another file or folder has
                intake.skipped["files of archives whose names cannot be used"] += 1
                continue
            with stream, opened() as content:
                shutil.copyfileobj(content, stream, 1 << 20)
    except DataError:
        raise
    except _WRONG as error:
        encrypted = "encrypted" in str(error)
        raise DataError(
            "the archive is encrypted" if encrypted else "the archive is damaged or ends in the middle",
            where=path,
            value=str(error) or type(error).__name__,
            fix="unpack it into a folder yourself" if encrypted else "download or write the file again",
        ) from error


Opened = Callable[[], contextlib.AbstractContextManager[IO[bytes]]]


def _members(path: Path, intake: Intake) -> Iterator[tuple[str, int, Opened]]:
    """(name, size, how to read it) of each regular file, in the order of the archive."""
    if path.name.lower().endswith(_TAR):
        packing = path.suffix.lower() == ".tgz"
        with (
            path.open("rb") if packing else open_bytes(path) as stream,
            tarfile.open(fileobj=stream, mode="r|gz" if packing else "r|") as tar,
        ):
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is not None:
                    yield member.name, member.size, lambda content=content: content  # type: ignore[misc]
                elif not member.isdir():
                    intake.skipped["links and devices in archives"] += 1
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: archive.open(info)  # type: ignore[misc]


def _checked(name: str, path: Path) -> str:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] or "\0" in name:
        raise DataError(
            "the archive holds a file whose name leads out of it",
            where=path,
            value=name,
            fix="do not trust this file; delete it",
        )
    return "/".join(parts)
