"""The wire format of protocol buffers, as far as a SentencePiece model needs it: fields by number, nothing run."""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int | bytes]
"""Number, wire type, and the value: an integer, or the bytes of a text, message or fixed-width number."""


def fields(data: bytes) -> Iterator[Field]:
    """The fields of one message in order; ValueError, naming the byte, for what is no message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {at}, and only {len(data) - at} are left")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError(f"a number without end at byte {at}")


def single(value: int | bytes) -> float:
    """A 32-bit float, from the bytes of its field."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("a number of the wrong width")
    return float(struct.unpack("<f", value)[0])


def signed(value: int | bytes) -> int:
    """A 32-bit number that may be negative, from its 64 bits."""
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value - (1 << 64) if value >> 63 else value
