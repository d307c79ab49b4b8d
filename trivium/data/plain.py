"""Bytes to lines and texts, with every way in which that fails said in terms of the file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from trivium.data.intake import Intake, Span
from trivium.errors import DataError

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, unpacked if its name ends in .gz or .zst."""
    try:
        if path.suffix == ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if path.suffix == ".zst":
            return _open_zstd(path)
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def line_spans(path: Path, size: int) -> Iterator[Span]:
    """An unpacked file cut after lines into parts of about `size` bytes; where depends on the file alone."""
    start = rows = 0
    with path.open("rb") as stream:
        while block := stream.read(size):
            more = 0 if block.endswith(b"\n") else _skip_line(stream, size)
            end = start + len(block) + more
            yield Span(start, end, rows)
            start, rows = end, rows + block.count(b"\n") + (more > 0)


def lines(path: Path, intake: Intake, span: Span | None = None) -> Iterator[tuple[int, str]]:
    """(physical line number from 1, text without its line end); bad lines go to `intake`.

    span: the part of an unpacked file that is wanted, from `line_spans`.
    """
    number, offset = (span.rows, span.start) if span else (0, 0)
    with open_bytes(path) as stream:
        if span:
            stream.seek(span.start)
        while span is None or offset < span.end:
            try:
                raw = stream.readline(intake.row_bytes + 1)
            except (*_DAMAGED, OSError) as error:
                intake.reject(damaged(path, number, error))
                return
            if not raw:
                return
            number += 1
            begin, offset = offset, offset + len(raw)
            if number == 1:
                raw = _without_mark(raw, path)
            if len(raw) > intake.row_bytes:
                intake.reject(_too_long(path, number, intake.row_bytes))
                offset += _skip_line(stream, intake.row_bytes)
                continue
            text = decode(raw, path, intake, line=number, offset=begin)
            if text is not None:
                yield number, text.rstrip("\r\n")


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """The unpacked content in blocks of `size` bytes, without a byte order mark."""
    first = True
    with open_bytes(path) as stream:
        while True:
            try:
                block = stream.read(size)
            except (*_DAMAGED, OSError) as error:
                raise damaged(path, None, error) from error
            if not block:
                return
            yield _without_mark(block, path) if first else block
            first = False


def decode(raw: bytes, path: Path, intake: Intake, *, line: int, offset: int) -> str | None:
    """UTF-8 bytes as text; None after the problem went to `intake`. `line` and `offset` are those of `raw`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        line += raw.count(b"\n", 0, at)
        intake.reject(
            DataError(
                "the text is not UTF-8",
                where=f"{path}:{line} (byte 0x{raw[at]:02x} at offset {offset + at})",
                value=raw[max(0, at - 30) : at + 30].decode("utf-8", "backslashreplace"),
                fix=f"convert the file, for example: iconv -f LATIN1 -t UTF-8 {path.name} > fixed{path.suffix}",
            )
        )
        return None
    nul = text.find("\0")
    if nul < 0:
        return text
    line += text.count("\n", 0, nul)
    intake.reject(
        DataError(
            "the text holds a NUL character, as binary files do",
            where=f"{path}:{line}",
            value=text[max(0, nul - 30) : nul + 30],
            fix="check that this is a text file; remove the character with: tr -d '\\000'",
        )
    )
    return None


def unreadable(path: Path, error: OSError) -> DataError:
    """The operating system refuses to read the file."""
    return DataError(
        f"the file cannot be read: {error.strerror or error}", where=path, fix="check the path and its permissions"
    )


def damaged(path: Path, line: int | None, error: Exception) -> DataError:
    """The compressed data is wrong or ends in the middle."""
    kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix, "file")
    return DataError(
        f"the {kind} data is damaged or ends in the middle",
        where=path if line is None else f"{path}:{line + 1}",
        value=str(error) or type(error).__name__,
        fix="download or write the file again",
    )


def _without_mark(raw: bytes, path: Path) -> bytes:
    if raw.startswith(_UTF16):
        raise DataError(
            "the file is UTF-16, not UTF-8",
            where=f"{path}:1",
            value=f"byte order mark {raw[:2].hex(' ')}",
            fix=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > fixed{path.suffix}",
        )
    return raw.removeprefix(_BOM)


def _too_long(path: Path, line: int, limit: int) -> DataError:
    return DataError(
        "the line is too long",
        where=f"{path}:{line}",
        value=f"more than {limit:,} bytes",
        fix="check that the file has one row a line; split texts of this size",
    )


def _skip_line(stream: IO[bytes], size: int) -> int:
    """Read to the end of the line; returns the number of bytes."""
    skipped = 0
    while rest := stream.readline(size):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "reading .zst files needs pyarrow", where=path, fix="pip install 'trivium[data]', or unpack the file"
        ) from error
    import io

    source = pyarrow.input_stream(str(path), compression="zstd")
    return cast("IO[bytes]", io.BufferedReader(source, 1 << 20))
