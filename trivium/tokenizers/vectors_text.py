"""Words of texts, and a corpus of word numbers on the disk that is read in pieces, in any order.

The texts are read once. Each word becomes a number when it is first met, and the numbers go to a scratch file without
a name (4 bytes a word, gone with the process), so memory holds the distinct words and one block of the corpus only.
"""

from __future__ import annotations

import re
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.writer import explained

Ints = NDArray[np.int64]

UNKNOWN = "<unk>"
"""The word that stands for all words that are too rare. No text can contain it: `<` is a word of its own."""

WORD = r"[\w\p{M}]+(?:['’][\w\p{M}]+)*|[^\w\s\p{M}]"  # noqa: RUF001
"""A word is a run of letters, digits and their marks, with apostrophes inside; other characters stand alone."""

PIECE = 1 << 13
"""Words in one piece: what is read in one go and keeps its order."""


@cache
def word_pattern() -> re.Pattern[str]:
    """`WORD` for Python, whose `\\w` has no combining marks (which many scripts write vowels with)."""
    marks = [code for code in range(sys.maxunicode) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code, before in zip(marks, [-2, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], -2], strict=True) if code != after - 1]
    ranges = "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
    halves = "\ud800-\udfff"  # half a character is no word; no file could hold it
    return re.compile(WORD.replace(r"\s\p{M}", r"\s\p{M}" + halves).replace(r"\p{M}", ranges))


def words_of(text: str, *, lowercase: bool = False) -> list[str]:
    """The words of a text, in order; white space is no word."""
    return word_pattern().findall(text.lower() if lowercase else text)


@dataclass(frozen=True)
class Vocabulary:
    """The words that get a vector, the most frequent first (words as frequent as each other: by the alphabet).

    words:  V of them; `UNKNOWN` stands where its number of occurrences puts it.
    counts: [V] how often each occurs.
    final:  [distinct words] number in `words` of each word of the corpus, -1 for those that are left out.
    """

    words: list[str]
    counts: Ints
    final: Ints


class Corpus:
    """Texts as word numbers, in the order of first occurrence; a context manager that gives the disk back."""

    def __init__(self, scratch: Path | None = None) -> None:
        """scratch: folder of the scratch file; default: the system's."""
        self._index: defaultdict[str, int] = defaultdict()
        self._index.default_factory = self._index.__len__
        self._place = Path(tempfile.gettempdir()) if scratch is None else scratch
        with explained(self._place):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=self._place, buffering=0)  # noqa: SIM115
        self._counts: Ints = np.zeros(0, dtype=np.int64)
        self.total = 0
        """Words read."""
        self.documents = 0

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def distinct(self) -> int:
        """Different words read."""
        return len(self._index)

    def read(self, texts: Iterable[str], *, lowercase: bool, progress: Callable[[int], None] | None = None) -> None:
        """Add all `texts`. The first word of each is stored as its complement, which marks where texts begin."""
        pending: list[NDArray[np.int32]] = []
        size = 0
        for text in texts:
            found = words_of(text, lowercase=lowercase)
            self.documents += 1
            if not found:
                continue
            numbers = np.fromiter(map(self._index.__getitem__, found), dtype=np.int32, count=len(found))
            numbers[0] = ~numbers[0]
            pending.append(numbers)
            size += len(numbers)
            if size >= 1 << 20:
                self._write(pending)
                pending, size = [], 0
                if progress is not None:
                    progress(self.total)
        self._write(pending)

    def _write(self, pending: list[NDArray[np.int32]]) -> None:
        numbers = np.concatenate([*pending, np.zeros(0, dtype=np.int32)])
        self._counts.resize(self.distinct, refcheck=False)
        self._counts += np.bincount(np.where(numbers < 0, ~numbers, numbers), minlength=self.distinct)
        self.total += len(numbers)
        with explained(self._place):
            self._file.write(numbers.tobytes())

    def vocabulary(self, *, min_count: int, max_words: int | None, unknown: bool) -> Vocabulary:
        """Words that occur at least `min_count` times, at most `max_words`; others are left out, or `UNKNOWN`."""
        words = list(self._index)
        frequent = [number for number in np.flatnonzero(self._counts >= min_count).tolist()]
        frequent.sort(key=lambda number: (-self._counts[number], words[number]))
        chosen = frequent if max_words is None else frequent[: max_words - unknown]
        counts = self._counts[chosen]
        rest = int(self._counts.sum() - counts.sum())
        place = int(np.searchsorted(-counts, -rest, side="right")) if unknown and rest else None
        final = np.full(len(words), -1 if place is None else place, dtype=np.int64)
        kept = [words[number] for number in chosen]
        numbers = np.arange(len(chosen))
        if place is not None:
            kept.insert(place, UNKNOWN)
            counts = np.insert(counts, place, rest)
            numbers[place:] += 1
        final[chosen] = numbers
        return Vocabulary(kept, counts, final)

    def blocks(self, order: np.random.Generator, pieces: int = 128) -> Iterator[tuple[NDArray[np.int32], Ints, int]]:
        """The whole corpus once, in blocks of `pieces` pieces in random order.

        Yields (numbers [n], segment [n], words so far): windows must not cross from one segment to another, which
        are different texts or pieces.
        """
        starts = order.permutation(-(-self.total // PIECE)) * PIECE
        done = 0
        for first in range(0, len(starts), pieces):
            read = [self._piece(int(start)) for start in starts[first : first + pieces]]
            begins = np.concatenate([_begins(piece) for piece in read])
            numbers = np.concatenate(read)
            yield np.where(numbers < 0, ~numbers, numbers), np.cumsum(begins), done
            done += len(numbers)

    def _piece(self, start: int) -> NDArray[np.int32]:
        self._file.seek(4 * start)
        return np.frombuffer(self._file.read(4 * PIECE), dtype=np.int32)


def _begins(piece: NDArray[np.int32]) -> NDArray[np.bool_]:
    begins = piece < 0
    begins[0] = True
    return begins
