"""How far a figure can be trusted: percentile intervals of the bootstrap (Efron 1979).

A resample of the rows is a vector of weights: how often each row was drawn. Every statistic here takes many such
vectors at once, so that a thousand resamples are a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Mapping[str, Floats]]
"""Weights [B, N] of the rows -> figures by name, [B] each."""

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 4_000_000
"""Weights in memory at the same time."""


@dataclass(frozen=True)
class Figure:
    """A figure with the ends of its interval; all are NaN where the figure is not defined."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """JSON has no NaN."""
        return {name: None if np.isnan(value) else float(value) for name, value in asdict(self).items()}


def with_intervals(
    statistic: Statistic, rows: int, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Figure]:
    """Every figure of `statistic` on all rows, with the interval in which it lies in `level` of the resamples.

    Resamples in which a figure is not defined (NaN) do not count for it.
    """
    whole = statistic(np.ones((1, rows)))
    random = np.random.default_rng(seed)
    found: dict[str, list[Floats]] = {name: [] for name in whole}
    share = np.full(max(rows, 1), 1 / max(rows, 1))
    step = max(1, _AT_ONCE // max(rows, 1))
    for start in range(0, resamples, step):
        weights = random.multinomial(rows, share, size=min(step, resamples - start)).astype(np.float64)
        for name, values in statistic(weights).items():
            found[name].append(values)
    figures = {}
    for name, values in whole.items():
        drawn = np.concatenate(found[name]) if found[name] else np.full(1, np.nan)
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (np.nan, np.nan)
        figures[name] = Figure(float(values[0]), float(low), float(high))
    return figures


def ratio(above: Floats, below: Floats, *, empty: float = np.nan) -> Floats:
    """above / below, `empty` where there is nothing below."""
    result: Floats = np.divide(above, below, out=np.full(np.broadcast(above, below).shape, empty), where=below != 0)
    return result


def precision_recall_f1(right: Floats, chosen: Floats, true: Floats) -> tuple[Floats, Floats, Floats]:
    """From counts; 0 where a class is never chosen or never occurs, as scikit-learn has it."""
    return ratio(right, chosen, empty=0.0), ratio(right, true, empty=0.0), ratio(2 * right, chosen + true, empty=0.0)
