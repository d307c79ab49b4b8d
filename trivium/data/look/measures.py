"""What is measured while data streams by: each measure has a fixed size, whatever the data.

Samples are drawn by hashes (the texts with the smallest ones), so they do not depend on the order of the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from heapq import heappush, heapreplace
from itertools import count
from typing import Any, Generic, TypeVar

from trivium.data.hashes import hash64

Kept = TypeVar("Kept")

_FINE = 50
"""Classes of a length for each factor of e: quantiles are right within 1 %."""
_EDGES = (1, 1.5, 2, 3, 5, 7)


def key_of(text: str, purpose: str = "") -> int:
    """64 bits that stand for a text."""
    return hash64(f"{purpose}\0{text}")


class Lengths:
    """How long things are."""

    def __init__(self) -> None:
        self.number = self.total = self.longest = 0
        self.shortest: int | None = None
        self._classes: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """One more."""
        self.number += 1
        self.total += length
        self.longest = max(self.longest, length)
        self.shortest = length if self.shortest is None else min(self.shortest, length)
        self._classes[int(math.log(length) * _FINE) if length else -1] += 1

    def quantile(self, share: float) -> int:
        """The length that this share is at most as long as, within 1 %."""
        wanted = share * self.number
        for number in sorted(self._classes):
            wanted -= self._classes[number]
            if wanted <= 0:
                middle = round(math.exp((number + 0.5) / _FINE)) if number >= 0 else 0
                return min(max(middle, self.shortest or 0), self.longest)
        return self.longest

    def bars(self) -> dict[str, int]:
        """Counts in classes that grow with the length, by the lower end of the class."""
        edges = [0, *(round(step * 10**power) for power in range(10) for step in _EDGES)]
        found = dict.fromkeys(edges, 0)
        for number, times in self._classes.items():
            value = math.exp((number + 0.5) / _FINE) if number >= 0 else 0
            found[max(edge for edge in edges if edge <= value)] += times
        return {short(edge): times for edge, times in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Total, mean and quantiles."""
        if not self.number:
            return {"number": 0, "total": 0}
        quantiles = {f"p{round(100 * share)}": self.quantile(share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
        ends = {"shortest": self.shortest, "longest": self.longest}
        return {"number": self.number, "total": self.total, "mean": self.total / self.number, **quantiles, **ends}


class Frequent:
    """The most frequent of very many names; counts are at least these where `rough` is set (Manku and Motwani 2002)."""

    def __init__(self, capacity: int = 50_000) -> None:
        self.counts: Counter[str] = Counter()
        self.rough = False
        self._capacity = capacity

    def add(self, names: Iterable[str]) -> None:
        """Count each of the names once."""
        self.counts.update(names)
        if len(self.counts) > self._capacity:
            self.rough = True
            self.counts = Counter(dict(self.counts.most_common(self._capacity // 2)))

    def most(self, number: int, *, least: int = 1) -> list[tuple[str, int]]:
        """The most frequent names, equal counts by name."""
        found = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))[:number]
        return [one for one in found if one[1] >= least]


class Draw(Generic[Kept]):
    """A random sample of at most `size`: the entries with the smallest hashes."""

    def __init__(self, size: int) -> None:
        self.seen = 0
        self._size = size
        self._heap: list[tuple[int, int, Kept]] = []
        self._turn = count()

    def wants(self, key: int) -> bool:
        """Whether an entry of this hash would be taken."""
        self.seen += 1
        return len(self._heap) < self._size or (self._size > 0 and -key > self._heap[0][0])

    def add(self, key: int, kept: Kept) -> None:
        """Take an entry that is wanted."""
        entry = (-key, next(self._turn), kept)
        if len(self._heap) < self._size:
            heappush(self._heap, entry)
        else:
            heapreplace(self._heap, entry)

    def __len__(self) -> int:
        return len(self._heap)

    def drawn(self) -> list[Kept]:
        """The sample, in the order of the hashes."""
        return [kept for _, _, kept in sorted(self._heap, key=lambda one: (-one[0], one[1]))]


class Repeated:
    """How many texts occurred before, exactly up to `capacity` different ones, and then from a sample of them."""

    def __init__(self, capacity: int = 200_000) -> None:
        self.share_looked_at = 1.0
        self._limit = 1 << 64
        self._capacity = capacity
        self._counts: dict[int, int] = {}
        self._first: dict[int, str] = {}

    def add(self, key: int, name: str) -> None:
        """One more text."""
        if key >= self._limit:
            return
        self._counts[key] = self._counts.get(key, 0) + 1
        self._first.setdefault(key, name)
        if len(self._counts) > self._capacity:
            self._limit //= 2
            self.share_looked_at /= 2
            self._counts = {one: times for one, times in self._counts.items() if one < self._limit}
            self._first = {one: name for one, name in self._first.items() if one < self._limit}

    @property
    def share(self) -> float:
        """Share of texts that are repetitions of another one."""
        total = sum(self._counts.values())
        return (total - len(self._counts)) / total if total else 0.0

    def most(self, number: int) -> list[tuple[str, int]]:
        """(first of them, how many) of the texts that occur most often."""
        often = sorted((one for one in self._counts.items() if one[1] > 1), key=lambda one: (-one[1], one[0]))
        return [(self._first[key], times) for key, times in often[:number]]


def short(value: float) -> str:
    """1500 -> 1.5k."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
