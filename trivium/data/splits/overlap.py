"""Text of a test set inside other text, found by runs of n words that both have.

The index holds 64-bit hashes of all runs of 13 words (n-grams) of the test set, as in the decontamination of GPT-3
(Brown et al. 2020), and no text. Case and punctuation do not count. A passage of 8 to 12 words counts as one run, and
is found inside longer texts as well; one of 5 to 7 words is found only where it is a whole passage; shorter ones are no
evidence of anything and are left out, and counted. Runs that more than ten rows of the test set share (its prompt
template) are left out too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.words import Hashes, Ints, shingle_hashes, word_hashes, word_places

NGRAM = 13
SHORTEST_INSIDE = 8
SHORTEST = 5
COMMON = 10

_TOGETHER = 256
_EXCERPT = 200


@dataclass(frozen=True)
class Index:
    """Runs of words of a test set.

    hashes: [N] in order.  rows: [N] the row each is from.  names: [R] of the rows.
    totals: [R] how many runs of each row are in the index.  widths: lengths of the runs that are looked for.
    """

    hashes: Hashes
    rows: NDArray[np.uint32]
    names: Sequence[str]
    totals: Ints
    widths: tuple[int, ...]
    ngram: int
    too_short: int = 0
    common: int = 0


@dataclass(frozen=True)
class Hit:
    """Runs of a test row, one after the other, found in text number `text`: words `first` to `first + width`."""

    text: int
    first: int
    width: int
    row: int
    runs: int


class Finder:
    """Looks for the runs of an index; a table of bits passes over what is not in it."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._distinct, self._first = np.unique(index.hashes, return_index=True)
        bits = max(16, int(np.ceil(np.log2(max(1, len(self._distinct))))) + 4)
        self._shift = np.uint64(64 - min(bits, 30))
        self._table = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._table[self._distinct >> self._shift] = True

    def find(self, texts: Sequence[str]) -> list[Hit]:
        """All hits in these texts, in order."""
        words, counts = word_hashes(texts)
        found: list[Hit] = []
        for width in self.index.widths:
            hashes, runs = shingle_hashes(words, counts, width)
            maybe = np.flatnonzero(self._table[hashes >> self._shift])
            if not len(maybe):
                continue
            place = np.searchsorted(self._distinct, hashes[maybe])
            place[place == len(self._distinct)] = 0
            maybe, place = (each[self._distinct[place] == hashes[maybe]] for each in (maybe, place))
            ends = np.cumsum(runs)
            texts_of = np.searchsorted(ends, maybe, side="right")
            firsts = maybe - (ends - runs)[texts_of]
            rows = self.index.rows[self._first[place]]
            found.extend(_joined(texts_of, firsts, rows, np.minimum(width, counts[texts_of])))
        return sorted(set(found), key=lambda hit: (hit.text, hit.first, hit.width))


def _joined(texts: Ints, firsts: Ints, rows: NDArray[np.uint32], widths: Ints) -> Iterable[Hit]:
    """Runs of one text and one row that begin one word after the other, as one hit."""
    apart = np.ones(len(texts), dtype=np.bool_)
    apart[1:] = (texts[1:] != texts[:-1]) | (rows[1:] != rows[:-1]) | (firsts[1:] != firsts[:-1] + 1)
    begins = np.flatnonzero(apart)
    runs = np.diff(np.append(begins, len(texts)))
    spans = widths[begins] + runs - 1
    return map(Hit, *(each.tolist() for each in (texts[begins], firsts[begins], spans, rows[begins], runs)))


def build_index(
    rows: Iterable[tuple[str, Sequence[str]]], *, ngram: int = NGRAM, shortest: int = SHORTEST, common: int = COMMON
) -> Index:
    """The index of rows (name, passages)."""
    names: list[str] = []
    hashes: list[Hashes] = []
    owners: list[NDArray[np.uint32]] = []
    widths: set[int] = {ngram}
    too_short = 0
    for group in _groups(rows):
        texts = [text for _, passages in group for text in passages]
        numbers = [len(names) + number for number, (_, passages) in enumerate(group) for _ in passages]
        names.extend(name for name, _ in group)
        words, counts = word_hashes(texts)
        runs, run_counts = shingle_hashes(words, counts, ngram)
        long_enough = counts >= min(shortest, ngram)
        too_short += int((~long_enough).sum())
        widths.update(np.unique(counts[long_enough & (counts >= SHORTEST_INSIDE) & (counts < ngram)]).tolist())
        hashes.append(runs[np.repeat(long_enough, run_counts)])
        owners.append(np.repeat(np.array(numbers, dtype=np.uint32), run_counts * long_enough))
    none = np.zeros(0, dtype=np.uint64)
    found, whose = np.concatenate([none, *hashes]), np.concatenate([none.astype(np.uint32), *owners])
    template = _common(found, whose, common)
    beside = template.copy()
    for step in range(1, ngram // 2 + 1):  # runs that are for the larger part in the template are no evidence either
        same = whose[step:] == whose[:-step]
        beside[step:] |= template[:-step] & same
        beside[:-step] |= template[step:] & same
    left_out = len(np.unique(found[beside]))
    found, whose = found[~beside], whose[~beside]
    order = np.lexsort((whose, found))
    found, whose = found[order], whose[order]
    fresh = np.ones(len(found), dtype=np.bool_)
    fresh[1:] = (found[1:] != found[:-1]) | (whose[1:] != whose[:-1])
    found, whose = found[fresh], whose[fresh]
    return Index(
        hashes=found,
        rows=whose,
        names=names,
        totals=np.bincount(whose, minlength=len(names)).astype(np.int64),
        widths=tuple(sorted(widths)),
        ngram=ngram,
        too_short=too_short,
        common=left_out,
    )


def _common(hashes: Hashes, rows: NDArray[np.uint32], most: int) -> NDArray[np.bool_]:
    """For each run whether more than `most` rows have it."""
    distinct, inverse = np.unique(hashes, return_inverse=True)
    pairs = np.unique(np.stack([inverse.astype(np.int64), rows.astype(np.int64)]), axis=1)
    return np.asarray((np.bincount(pairs[0], minlength=len(distinct)) > most)[inverse])


def excerpt(text: str, hits: Sequence[Hit]) -> str:
    """What the hits, all in this text, have found: the longest stretch of them."""
    places = word_places(text)
    spans = stretches(hits)
    first, last = max(spans, key=lambda span: span[1] - span[0])
    start, end = int(places[first, 0]), int(places[last - 1, 1])
    shown = text[start:end]
    return shown if len(shown) <= _EXCERPT else f"{shown[:_EXCERPT]}…"


def stretches(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    """Words of one text covered by hits: (first, one past the last) of each stretch, in order."""
    found: list[tuple[int, int]] = []
    for hit in sorted(hits, key=lambda hit: hit.first):
        end = hit.first + hit.width
        if found and hit.first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((hit.first, end))
    return found


def _groups(rows: Iterable[tuple[str, Sequence[str]]]) -> Iterable[list[tuple[str, Sequence[str]]]]:
    held: list[tuple[str, Sequence[str]]] = []
    for row in rows:
        held.append(row)
        if len(held) == _TOGETHER:
            yield held
            held = []
    if held:
        yield held
