"""Shuffling without state: an order is a function of (seed, epoch, purpose), never of what was drawn before.

The keys come from SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), written
out here because numpy may change the streams of its own generators between versions; a run must be able to go on
after an upgrade.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def shuffle_keys(count: int, *, seed: int | str, epoch: int, purpose: str) -> NDArray[np.uint64]:
    """`count` pseudorandom numbers; sorting by them is the shuffle."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{epoch}".encode()).digest()
    start = int.from_bytes(digest[:8], "little")
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(start & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def shuffled(count: int, *, seed: int | str, epoch: int, purpose: str) -> NDArray[np.int64]:
    """The numbers 0..count-1 in the order of this seed, epoch and purpose."""
    return np.argsort(shuffle_keys(count, seed=seed, epoch=epoch, purpose=purpose), kind="stable")
