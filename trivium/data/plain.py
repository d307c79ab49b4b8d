"""Bytes to lines and texts, with every way in which that fails said in terms of the file."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from trivium.data.intake import Intake, Span
from trivium.errors import DataError

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
"""Endings of packed files; they stand behind the ending that names the format."""

MOST_EXPANSION = 200
"""A packed file may unpack to so many times what was read of it; text reaches 20, endless repetitions any number."""
FREE_BYTES = 128 << 20
"""What may be unpacked before that is asked."""

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a packed file can raise; `damaged` makes a message of it."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MB; a file that asks for more is made to


def packed(*endings: str) -> tuple[str, ...]:
    """The endings alone and before each packing: `.txt`, `.txt.gz`, ..."""
    return tuple(f"{ending}{packing}" for ending in endings for packing in ("", *PACKINGS))


def unpacked_name(name: str) -> str:
    """The name without the ending of a packing."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix in PACKINGS else name


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, unpacked if its name ends in .gz, .bz2, .xz or .zst; a bomb is a DataError."""
    try:
        if path.suffix not in PACKINGS:
            return path.open("rb", buffering=_BLOCK)
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix == ".zst":
        return io.BufferedReader(_Unpacked(path, stream, _zstd_reads(path, stream)), _BLOCK)
    makers: dict[str, Callable[[], Any]] = {
        ".gz": _Gunzip,
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    }
    return io.BufferedReader(_Unpacked(path, stream, _Members(stream, makers[path.suffix]).read), _BLOCK)


def head_of(path: Path, size: int = 1 << 14) -> bytes:
    """The first bytes of a file, unpacked if its name says so; fewer, or none, if it cannot be read."""
    found = b""
    try:
        with open_bytes(path) as stream:
            while len(found) < size and (block := cast("io.BufferedReader", stream).read1(size - len(found))):
                found += block
    except (*DAMAGED, DataError):
        pass
    return found


def read_whole(path: Path, limit: int) -> bytes:
    """All of a file that must be held at once; longer than `limit` bytes is a DataError."""
    with open_bytes(path) as stream:
        try:
            raw = stream.read(limit + 1)
        except DAMAGED as error:
            raise damaged(path, None, error) from error
    if len(raw) > limit:
        raise DataError("the file is too long", where=path, value=f"more than {limit:,} bytes", fix="split the file")
    return raw


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
            except DAMAGED as error:
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
            except DAMAGED as error:
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
    kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}.get(path.suffix, "file")
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


class _Unpacked(io.RawIOBase):
    """What a packed file holds; stops at what only a bomb does."""

    def __init__(self, path: Path, stream: IO[bytes], read: Callable[[int], bytes]) -> None:
        self._path = path
        self._stream = stream
        self._read = read
        self._found = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._found += len(data)
        if self._found > FREE_BYTES and self._found > MOST_EXPANSION * self._stream.tell():
            raise DataError(
                "the file unpacks to far more than a text can: a decompression bomb",
                where=self._path,
                value=f"{self._found:,} bytes from {self._stream.tell():,}",
                fix="delete the file; if it is right after all, unpack it yourself and read the result",
            )
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Members:
    """Unpacks the members of a file one after the other, a piece at a time."""

    def __init__(self, stream: IO[bytes], make: Callable[[], Any]) -> None:
        self._stream = stream
        self._make = make
        self._unpack: Any = None
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            if self._unpack is None:
                self._rest = (self._rest or self._stream.read(1 << 16)).lstrip(b"\0")  # members may be filled up
                if not self._rest:
                    if self._stream.tell() < os.fstat(self._stream.fileno()).st_size:
                        continue
                    return b""
                self._unpack = self._make()
            if self._unpack.needs_input and not self._rest:
                self._rest = self._stream.read(1 << 16)
            ended = self._unpack.needs_input and not self._rest
            data = cast("bytes", self._unpack.decompress(self._rest, size))
            self._rest = b""
            if self._unpack.eof:
                self._rest = self._unpack.unused_data
                self._unpack = None
            elif ended and not data:
                raise EOFError("the end of the data is missing")
            if data:
                return data


class _Gunzip:
    """One member of a gzip file, with the interface of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, size)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _zstd_reads(path: Path, stream: IO[bytes]) -> Callable[[int], bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            "reading .zst files needs pyarrow", where=path, fix="pip install 'trivium[data]', or unpack the file"
        ) from error
    if not os.fstat(stream.fileno()).st_size:
        return lambda size: b""
    return cast("Callable[[int], bytes]", pyarrow.CompressedInputStream(stream, "zstd").read)
