"""Whether one model is better than another on the same rows, and how sure the share of right answers is.

Several runs (seeds) of a model answer the same rows: `right` [R, N] is 1 where run r had row n right. Intervals draw
runs and rows anew (hierarchical bootstrap), so both the luck of the seed and that of the test rows count. The test of
two models flips the sign of the difference of each row (Fisher's randomisation; Dror et al. 2018, arXiv 1809.01448).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trivium.evaluation.intervals import Figure, Floats

_AT_ONCE = 4_000_000


def share_right(right: Floats, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Figure:
    """Mean of `right` [R, N] with its interval."""
    runs, rows = right.shape
    random = np.random.default_rng(seed)
    means = []
    for count in _blocks(resamples, rows):
        drawn = random.multinomial(rows, np.full(rows, 1 / rows), size=count)
        weights = random.multinomial(runs, np.full(runs, 1 / runs), size=count)
        means.append(((weights @ right) * drawn).sum(1) / (runs * rows))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Figure(float(right.mean()), float(low), float(high))


def paired_p(first: Floats, second: Floats, *, flips: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the hypothesis that both have the same mean; [R, N] and [R', N] on the same N rows."""
    difference = first.mean(0) - second.mean(0)
    random = np.random.default_rng(seed)
    observed, beyond = abs(difference.sum()), 0
    moved = difference[difference != 0]
    if not len(moved):
        return 1.0
    for count in _blocks(flips, len(moved)):
        signs = random.integers(0, 2, size=(count, len(moved)), dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ moved) >= observed - 1e-12).sum())
    return (beyond + 1) / (flips + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p values after Holm's correction for how many there are (Holm 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = highest
    return adjusted


def _blocks(total: int, width: int) -> list[int]:
    """Numbers of resamples that fit into memory together."""
    step = max(1, _AT_ONCE // max(width, 1))
    return [min(step, total - start) for start in range(0, total, step)]
