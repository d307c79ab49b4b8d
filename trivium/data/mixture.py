"""Mixtures: which source row number i comes from, without state.

The shares are brought to whole numbers over a common period (0.7 : 0.2 : 0.1 is 7 + 2 + 1 of 10 rows), and the
sources are spread over the period as evenly as they go. Row i is then found by one division and one table look-up,
any stretch of rows holds the shares to within a row or two, and each source is walked in its own epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

_LONGEST_PERIOD = 10_000


class Mixture:
    """Rows from several sources in fixed shares.

    weights: one positive number a source, relative to each other. Shares that need a period over 10,000 rows are
    rounded to it.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        per_period = _whole_shares(weights)
        self.period = sum(per_period)
        self._per_period = per_period
        source = np.zeros(self.period, dtype=np.int64)
        seen = np.zeros((self.period + 1, len(per_period)), dtype=np.int64)
        share = np.array(per_period) / self.period
        for row in range(self.period):
            # The source that lags most behind its share comes next.
            lag = np.where(seen[row] < per_period, share * (row + 1) - seen[row], -np.inf)
            source[row] = int(lag.argmax())
            seen[row + 1] = seen[row]
            seen[row + 1, source[row]] += 1
        self._source = source
        self._seen = seen

    @property
    def shares(self) -> list[float]:
        """Share of each source; they add up to 1."""
        return [count / self.period for count in self._per_period]

    def locate(self, row: int) -> tuple[int, int]:
        """(source, which of that source's rows) of row number `row`."""
        period, at = divmod(row, self.period)
        source = int(self._source[at])
        return source, period * self._per_period[source] + int(self._seen[at, source])

    def walked(self, rows: int) -> list[int]:
        """How many rows of each source are among the first `rows`."""
        period, at = divmod(rows, self.period)
        return [period * each + int(seen) for each, seen in zip(self._per_period, self._seen[at], strict=True)]


def _whole_shares(weights: Sequence[float]) -> list[int]:
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= _LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    counts = [max(1, int(share * _LONGEST_PERIOD)) for share in shares]
    counts[shares.index(max(shares))] += _LONGEST_PERIOD - sum(counts)
    return counts
