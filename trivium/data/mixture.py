"""Mixtures: which source row number i comes from, without state.

`Mixture`: shares of an endless walk. They are brought to whole numbers over a common period (0.7 : 0.2 : 0.1 is
7 + 2 + 1 of 10 rows), and the sources are spread over the period as evenly as they go. Row i is then found by one
division and one table look-up, any stretch of rows holds the shares to within a row or two, and each source is walked
in its own epochs.

`Budgeted`: exact numbers of rows in a run of known length, where sources have token budgets or limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.data.dataset import Part
    from trivium.recipe import MixtureSettings, Source

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


class Budgeted:
    """Rows from several sources, in a run of exactly sum(rows) rows; beyond its end it starts again.

    rows: how many of the run's rows come from each source.

    The run is split in two again and again, between halves of the list of sources; row i of n goes to the left half
    if i * left / n reaches the next whole number there. So each source is spread evenly, to within one row a split,
    and a row is found by as many integer divisions as there are splits, without a table.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = list(rows)
        self.period = sum(rows)

    @property
    def shares(self) -> list[float]:
        """Share of each source; they add up to 1."""
        return [count / self.period for count in self._rows]

    def locate(self, row: int) -> tuple[int, int]:
        """(source, which of that source's rows) of row number `row`."""
        period, at = divmod(row, self.period)
        first, last, size = 0, len(self._rows), self.period
        while last - first > 1:
            middle = (first + last) // 2
            left = sum(self._rows[first:middle])
            before, after = at * left // size, (at + 1) * left // size
            if after > before:
                last, size, at = middle, left, before
            else:
                first, size, at = middle, size - left, at - before
        return first, period * self._rows[first] + at

    def walked(self, rows: int) -> list[int]:
        """How many rows of each source are among the first `rows`."""
        period, at = divmod(rows, self.period)
        return [period * each + seen for each, seen in zip(self._rows, self._seen(self._rows, at), strict=True)]

    def _seen(self, rows: Sequence[int], at: int) -> list[int]:
        if len(rows) == 1:
            return [at]
        middle = len(rows) // 2
        size = sum(rows)
        before = at * sum(rows[:middle]) // size if size else 0
        return [*self._seen(rows[:middle], before), *self._seen(rows[middle:], at - before)]


def is_mixture(sources: Sequence[Source], settings: MixtureSettings) -> bool:
    """Whether the sources are walked each on its own; otherwise they are one after the other."""
    asked = (source.weight != 1 or source.tokens is not None or source.max_epochs is not None for source in sources)
    return any(asked) or settings.temperature is not None


def shared_out(parts: Sequence[Part], sizes: Sequence[int], settings: MixtureSettings) -> list[Part]:
    """The parts with their final weights: those given, by temperature, or (limits only) as large as the sources are.

    sizes: tokens of each source.
    """
    weighted = any(part.weight != 1 for part in parts)
    if settings.temperature is None and weighted:
        return list(parts)
    power = 1 / (settings.temperature or 1.0)
    largest = max(sizes)
    return [
        replace(part, weight=part.weight * (size / largest) ** power) for part, size in zip(parts, sizes, strict=True)
    ]


@dataclass(frozen=True)
class Supply:
    """One source as the plan of a run sees it.

    rows: rows that hold it once.  row_tokens: tokens in a row, on average.
    """

    part: Part
    rows: int
    row_tokens: float

    @property
    def budget(self) -> int | None:
        """Rows that hold its token budget."""
        return None if self.part.tokens is None else max(1, round(self.part.tokens / self.row_tokens))

    @property
    def limit(self) -> float:
        """Most rows that may be walked."""
        return math.inf if self.part.max_epochs is None else max(1, int(self.part.max_epochs * self.rows + 1e-9))


def planned_rows(supplies: Sequence[Supply], *, updates: int, update_rows: int) -> list[int]:
    """How many of a run's rows come from each source: budgets first, the rest by weight, nobody above the limit.

    ConfigError, with the fix, if budgets and limits do not fill the run exactly.
    """
    for supply in supplies:
        _refuse_beyond_limit(supply)
    total = updates * update_rows
    rows = {number: supply.budget for number, supply in enumerate(supplies) if supply.budget is not None}
    left = total - sum(rows.values())
    free = [number for number in range(len(supplies)) if number not in rows]
    if left < 0:
        raise _too_much(supplies, sum(rows.values()), updates, update_rows)
    if not free and left >= update_rows:
        raise _too_little("the token budgets are used up", total - left, updates, update_rows)
    if not free:  # less than an update, from rounding
        rows[max(rows, key=rows.__getitem__)] += left
        return [rows[number] for number in range(len(supplies))]
    most = sum(supplies[number].limit for number in free)
    if most < left:
        raise _too_little("all sources reach their max_epochs", int(total - left + most), updates, update_rows)
    return [*(({**rows, **_by_weight(supplies, free, left)})[number] for number in range(len(supplies)))]


def _by_weight(supplies: Sequence[Supply], free: Sequence[int], left: int) -> dict[int, int]:
    """`left` rows by weight; who is limited gets the limit, and the others share what is left over."""
    rows: dict[int, int] = {}
    free = list(free)
    while True:
        weight = sum(supplies[number].part.weight for number in free)
        full = [n for n in free if left * supplies[n].part.weight / weight >= supplies[n].limit]
        if not full or len(full) == len(free):
            break
        rows |= {number: int(supplies[number].limit) for number in full}
        left -= sum(rows[number] for number in full)
        free = [number for number in free if number not in full]
    exact = {number: left * supplies[number].part.weight / weight for number in free}
    found = {number: min(int(value), int(min(supplies[number].limit, left))) for number, value in exact.items()}
    by_rest = sorted(free, key=lambda number: found[number] - exact[number])
    while (missing := left - sum(found.values())) > 0:
        for number in [n for n in by_rest if found[n] < supplies[n].limit][:missing]:
            found[number] += 1
    return rows | found


def _refuse_beyond_limit(supply: Supply) -> None:
    if supply.budget is not None and supply.budget > supply.limit:
        passes = supply.budget / supply.rows
        raise ConfigError(
            f"the token budget needs {passes:.2f} passes over the source, max_epochs allows {supply.part.max_epochs:g}",
            where=f"data.train: {supply.part.name}",
            value=f"tokens: {supply.part.tokens}",
            fix=f"lower tokens to {int(supply.limit * supply.row_tokens)}, or raise max_epochs to {math.ceil(passes)}",
        )


def _too_much(supplies: Sequence[Supply], rows: int, updates: int, update_rows: int) -> ConfigError:
    needed = -(-rows // update_rows)
    budgets = sum(supply.part.tokens or 0 for supply in supplies)
    return ConfigError(
        f"the token budgets need {needed} updates, the run has {updates}",
        where="data.train",
        value=f"budgets of {budgets:,} tokens together",
        fix=f"train.steps={needed}, or lower the budgets (tokens) of the sources",
    )


def _too_little(what: str, rows: int, updates: int, update_rows: int) -> ConfigError:
    enough = rows // update_rows
    return ConfigError(
        f"{what} after {enough} updates, the run has {updates}",
        where="data.train",
        fix=f"train.steps={enough}, or leave one source without tokens and max_epochs (or raise them)",
    )
