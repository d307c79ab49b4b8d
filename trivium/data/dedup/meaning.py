"""Documents that mean the same: neighbours among vectors, found inside groups of a k-means (SemDeDup).

Abbas et al. (2023), "SemDeDup: Data-efficient learning at web-scale through semantic deduplication": vectors are
divided into groups by k-means, and only vectors of one group are compared. With one group all pairs are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.buckets import components
from trivium.data.dedup.words import Ints

Vectors = NDArray[np.float32]

_ROUNDS = 10
_TOGETHER = 2048


def grouped(vectors: Vectors, groups: int, *, seed: int) -> Ints:
    """[n] the group of each vector of length 1: k-means by cosine, with a fixed number of rounds."""
    if groups <= 1:
        return np.zeros(len(vectors), dtype=np.int64)
    centres = vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), groups, replace=False))]
    for _ in range(_ROUNDS):
        nearest = _nearest(vectors, centres)
        sums = np.zeros_like(centres, dtype=np.float64)
        np.add.at(sums, nearest, vectors)
        sizes = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1e-12), centres).astype(np.float32)
    return _nearest(vectors, centres)


def near_in_groups(roots: Ints, vectors: Vectors, groups: Ints, threshold: float) -> Ints:
    """[n] the first document of each document's cluster: pairs of one group with a cosine of `threshold` are joined."""
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        for start in range(0, len(members), _TOGETHER):
            block = members[start : start + _TOGETHER]
            for other in range(0, start + 1, _TOGETHER):
                rest = members[other : other + _TOGETHER]
                one, two = np.nonzero(vectors[block] @ vectors[rest].T >= threshold)
                roots = components(roots, block[one], rest[two])
    return roots


def _nearest(vectors: Vectors, centres: Vectors) -> Ints:
    found = [
        np.argmax(vectors[start : start + _TOGETHER] @ centres.T, axis=1) for start in range(0, len(vectors), _TOGETHER)
    ]
    return np.concatenate(found).astype(np.int64)
