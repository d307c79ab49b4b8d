"""Packing: which samples share a row.

Best fit decreasing (Johnson 1974): take the samples from the longest to the shortest and put each into the fullest
row that still has room. Two samples of equal length are interchangeable, so the rows are found for *lengths* and not
for samples: all rows with the same free room are handled at once, and the work depends on the number of different
lengths (at most the row's capacity), not on the number of samples. A million samples take milliseconds.

It also makes the number of rows the same in each epoch: an epoch shuffles which of the equally long samples stands
where, and the order of the rows. Row `i` of any epoch can therefore be found without counting through the earlier ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.data.order import shuffle_keys, shuffled

Ints = NDArray[np.int64]

_SORTED_GROUPS = 50
"""Groups of similar length that are sorted at a time: enough to be alike, few enough that an epoch has many orders."""


@dataclass(frozen=True)
class EpochPlan:
    """The rows of one epoch.

    samples: [n] sample numbers, row after row.  offsets: [R + 1] where each row begins.  order: [R] rows as walked.
    """

    samples: Ints
    offsets: Ints
    order: Ints

    def row(self, number: int) -> Ints:
        """Sample numbers of the row that is walked as number `number`."""
        at = self.order[number]
        return self.samples[self.offsets[at] : self.offsets[at + 1]]


class Packing:
    """Rows for samples of the given lengths.

    lengths:  [n] tokens of each sample, each from 1 to `capacity`.
    capacity: tokens in a row.
    best_fit: pack; otherwise one sample is one row.
    alike:    of rows with one sample each: so many that follow each other are of similar length, where the order is
              shuffled; None: in any order.
    """

    def __init__(self, lengths: Ints, *, capacity: int, best_fit: bool, alike: int | None = None) -> None:
        if len(lengths) and not 0 < int(lengths.min()) <= int(lengths.max()) <= capacity:
            raise ValueError(f"sample lengths must lie in 1..{capacity}, not {lengths.min()}..{lengths.max()}")
        self.lengths = lengths
        self.capacity = capacity
        self.best_fit = best_fit
        self.alike = alike
        if not best_fit:
            self._offsets = np.arange(len(lengths) + 1, dtype=np.int64)
            return
        values, counts = np.unique(lengths, return_counts=True)
        slot_lengths, self._offsets = _slots(_best_fit(values.tolist(), counts.tolist(), capacity))
        self._slot_order = np.argsort(-slot_lengths, kind="stable")
        # Length classes from the longest down, so that samples sorted by class meet slots sorted by length.
        self._classes = (len(values) - 1 - np.searchsorted(values, lengths)).astype(np.uint64)

    @property
    def rows(self) -> int:
        """Rows in one epoch; the same for each."""
        return len(self._offsets) - 1

    @property
    def efficiency(self) -> float:
        """Share of the row's capacity that holds tokens."""
        return float(self.lengths.sum()) / (self.rows * self.capacity) if self.rows else 1.0

    def plan(self, *, seed: int | str, epoch: int, shuffle: bool) -> EpochPlan:
        """The rows of an epoch: a pure function of (seed, epoch). Without `shuffle`, in the order of the samples."""
        samples = self._assign(seed, epoch, shuffle)
        if shuffle:
            order = shuffled(self.rows, seed=seed, epoch=epoch, purpose="rows")
            if self.alike is not None:
                order = self._grouped(order, self.alike, seed=seed, epoch=epoch)
        elif self.rows:
            order = np.argsort(np.minimum.reduceat(samples, self._offsets[:-1]), kind="stable")
        else:
            order = np.zeros(0, dtype=np.int64)
        return EpochPlan(samples, self._offsets, order)

    def _grouped(self, order: Ints, size: int, *, seed: int | str, epoch: int) -> Ints:
        """The same rows, each `size` of them of similar length: sorted inside of large parts of the shuffled order.

        The first group of an epoch ends where the last update of the epoch before it ends.
        """
        begun = -(epoch * self.rows) % size
        rest, order = order[:begun], order[begun:]
        part = size * _SORTED_GROUPS
        parts = [order[at : at + part] for at in range(0, len(order), part)]
        alike = np.concatenate([one[np.argsort(-self.lengths[one], kind="stable")] for one in parts] or [order])
        groups = [alike[at : at + size] for at in range(0, len(alike), size)]
        whole = len(alike) // size
        walked = shuffled(whole, seed=seed, epoch=epoch, purpose="groups").tolist()
        return np.concatenate([rest, *(groups[group] for group in walked), *groups[whole:]])

    def _assign(self, seed: int | str, epoch: int, shuffle: bool) -> Ints:
        count = len(self.lengths)
        if not self.best_fit:
            return np.arange(count, dtype=np.int64)
        rank = self._classes << np.uint64(43)  # at most 2^20 different lengths, so 43 bits remain for the shuffle
        if shuffle:
            rank |= shuffle_keys(count, seed=seed, epoch=epoch, purpose="samples") >> np.uint64(21)
        samples = np.empty(count, dtype=np.int64)
        samples[self._slot_order] = np.argsort(rank, kind="stable")
        return samples


@dataclass(frozen=True)
class _Pattern:
    """`times` samples of `length` put into rows that already held `before`."""

    before: _Pattern | None
    length: int
    times: int


def _best_fit(values: list[int], counts: list[int], capacity: int) -> list[tuple[_Pattern, int]]:
    """(what a row holds, number of such rows) for samples of `values`, `counts` of each; values ascend."""
    open_rooms: list[int] = []  # the different amounts of free room, ascending
    rows: dict[int, list[tuple[_Pattern | None, int]]] = {}

    def put(pattern: _Pattern | None, number: int, room: int) -> None:
        if room not in rows:
            rows[room] = []
            insort(open_rooms, room)
        rows[room].append((pattern, number))

    for length, count in zip(reversed(values), reversed(counts), strict=True):
        while count:
            at = bisect_left(open_rooms, length)
            if at == len(open_rooms):  # nothing has room: open as many new rows as these samples need
                room, pattern, number = capacity, None, -(-count // (capacity // length))
            else:
                room = open_rooms[at]
                pattern, number = rows[room].pop()
                if not rows[room]:
                    del rows[room], open_rooms[at]
            # The row just used has the least room of those that fit, so best fit fills it before the next one.
            each = room // length
            full = min(number, count // each)
            rest = min(number - full, 1) * (count - full * each)
            if full:
                put(_Pattern(pattern, length, each), full, room - each * length)
            if rest:
                put(_Pattern(pattern, length, rest), 1, room - rest * length)
            untouched = number - full - bool(rest)
            if untouched:
                put(pattern, untouched, room)
            count -= full * each + rest
    return [(pattern, number) for groups in rows.values() for pattern, number in groups if pattern is not None]


def _slots(patterns: list[tuple[_Pattern, int]]) -> tuple[Ints, Ints]:
    """Length of each slot, row after row, and the [R + 1] offsets of the rows."""
    lengths: list[Ints] = []
    sizes: list[Ints] = []
    for pattern, number in patterns:
        row: list[int] = []
        node: _Pattern | None = pattern
        while node is not None:
            row[:0] = [node.length] * node.times
            node = node.before
        lengths.append(np.tile(np.array(row, dtype=np.int64), number))
        sizes.append(np.full(number, len(row), dtype=np.int64))
    none = np.zeros(0, dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(sizes or [none]))])
    return np.concatenate(lengths or [none]), offsets
