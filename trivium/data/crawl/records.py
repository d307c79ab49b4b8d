"""Records of WARC and ARC files, read one at a time and written one gzip member each.

Its own reader, because the libraries at hand (fastwarc, warcio) neither say at which byte a file is damaged, nor read
on behind the damage, nor tell a file that was cut off from one that is complete. Formats: ISO 28500 (WARC 1.0 and
1.1), ARC versions 1 and 2, plain, gzip, or Zstandard (with a dictionary in its first frame or without).
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trivium.data.intake import Intake
from trivium.errors import DataError

BLOCK_BYTES = 12_000_000
"""Longer records are left out; pages may have 10 MB, and the rest is for headers."""

_HEADER_BYTES = 1 << 16
_CHUNK = 1 << 16
_PASSED_OVER = 1 << 28
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
_NEXT_RECORD = re.compile(rb"\nWARC/1\.")
_ARC_LINE = re.compile(rb"^(\S+) ([\d.:a-fA-F]+|-) (\d{8,14}) (\S+) (?:.* )?(\d{1,15})$")
_FIX = "download or write the file again, or set such records aside (on_error: quarantine)"


@dataclass(frozen=True)
class Record:
    """One record.

    offset:  byte of the file at which the record, or the gzip member with its beginning, starts.
    headers: by lower-case name.
    block:   its content; for a response that is the whole HTTP message.
    """

    offset: int
    headers: Mapping[str, str]
    block: bytes

    @property
    def type(self) -> str:
        return self.headers.get("warc-type", "")


class Damaged(Exception):
    """What is wrong at some place of the file."""


def records(path: Path, intake: Intake) -> Iterator[Record]:
    """The records in order. Damage goes to `intake` with its offset; reading goes on at the next record."""
    with path.open("rb") as file:
        stream = _opened(file, path)
        while True:
            try:
                record = _next(stream, intake)
            except Damaged as error:
                intake.reject(
                    DataError(str(error), where=f"{path}, byte {stream.start}", value=stream.excerpt(), fix=_FIX)
                )
                stream.recover()
                continue
            if record is None:
                return
            yield record


def packed_content(data: bytes) -> Record:
    """The record in one gzip member, as `packed_record` makes it."""
    stream = _Members(io.BufferedReader(io.BytesIO(data)), _GZIP, lambda: zlib.decompressobj(31))
    record = _next(stream, Intake())
    if record is None:
        raise Damaged("there is no record")
    return record


def _next(stream: _Stream, intake: Intake) -> Record | None:
    """The next record that is not too long; None at the end of the file."""
    while True:
        line = stream.first_line()
        if line is None:
            return None
        headers = _arc_headers(line) if _ARC_LINE.match(line) else _warc_headers(line, stream)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise Damaged("the record does not say how long it is (Content-Length)")
        if int(length) <= BLOCK_BYTES:
            return Record(stream.start, headers, stream.block(int(length)))
        intake.skipped[f"record larger than {BLOCK_BYTES // 1_000_000} MB"] += 1
        stream.pass_over(int(length))


def _warc_headers(line: bytes, stream: _Stream) -> dict[str, str]:
    if not line.startswith(b"WARC/"):
        raise Damaged("no record begins here")
    headers: dict[str, str] = {}
    name, size = "", 0
    while line := stream.line():
        size += len(line)
        if size > _HEADER_BYTES:
            raise Damaged("the headers of the record are too long")
        text = line.decode("utf-8", "replace")
        if text[0] in " \t" and name:
            headers[name] += f" {text.strip()}"
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if not colon:
            raise Damaged("a header of the record has no colon")
        headers.setdefault(name, value.strip())
    return headers


def _arc_headers(line: bytes) -> dict[str, str]:
    """The one line before an ARC record, under the names of WARC."""
    match = _ARC_LINE.match(line)
    assert match is not None
    url, _, date, kind, length = (part.decode("utf-8", "replace") for part in match.groups())
    date = date.ljust(14, "0")
    return {
        "warc-type": "warcinfo" if url.startswith("filedesc:") else "response",
        "warc-target-uri": url,
        "warc-date": f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z",
        "content-type": "application/http" if url.startswith("http") else kind,
        "content-length": length,
    }


# Streams


def _opened(file: IO[bytes], path: Path) -> _Stream:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(_GZIP):
        return _Members(file, _GZIP, lambda: zlib.decompressobj(31))
    if magic in (_ZSTD, _ZSTD_DICTIONARY):
        return _Members(file, _ZSTD, _zstd(file, path))
    return _Stream(file)


class _Stream:
    """Bytes that are read once; `start` is the offset of the record being read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.start = 0
        self.held = bytearray()
        self.taken = 0

    def more(self) -> bool:
        """Hold more bytes; False at the end."""
        found = self.file.read(_CHUNK)
        self.held += found
        return bool(found)

    def take(self, size: int) -> bytes:
        found = bytes(self.held[:size])
        del self.held[:size]
        self.taken += len(found)
        return found

    def line(self) -> bytes:
        """The next line without its end; empty at an empty line."""
        at = 0
        while (end := self.held.find(b"\n", at)) < 0:
            at = len(self.held)
            if at > _HEADER_BYTES:
                raise Damaged("no record begins here: the line is too long")
            if not self.more():
                raise Damaged("the file ends in the middle of a record")
        return self.take(end + 1).rstrip(b"\r\n")

    def first_line(self) -> bytes | None:
        """The line with which the next record begins; None at the end of the file."""
        while True:
            blank = len(self.held) - len(self.held.lstrip(b"\r\n"))
            self.take(blank)
            if self.held:
                break
            try:
                if not self.more():
                    return None
            finally:
                self.start = self.here()
        self.start = self.here()
        return self.line()

    def here(self) -> int:
        return self.taken

    def block(self, length: int) -> bytes:
        while len(self.held) < length:
            if not self.more():
                raise Damaged("the file ends in the middle of a record")
        self.ends_well(length)
        return self.take(length)

    def ends_well(self, length: int) -> None:
        """Whether what follows the block is an empty line, and not the rest of a longer one."""
        while len(self.held) < length + 1 and self.more():
            pass
        if len(self.held) > length and self.held[length] not in b"\r\n":
            raise Damaged("the record is longer or shorter than it says (Content-Length)")

    def pass_over(self, length: int) -> None:
        """Leave out the block of a record."""
        length -= len(self.take(length))
        self.file.seek(length, 1)
        self.taken += length

    def recover(self) -> None:
        """Go to the next place at which a record may begin."""
        while not (found := _NEXT_RECORD.search(self.held)):
            self.take(max(0, len(self.held) - 8))
            if not self.more():
                self.take(len(self.held))
                return
        self.take(found.start() + 1)

    def excerpt(self) -> str:
        return bytes(self.held[:60]).decode("utf-8", "backslashreplace")


class _Members(_Stream):
    """Gzip members or Zstandard frames one after the other, usually one for each record."""

    def __init__(self, file: IO[bytes], magic: bytes, unpacker: Callable[[], Any]) -> None:
        super().__init__(file)
        self.magic = magic
        self.make = unpacker
        self.member = 0
        self.raw = b""
        self.unpacker: Any = None
        self.dead = False

    def more(self) -> bool:
        if self.dead:
            return False
        while True:
            if not self.raw:
                self.raw = self.file.read(_CHUNK)
            if self.unpacker is None:
                self.raw = self.raw.lstrip(b"\0") or self.raw[:0]
                if not self.raw:
                    if self.file.peek(1):  # type: ignore[attr-defined]
                        continue
                    return False
                self.member = self.file.tell() - len(self.raw)
                self.unpacker = self.make()
            if not self.raw:
                raise Damaged("the packed data ends in the middle")
            found = self._unpack()
            self.held += found
            if found:
                return True

    def _unpack(self) -> bytes:
        """Some bytes of the member, never many at once."""
        try:
            if self.magic == _GZIP:
                found: bytes = self.unpacker.decompress(self.raw, _CHUNK)
                rest = self.unpacker.unconsumed_tail
            else:  # no limit can be set, so little goes in: at most 32 MB come out
                found = self.unpacker.decompress(self.raw[:1024])
                rest = self.raw[1024:]
        except Exception as error:  # zlib.error, zstandard.ZstdError
            raise Damaged("the packed data is damaged") from error
        self.raw = rest
        if self.unpacker.eof:
            self.raw = self.unpacker.unused_data + (b"" if self.magic == _GZIP else rest)
            self.unpacker = None
        return found

    def here(self) -> int:
        return self.member

    def pass_over(self, length: int) -> None:
        if length > _PASSED_OVER:  # unpacking a bomb takes time, finding the next member hardly any
            self.recover()
            return
        while length > 0:
            length -= len(self.take(length))
            if length and not self.more():
                raise Damaged("the file ends in the middle of a record")

    def recover(self) -> None:
        """Go to the next member that begins like a record; or end."""
        self.held.clear()
        self.unpacker = None
        at = self.start + 1
        while True:
            self.file.seek(at)
            self.raw = self.file.read(_CHUNK)
            found = self.raw.find(self.magic)
            if found < 0:
                if len(self.raw) < len(self.magic):
                    self.dead = True
                    return
                at += max(1, len(self.raw) - len(self.magic) + 1)
                continue
            at += found
            if self._begins_record(self.raw[found:]):
                self.file.seek(at)
                self.raw = b""
                return
            at += 1

    def _begins_record(self, raw: bytes) -> bool:
        try:
            beginning = bytes(self.make().decompress(raw[:1024]))
        except Exception:  # zlib.error, zstandard.ZstdError
            return False
        return beginning.startswith(b"WARC/") or _ARC_LINE.match(beginning.partition(b"\n")[0]) is not None


def _zstd(file: IO[bytes], path: Path) -> Callable[[], Any]:
    """What unpacks the frames, with the dictionary that the file may begin with."""
    try:
        import zstandard
    except ImportError as error:
        raise DataError("reading .zst files needs zstandard", where=path, fix="pip install 'trivium[web]'") from error
    head = file.read(8)
    dictionary = None
    if head.startswith(_ZSTD_DICTIONARY):
        content = file.read(min(int.from_bytes(head[4:], "little"), BLOCK_BYTES))
        try:
            if content.startswith(_ZSTD):
                content = zstandard.ZstdDecompressor().decompress(content, max_output_size=BLOCK_BYTES)
            dictionary = zstandard.ZstdCompressionDict(content)
        except zstandard.ZstdError as error:
            raise DataError("the dictionary of the file is damaged", where=path, fix=_FIX) from error
    else:
        file.seek(0)
    unpacker = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27)
    return unpacker.decompressobj


# HTTP


@dataclass(frozen=True)
class Message:
    """An HTTP response as it was recorded. headers: by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def message(block: bytes) -> Message:
    """The response in the block of a record, unpacked; Damaged if it is none."""
    head, separator, body = block.partition(b"\r\n\r\n")
    if not separator:
        head, _, body = block.partition(b"\n\n")
    first, *rest = head.splitlines() or [b""]
    match = re.match(rb"HTTP/\d(?:\.\d)? +(\d{3})", first)
    if match is None:
        raise Damaged("the record holds no HTTP response")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.decode("latin-1").partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    return Message(int(match[1]), headers, unpacked(body, headers.get("content-encoding", ""), BLOCK_BYTES))


def content_type(value: str) -> tuple[str, str | None]:
    """The media type in lower case, and the charset if one is declared."""
    kind, _, parameters = value.partition(";")
    match = re.search(r"""charset\s*=\s*["']?([\w.:-]{1,40})""", parameters, re.IGNORECASE)
    return kind.strip().lower(), match[1] if match else None


def _unchunked(body: bytes) -> bytes:
    """The body without the lengths of its chunks; as it is if it has none (recorded that way by some crawlers)."""
    pieces, at = [], 0
    while match := re.compile(rb"([0-9a-fA-F]{1,8})[^\n]{0,200}\n").match(body, at):
        size = int(match[1], 16)
        if size == 0:
            break
        pieces.append(body[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(pieces) if pieces else body


def unpacked(body: bytes, encodings: str, limit: int) -> bytes:
    """The body without its content encodings; Damaged if it is damaged, unknown, or longer than `limit`."""
    names = [name.strip().lower() for name in encodings.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > 2:
        raise Damaged("the response is packed too many times")
    for name in reversed(names):
        if name in ("gzip", "x-gzip", "deflate"):
            body = _inflated(body, limit, plain=name == "deflate")
        elif name == "br":
            body = _unbrotli(body, limit)
        else:
            raise Damaged(f"the response is packed in an unknown way ({name[:20]})")
        if len(body) > limit:
            raise Damaged(f"the response is larger than {limit // 1_000_000} MB when unpacked")
    return body


def _inflated(body: bytes, limit: int, *, plain: bool) -> bytes:
    if not plain and not body.startswith(_GZIP):
        return body  # already unpacked by who recorded it
    for window in (15, -15) if plain else (31,):
        try:
            return zlib.decompressobj(window).decompress(body, limit + 1)
        except zlib.error as error:
            problem = error
    raise Damaged(f"the packed response is damaged: {problem}")


def _unbrotli(body: bytes, limit: int) -> bytes:
    try:
        import brotli
    except ImportError as error:
        raise DataError("reading this response needs brotli", fix="pip install 'trivium[web]'") from error
    unpacker = brotli.Decompressor()
    pieces, size = [], 0
    try:
        piece = unpacker.process(body, output_buffer_limit=limit + 1)
        while piece and size <= limit:
            pieces.append(piece)
            size += len(piece)
            piece = unpacker.process(b"", output_buffer_limit=limit + 1)
    except brotli.error as error:
        raise Damaged(f"the packed response is damaged: {error}") from None
    return b"".join(pieces)


# Writing


def digest(data: bytes) -> str:
    """As WARC files write it: `sha256:` and base 32."""
    return "sha256:" + base64.b32encode(hashlib.sha256(data).digest()).decode()


def packed_record(kind: str, headers: Mapping[str, str], block: bytes, *, name: str) -> bytes:
    """A record as one gzip member. `name` decides its id, so that the same name gives the same record."""
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<{uuid.uuid5(uuid.NAMESPACE_URL, name).urn}>",
        **headers,
        "WARC-Block-Digest": digest(block),
        "Content-Length": str(len(block)),
    }
    head = "".join(f"{key}: {_safe(value)}\r\n" for key, value in lines.items())
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(f"WARC/1.1\r\n{head}\r\n".encode() + block + b"\r\n\r\n") + packer.flush()


def _safe(value: str) -> str:
    return re.sub(r"[\r\n]+", " ", value)
