"""Exact and near duplicates: MinHash signatures (Broder 1997) and locality-sensitive hashing in bands.

Two documents are near duplicates if their sets of five-word shingles are similar (Jaccard 0.7 and more). A signature
holds, for each of 112 hash functions, the smallest hash of any shingle; the share of equal places estimates the
similarity. 14 bands of 8 places find candidates, as in FineWeb (Penedo et al. 2024): a pair of similarity 0.8 is
found with probability 0.92. Candidates are then compared over the whole signature.

Everything is derived from the text and fixed constants, so the result is the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BANDS = 14
ROWS = 8
PLACES = BANDS * ROWS
SHINGLE_WORDS = 5
SIMILAR = 0.7
"""Estimated similarity from which a candidate is a near duplicate."""

_WORD = re.compile(r"\w+")
_CHUNK = 4096
_REMEMBERED_WORDS = 1 << 20


def _constants(count: int, purpose: str) -> NDArray[np.uint64]:
    digests = (hashlib.sha256(f"{purpose} {number}".encode()).digest()[:8] for number in range(count))
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


_MULTIPLIERS = _constants(PLACES, "minhash multiplier") | np.uint64(1)
_OFFSETS = _constants(PLACES, "minhash offset")
_POSITIONS = _constants(SHINGLE_WORDS, "shingle position") | np.uint64(1)


class Signer:
    """Signatures of documents; remembers the hashes of frequent words."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def signature(self, text: str) -> NDArray[np.uint32]:
        """[112] smallest hashes of the text's shingles; case and punctuation do not count."""
        return minhash(self.shingles(text))

    def shingles(self, text: str) -> NDArray[np.uint64]:
        """Hashes of the different shingles of five words; of all words together if there are fewer."""
        words = _WORD.findall(text.casefold())
        hashes = np.fromiter((self._hash(word) for word in words), dtype=np.uint64, count=len(words))
        width = min(SHINGLE_WORDS, len(words))
        count = len(words) - width + 1
        found = np.zeros(count if words else 1, dtype=np.uint64)
        for place in range(width):
            found += hashes[place : place + count] * _POSITIONS[place]
        return np.unique(_mixed(found))

    def _hash(self, word: str) -> int:
        found = self._words.get(word)
        if found is None:
            if len(self._words) >= _REMEMBERED_WORDS:
                self._words.clear()
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            found = self._words[word] = int.from_bytes(digest, "little")
        return found


def minhash(shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """[112] for each hash function (a * x + b, upper half) the smallest value over the shingles."""
    smallest = np.full(PLACES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(shingles), _CHUNK):
        part = shingles[start : start + _CHUNK, None] * _MULTIPLIERS + _OFFSETS
        np.minimum(smallest, (part >> np.uint64(32)).min(axis=0).astype(np.uint32), out=smallest)
    return smallest


def similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures [..., 112]; standard error at most 0.05."""
    return np.asarray((one == other).mean(axis=-1), dtype=np.float64)


def clusters(signatures: NDArray[np.uint32], exact: Sequence[bytes]) -> NDArray[np.int64]:
    """[n] for each document the first document of its cluster.

    signatures: [n, 112].  exact: [n] hashes of the texts; equal texts are always in one cluster.
    """
    parents = np.arange(len(signatures), dtype=np.int64)
    first_with: dict[bytes, int] = {}
    for number, text in enumerate(exact):
        _unite(parents, first_with.setdefault(text, number), number)
    for band in range(BANDS):
        keys = _band_keys(signatures[:, band * ROWS : (band + 1) * ROWS])
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))  # of each bucket
        sizes = np.diff(np.append(begins, len(order)))
        first, others = np.repeat(order[begins], sizes - 1), np.delete(order, begins)
        alike = similarity(signatures[first], signatures[others]) >= SIMILAR
        for one, other in zip(first[alike].tolist(), others[alike].tolist(), strict=True):
            _unite(parents, one, other)
    return np.array([_root(parents, number) for number in range(len(parents))], dtype=np.int64)


def _band_keys(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    keys = np.zeros(len(rows), dtype=np.uint64)
    for place in range(rows.shape[1]):
        keys = _mixed(keys * np.uint64(31) + rows[:, place])
    return keys


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _root(parents: NDArray[np.int64], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number


def _unite(parents: NDArray[np.int64], one: int, other: int) -> None:
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)
