"""How a rate in one part of a corpus compares with that of the rest.

Intervals: Wilson 1927 for a rate, Newcombe 1998 (method 10) for the difference of two. Tests: Fisher's exact test where
a count of fewer than five would be expected, else the test of two proportions. Over all comparisons of an audit the
false discovery rate is held (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""97.5 % point of the normal distribution: intervals of 95 %."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """The interval of a rate; (0, 1) where nothing was seen."""
    if total == 0:
        return 0.0, 1.0
    share, square = count / total, Z * Z / total
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(count: int, total: int, other_count: int, other_total: int) -> tuple[float, float, float]:
    """(difference, low, high) of two rates."""
    share, other = count / max(total, 1), other_count / max(other_total, 1)
    low, high = wilson(count, total)
    other_low, other_high = wilson(other_count, other_total)
    gap = share - other
    down = math.hypot(share - low, other_high - other)
    up = math.hypot(high - share, other - other_low)
    return gap, max(-1.0, gap - down), min(1.0, gap + up)


def p_value(count: int, total: int, other_count: int, other_total: int) -> float:
    """Two-sided probability of so large a difference between two parts with the same rate."""
    everything, hits = total + other_total, count + other_count
    if not (total and other_total and 0 < hits < everything):
        return 1.0
    expected = min(total, other_total) * min(hits, everything - hits) / everything
    if expected < 5:
        return _fisher(count, total, hits, everything)
    share = hits / everything
    deviation = math.sqrt(share * (1 - share) * (1 / total + 1 / other_total))
    return math.erfc(abs(count / total - other_count / other_total) / deviation / math.sqrt(2))


def _fisher(count: int, total: int, hits: int, everything: int) -> float:
    """Sum of the probabilities of all tables that are no likelier than this one."""

    def log_choose(above: int, below: int) -> float:
        return math.lgamma(above + 1) - math.lgamma(below + 1) - math.lgamma(above - below + 1)

    def log_likelihood(value: int) -> float:
        inside = log_choose(hits, value) + log_choose(everything - hits, total - value)
        return inside - log_choose(everything, total)

    seen = log_likelihood(count)
    lowest, highest = max(0, total - (everything - hits)), min(total, hits)
    # The other tables are unlikely far from the expected one: beyond 1000 nothing is left to add.
    middle = round(total * hits / everything)
    values = range(max(lowest, middle - 1000), min(highest, middle + 1000) + 1)
    each = (log_likelihood(value) for value in values)
    return min(1.0, sum(math.exp(one) for one in each if one <= seen + 1e-7))


def adjusted(values: Sequence[float]) -> list[float]:
    """The probabilities after Benjamini and Hochberg: below 0.05, at most one flag in twenty is false on average."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result, smallest = [1.0] * len(values), 1.0
    for rank in range(len(order), 0, -1):
        place = order[rank - 1]
        smallest = min(smallest, values[place] * len(order) / rank)
        result[place] = smallest
    return result
