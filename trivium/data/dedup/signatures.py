"""MinHash signatures (Broder 1997): how alike two texts are, from a few hundred bytes for each.

Two documents are as alike as their sets of shingles (runs of five words) are: Jaccard similarity, shared shingles
divided by all. For a random order of all shingles the first one of a text is that of another with just this
probability; so a signature holds, for each of 112 orders, the least hash of the text's shingles, and the share of equal
places estimates the similarity.

To spare three quarters of the work, shingles are first dealt into four bins by their hash, and each of 28 orders
(a * x + b modulo 2^32) gives one place in each bin (Li, Owen and Zhang 2012, "One Permutation Hashing", with few bins):
four places for one pass. Such places vary a little less than independent ones. A bin that is empty, in texts of a few
dozen shingles, takes the value of the next one (Shrivastava and Li 2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.words import BLOCK, Hashes, Ints, constants, shingle_hashes, text_hash, word_hashes

BANDS = 14
ROWS = 8
PLACES = BANDS * ROWS
SHINGLE_WORDS = 5
SIMILAR = 0.7
"""Estimated similarity from which a candidate is a near duplicate."""

Signatures = NDArray[np.uint32]

_BINS = 4
_TOGETHER = 64
"""Texts signed together, at most: their bins are numbered in 16 bits, and their arrays stay in the cache."""


class Signer:
    """Signatures of documents.

    width:  words in a shingle.
    places: length of a signature.
    """

    def __init__(self, *, width: int = SHINGLE_WORDS, places: int = PLACES) -> None:
        self.width = width
        self.places = places
        orders = -(-places // _BINS)
        self._multipliers = (constants(orders, "minhash multiplier") >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._offsets = (constants(orders, "minhash offset") >> np.uint64(32)).astype(np.uint32)

    def signature(self, text: str) -> Signatures:
        """[places] least hashes of the text's shingles; case and punctuation do not count."""
        found: Signatures = self.signatures([text])[0]
        return found

    def signatures(self, texts: Sequence[str]) -> Signatures:
        """[D, places] one for each text; the same as one by one, and faster."""
        return self.sketches(texts)[0]

    def sketches(self, texts: Sequence[str], *, sets: bool = False) -> tuple[Signatures, list[Hashes]]:
        """([D, places] the signatures, and if asked for the different shingles of each text in order)."""
        signatures = [np.zeros((0, self.places), dtype=np.uint32)]
        shingles: list[Hashes] = []
        for group in _groups(texts):
            hashes, counts = self.shingled(group)
            signatures.append(self.minhash(hashes, counts))
            if sets:
                shingles.extend(map(np.unique, np.split(hashes, np.cumsum(counts)[:-1])))
        return np.concatenate(signatures), shingles

    def shingles(self, text: str) -> Hashes:
        """[S] hashes of the different shingles, in order; of all words together if there are fewer."""
        return np.unique(self.shingled([text])[0])

    def shingled(self, texts: Sequence[str]) -> tuple[Hashes, Ints]:
        """([S] hashes of all shingles, [D] how many each text has, at least one)."""
        hashes, counts = shingle_hashes(*word_hashes(texts), self.width)
        wordless = np.flatnonzero(counts == 0).tolist()
        if wordless:  # "***" is like "***", but not like "---"
            whole = [int.from_bytes(text_hash(texts[number])[:8], "little") for number in wordless]
            hashes = np.insert(hashes, (np.cumsum(counts) - counts)[wordless], np.array(whole, dtype=np.uint64))
            counts[wordless] = 1
        return hashes, counts

    def minhash(self, hashes: Hashes, counts: Ints) -> Signatures:
        """[D, places] from the shingles of at most 64 texts."""
        assert len(counts) <= _TOGETHER
        bins = np.repeat(np.arange(len(counts), dtype=np.uint16) * np.uint16(_BINS), counts)
        bins += (hashes & np.uint64(_BINS - 1)).astype(np.uint16)
        values = (hashes >> np.uint64(32)).astype(np.uint32)[np.argsort(bins, kind="stable")]
        sizes = np.bincount(bins, minlength=len(counts) * _BINS)
        filled = np.flatnonzero(sizes)
        begins = (np.cumsum(sizes) - sizes)[filled]
        least = np.empty((len(self._multipliers), len(filled)), dtype=np.uint32)
        ordered = np.empty_like(values)
        for number, (multiplier, offset) in enumerate(zip(self._multipliers, self._offsets, strict=True)):
            np.multiply(values, multiplier, out=ordered)
            np.add(ordered, offset, out=ordered)
            np.minimum.reduceat(ordered, begins, out=least[number])
        least = least[:, _next_filled(sizes.reshape(-1, _BINS), filled)]
        by_text = least.reshape(-1, len(counts), _BINS).transpose(1, 0, 2).reshape(len(counts), -1)
        return np.ascontiguousarray(by_text[:, : self.places])


def similarity(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures [..., places]; standard error at most 0.05 with 112 places."""
    return np.asarray((one == other).mean(axis=-1), dtype=np.float64)


def _next_filled(sizes: Ints, filled: Ints) -> Ints:
    """[D * bins] for each bin the position in `filled` of itself or else of the next filled bin of the same text."""
    where = np.cumsum(sizes.ravel() > 0).reshape(sizes.shape) - 1
    for _ in range(_BINS - 1 if len(filled) < sizes.size else 0):
        where = np.where(sizes > 0, where, np.roll(where, -1, axis=1))
        sizes = np.where(sizes > 0, sizes, np.roll(sizes, -1, axis=1))
    return where.ravel()


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts next to each other that are signed together."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        if number > start and (size + len(text) > BLOCK or number - start == _TOGETHER):
            yield texts[start:number]
            start, size = number, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]
