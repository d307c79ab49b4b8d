"""Hashes of the words of many texts at once, and of the runs of n words (shingles) in them.

A word is a run of letters, digits, underscores and combining marks; case does not count. Characters of scripts that
are written without spaces (Chinese, Japanese, Thai and their neighbours) are words of their own. A word is hashed by a
polynomial over its code points modulo 2^64: all prefixes of a block of text are one cumulative sum, and the hash of a
word is the difference of two of them, so the work is a few passes of numpy over many documents together.

Everything is derived from the text and fixed constants, so the result is the same on every machine.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

BLOCK = 1 << 17
"""Characters that are looked at together; a word across the end of a block of one long text counts as two."""

_BASE = 0x9E3779B97F4A7C15
_UNSPACED = (  # scripts without spaces between words
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip

_ASSIGNED = ((0x80, 0x40000), (0xE0000, 0xF0000))
"""Beyond ASCII, the planes of Unicode that hold characters; the others are private or empty."""


def mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def constants(count: int, purpose: str) -> Hashes:
    """[count] fixed random numbers."""
    digests = (hashlib.sha256(f"{purpose} {number}".encode()).digest()[:8] for number in range(count))
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def text_hash(text: str) -> bytes:
    """The first 16 bytes of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def folded(text: str) -> str:
    """The text as its words are compared."""
    return text.casefold()


def word_hashes(texts: Sequence[str]) -> tuple[Hashes, Ints]:
    """([W] a hash for each word of each text, [D] how many words each text has)."""
    found: list[Hashes] = []
    counts = np.zeros(len(texts), dtype=np.int64)
    for block, owners, lengths in _blocks(map(folded, texts)):
        starts, _, hashes = _words(block)
        found.append(hashes)
        pieces = np.searchsorted(starts, np.cumsum(lengths))
        np.add.at(counts, owners, np.diff(pieces, prepend=0))
    return (np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)), counts


def word_places(text: str) -> Ints:
    """[W, 2] where each word begins and ends in the text; the same words as those of `word_hashes`."""
    places = []
    at = 0
    seen = folded(text)
    for block, _, _ in _blocks([seen]):
        starts, ends, _ = _words(block)
        places.append(np.stack([starts, ends], axis=1) + at)
        at += len(block)
    if not places:
        return np.zeros((0, 2), dtype=np.int64)
    found = np.concatenate(places)
    if len(seen) != len(text):  # some characters are two without case: ß is ss
        ends = np.cumsum([len(folded(character)) for character in text])
        found = np.searchsorted(ends, found - np.array([0, 1]), side="right") + np.array([0, 1])
    return found


def shingle_hashes(words: Hashes, counts: Ints, width: int) -> tuple[Hashes, Ints]:
    """([S] hashes of all runs of `width` words, [D] how many each text has).

    A text with fewer words has one shingle of all of them, a text without words none.
    """
    ends = np.cumsum(counts)
    firsts = ends - counts
    positions = _positions(width)
    found = np.zeros(len(words), dtype=np.uint64)
    for place in range(min(width, len(words))):
        found[: len(words) - place] += words[place:] * positions[place]
    short = np.flatnonzero((counts < width) & (counts > 0))
    for place in range(width if len(short) else 0):
        if place == 0:
            found[firsts[short]] = 0
        there = short[counts[short] > place]
        found[firsts[there]] += words[firsts[there] + place] * positions[place]
    kept = np.ones(len(words), dtype=np.bool_)
    for place in range(1, width):  # no run goes on into the next text; the first word begins one in any case
        kept[ends[counts > place] - place] = False
    return mixed(found[kept]), np.where(counts > 0, np.maximum(counts - width + 1, 1), 0)


@cache
def _positions(width: int) -> Hashes:
    return constants(width, "shingle position") | np.uint64(1)


def _blocks(texts: Iterable[str]) -> Iterator[tuple[str, Ints, Ints]]:
    """(characters, [P] the number of the text of each piece, [P] lengths of the pieces, with what parts them)."""
    pieces: list[str] = []
    owners: list[int] = []
    size = 0
    for number, text in enumerate(texts):
        for at in range(0, len(text), BLOCK):
            piece = text[at : at + BLOCK]
            if size + len(piece) > BLOCK and pieces:
                yield _block(pieces, owners)
                pieces, owners, size = [], [], 0
            pieces.append(piece)
            owners.append(number)
            size += len(piece)
    if pieces:
        yield _block(pieces, owners)


def _block(pieces: list[str], owners: list[int]) -> tuple[str, Ints, Ints]:
    lengths = np.array([len(piece) + 1 for piece in pieces], dtype=np.int64)
    return "\0".join(pieces), np.array(owners, dtype=np.int64), lengths


def _words(block: str) -> tuple[Ints, Ints, Hashes]:
    """([W] where words begin, [W] where they end, [W] their hashes)."""
    if block.isascii():
        data = block.encode("ascii")
        codes = np.frombuffer(data, dtype=np.uint8)
        inside = np.zeros(len(codes) + 2, dtype=np.bool_)
        inside[1:-1] = np.frombuffer(data.translate(_ascii()), dtype=np.bool_)
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
    else:
        codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        kinds = np.zeros(len(codes) + 2, dtype=np.uint8)
        kinds[1:-1] = _kinds()[codes]
        alone = kinds[1:-1] == 2
        starts = np.flatnonzero(alone | ((kinds[1:-1] == 1) & (kinds[:-2] != 1)))
        ends = np.flatnonzero(alone | ((kinds[1:-1] == 1) & (kinds[2:] != 1))) + 1
    forward, backward = _powers()
    sums = np.empty(len(codes) + 1, dtype=np.uint64)
    sums[0] = 0
    np.multiply(codes, forward[: len(codes)], out=sums[1:])
    np.cumsum(sums, out=sums)
    return starts, ends, mixed((sums[ends] - sums[starts]) * backward[starts])


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse; enough for a block and what parts its pieces."""
    inverse = pow(_BASE, -1, 1 << 64)
    return tuple(  # type: ignore[return-value]
        np.multiply.accumulate(np.concatenate([[np.uint64(1)], np.full(2 * BLOCK, base, dtype=np.uint64)]))
        for base in (_BASE, inverse)
    )


@cache
def _ascii() -> bytes:
    """1 for each byte that is part of a word."""
    return bytes(chr(code).isalnum() or code == ord("_") for code in range(128)).ljust(256, b"\0")


@cache
def _kinds() -> NDArray[np.uint8]:
    """For each code point: 0 parts words, 1 is part of a word, 2 is a word."""
    kinds = np.zeros(0x110000, dtype=np.uint8)
    kinds[:128] = np.frombuffer(_ascii(), dtype=np.uint8)[:128]
    for first, last in _ASSIGNED:
        characters = list(map(chr, range(first, last)))
        marks = np.frombuffer("".join(map(unicodedata.category, characters)).encode(), dtype=np.uint8)[::2] == ord("M")
        kinds[first:last] = np.fromiter(map(str.isalnum, characters), dtype=np.bool_, count=len(characters)) | marks
    for first, last in _UNSPACED:
        kinds[first : last + 1] *= 2
    return kinds
