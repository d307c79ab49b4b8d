"""Which documents are alike, found by locality-sensitive hashing: bands of signatures that are equal.

A signature of `bands * rows` places falls into `bands` keys; documents that share a key are candidates. A pair of
similarity s is found with probability 1 - (1 - s^rows)^bands: with 14 bands of 8, as in FineWeb (Penedo et al. 2024),
0.92 for s = 0.8 and 0.56 for s = 0.7. Candidates are then compared over the whole signature, or exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.signatures import BANDS, ROWS, SIMILAR, Signatures, similarity
from trivium.data.dedup.words import Hashes, Ints, mixed

PIVOTS = 64
"""Documents of one bucket that the others are compared with; only buckets of very mixed documents hold more kinds."""

SMALL = 8
"""In buckets of up to this many documents all pairs are compared; in larger ones what is like a pivot is done with."""

_TOGETHER = 1 << 15

Alike = Callable[[Ints, Ints], NDArray[np.bool_]]
"""For pairs of documents whether each is a pair of near duplicates."""


def clusters(
    signatures: Signatures, exact: Sequence[bytes], *, bands: int = BANDS, rows: int = ROWS, threshold: float = SIMILAR
) -> Ints:
    """[n] for each document the first document of its cluster.

    signatures: [n, bands * rows].  exact: [n] hashes of the texts; equal texts are always in one cluster.
    """
    first_with: dict[bytes, int] = {}
    equal = np.array([first_with.setdefault(text, number) for number, text in enumerate(exact)], dtype=np.int64)
    keys = (band_keys(signatures[:, band * rows : (band + 1) * rows]) for band in range(bands))
    return near_clusters(
        equal, keys, lambda one, other: similarity(signatures[one], signatures[other]) >= threshold - 1e-9
    )


def near_clusters(roots: Ints, keys: Iterable[Hashes], alike: Alike) -> Ints:
    """[n] the first document of each document's cluster.

    roots: [n] the same for clusters that are known already.  keys: [n] for each band.
    """
    for band in keys:
        roots = components(roots, *_edges(roots, band, alike))
    return roots


def equal_rows(rows: NDArray[Any]) -> Ints:
    """[n] for each row of [n, 2] the first one that is equal to it."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    ordered = rows[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    roots = np.empty(len(order), dtype=np.int64)
    roots[order] = order[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]  # sorting is stable: the first is the least
    return roots


def band_keys(rows: Signatures) -> Hashes:
    """[n] one key for the places [n, rows] of a band."""
    keys = np.zeros(len(rows), dtype=np.uint64)
    for place in range(rows.shape[1]):
        keys = mixed(keys * np.uint64(31) + rows[:, place])
    return keys


def components(roots: Ints, one: Ints, other: Ints) -> Ints:
    """[n] the least document of each document's component, after `one[i]` and `other[i]` have been joined."""
    while True:
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        apart = low != high
        if not apart.any():
            return roots
        roots = roots.copy()
        np.minimum.at(roots, high[apart], low[apart])
        while not np.array_equal(further := roots[roots], roots):
            roots = further


def _edges(roots: Ints, keys: Hashes, alike: Alike) -> tuple[Ints, Ints]:
    """Pairs of one bucket that are alike, in rounds: in each the first document left is compared with the rest."""
    order = np.argsort(keys, kind="stable")
    fresh = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
    buckets = np.cumsum(fresh) - 1
    sizes = np.bincount(buckets, minlength=1)[buckets]
    order, buckets, small = order[sizes > 1], buckets[sizes > 1], sizes[sizes > 1] <= SMALL
    ones, others = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for _ in range(PIVOTS):
        if not len(order):
            break
        begins = np.flatnonzero(np.diff(buckets, prepend=-1))
        first = np.repeat(order[begins], np.diff(np.append(begins, len(order))))
        rest = order != first
        pivots, members, buckets, small = first[rest], order[rest], buckets[rest], small[rest]
        known = roots[pivots] == roots[members]
        near = known.copy()
        near[~known] = _in_turns(alike, pivots[~known], members[~known])
        joined = near & ~known
        ones.append(pivots[joined])
        others.append(members[joined])
        left = ~near | small
        order, buckets, small = members[left], buckets[left], small[left]
    return np.concatenate(ones), np.concatenate(others)


def _in_turns(alike: Alike, one: Ints, other: Ints) -> NDArray[np.bool_]:
    """`alike` for a bounded number of pairs at a time."""
    found = [alike(one[at : at + _TOGETHER], other[at : at + _TOGETHER]) for at in range(0, len(one), _TOGETHER)]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)
