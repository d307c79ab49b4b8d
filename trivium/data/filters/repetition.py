"""How much of a text repeats itself: lines, paragraphs and word n-grams (Rae et al. 2021, appendix A1).

The n-grams of a text are compared by hashes of 64 bits in numpy, and only where a cheap bound (how often the most
frequent pair of words occurs, what share of the text any repeated n-gram covers) does not settle the question. What
comes out is what counting every n-gram gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.words import mixed
from trivium.data.filters.words import repeats

Keys = NDArray[np.uint64]

_BLANK = re.compile("\n{2,}")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def repeated_lines(text: str) -> tuple[float, float]:
    """(share of lines, share of characters) that are repetitions of earlier lines."""
    return _shares([line for line in text.split("\n") if line], text)


def repeated_paragraphs(text: str) -> tuple[float, float]:
    """(share of paragraphs, share of characters) that are repetitions of earlier paragraphs."""
    if "\n\n" not in text:
        return 0.0, 0.0
    return _shares(_BLANK.split(text.strip()), text)


class Grams:
    """The word n-grams of one text."""

    def __init__(self, words: Sequence[str], characters: int) -> None:
        number = dict(zip(words, count()))  # any number that equal words share
        size = len(words)
        ids = np.fromiter(map(number.__getitem__, words), dtype=np.uint64, count=size)
        self._hashes: list[Keys] = [mixed(ids + _BASE)]
        self._lengths = np.fromiter(map(len, words), dtype=np.int64, count=size)
        self._ends = np.cumsum(self._lengths)
        self._longest = int(self._lengths.max(initial=0))
        self._characters = characters

    def top_shares(self, limits: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float, float]]:
        """(n, share, limit) where the most frequent n-gram covers more of the text than its limit."""
        most = 0
        for n, limit in sorted(limits):
            if len(self._lengths) < n:
                return
            # A longer n-gram is at most as frequent as a shorter one, so one count can settle several limits.
            if most and most * (n * self._longest + n - 1) <= limit * self._characters:
                continue
            keys = self._keys(n)
            ordered = np.sort(keys)
            ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)  # of runs of equal ones
            counts = ends.copy()
            counts[0] += 1
            counts[1:] -= ends[:-1]
            most = int(counts.max())
            if most * (n * self._longest + n - 1) <= limit * self._characters:
                continue
            first = self._first(keys, ordered[ends[counts == most]], most)
            share = most * (self._length(first, n) + n - 1) / self._characters
            if share > limit:
                yield n, share, limit

    def repeated_shares(self, limits: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float, float]]:
        """(n, share, limit) where n-grams that occurred before, none inside another, cover more than the limit."""
        ordered = sorted(limits)
        places: NDArray[np.int64] | None = None
        for number, (n, limit) in enumerate(ordered):
            if len(self._lengths) < n:
                return
            keys = self._keys(n)
            if places is not None:  # an n-gram that is repeated begins with one of n - 1 words that is
                places = places[places < len(keys)]
                keys = keys[places]
            twice = _not_unique(keys)
            places = np.flatnonzero(twice) if places is None else places[twice]
            if (
                not len(places)
                or self._covered(places, n) <= min(bound for _, bound in ordered[number:]) * self._characters
            ):
                return
            share = self._greedy(places, keys[twice], n) / self._characters
            if share > limit:
                yield n, share, limit

    def _keys(self, n: int) -> Keys:
        """[words - n + 1] the hash of each n-gram."""
        while len(self._hashes) < n:
            before = self._hashes[-1]
            self._hashes.append(before[:-1] * _BASE + self._hashes[0][len(self._hashes) :])
        return self._hashes[n - 1]

    def _length(self, place: int, n: int) -> int:
        """Characters of the words of an n-gram."""
        return int(self._ends[place + n - 1] - (self._ends[place - 1] if place else 0))

    @staticmethod
    def _first(keys: Keys, frequent: Keys, most: int) -> int:
        """Where the first of the most frequent n-grams stands first."""
        if most == 1:
            return 0
        return int(np.argmax(keys == frequent[0] if len(frequent) == 1 else np.isin(keys, frequent)))

    def _covered(self, places: NDArray[np.int64], n: int) -> int:
        """Characters of all words inside n-grams at these places."""
        edges = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        edges[places] += 1
        edges[places + n] -= 1  # each place occurs once
        return int(self._lengths[np.cumsum(edges[:-1]) > 0].sum())

    def _greedy(self, places: NDArray[np.int64], keys: Keys, n: int) -> int:
        """Characters of repeated n-grams, read from left to right; one that was counted is skipped as a whole."""
        seen: set[int] = set()
        free = found = 0
        for place, key in zip(places.tolist(), keys.tolist(), strict=True):
            if place < free:
                continue
            if key in seen:
                found += self._length(place, n)
                free = place + n
            else:
                seen.add(key)
        return found


def _shares(items: list[str], text: str) -> tuple[float, float]:
    number, characters = repeats(items)
    return (number / len(items), characters / len(text)) if items else (0.0, 0.0)


def _not_unique(keys: Keys) -> NDArray[np.bool_]:
    """[len(keys)] whether the value occurs more than once."""
    ordered = np.sort(keys)
    same = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(same):
        return np.zeros(len(keys), dtype=np.bool_)
    return np.asarray(same[np.minimum(np.searchsorted(same, keys), len(same) - 1)] == keys)
