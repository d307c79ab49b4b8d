"""Topics of documents nobody labelled: TF-IDF of the frequent words of a sample, in clusters (spherical k-means).

The sample is chosen by the hash of the id, so that it is the same in any order of reading.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trivium.data.documents import Document
from trivium.data.hashes import hash64

SAMPLE = 4000
"""Documents the topics are learnt from."""
_VOCABULARY, _WORDS_OF_A_TEXT, _ROUNDS = 2000, 400, 12
_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMONEST = 0.5
"""Words of more than this share of the documents say nothing about a topic."""


class Topics:
    """Clusters of a corpus, named by their most telling words."""

    def __init__(self, documents: Iterable[Document], *, count: int, seed: int = 0) -> None:
        texts = [words for _, _, words in _sample(documents)]
        frequency = Counter(word for words in texts for word in set(words))
        kept = [(number, word) for word, number in frequency.items() if number <= _COMMONEST * len(texts)]
        chosen = sorted(kept, key=lambda pair: (-pair[0], pair[1]))[:_VOCABULARY]
        self._place = {word: at for at, (_, word) in enumerate(chosen)}
        numbers = np.array([number for number, _ in chosen], dtype=np.float32)
        self._weight = np.log((1 + len(texts)) / (1 + numbers))
        rows = np.array([self._row(words) for words in texts], dtype=np.float32).reshape(len(texts), len(chosen))
        self._centres = _cluster(rows, min(count, len(texts)), seed) if rows.size else np.zeros((0, 0), np.float32)
        words = [word for _, word in chosen]
        self.names = [" ".join(words[at] for at in np.argsort(-centre, kind="stable")[:4]) for centre in self._centres]

    def of(self, text: str) -> str:
        """The name of the nearest cluster."""
        if not self.names:
            return "none"
        row = self._row(_words(text))
        return self.names[int(np.argmax(self._centres @ row))] if row.any() else "none of the frequent words"

    def _row(self, words: list[str]) -> NDArray[np.float32]:
        row = np.zeros(len(self._place), dtype=np.float32)
        for word, number in Counter(words).items():
            at = self._place.get(word)
            if at is not None:
                row[at] = (1 + np.log(number)) * self._weight[at]
        length = float(np.linalg.norm(row))
        return row / length if length else row


def _sample(documents: Iterable[Document]) -> list[tuple[int, str, list[str]]]:
    """The documents with the smallest hashes, in order of these."""
    held: list[tuple[int, str, list[str]]] = []
    for document in documents:
        order = -hash64(document.id)
        if len(held) < SAMPLE:
            heapq.heappush(held, (order, document.id, _words(document.text)))
        elif order > held[0][0]:
            heapq.heapreplace(held, (order, document.id, _words(document.text)))
    return sorted(held, reverse=True)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text[: 20 * _WORDS_OF_A_TEXT])[:_WORDS_OF_A_TEXT]]


def _cluster(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """[count, words] centres; the first are spread out (k-means++)."""
    source = np.random.default_rng(seed)
    centres = rows[:1]
    while len(centres) < count:
        distance = np.clip(1 - (rows @ centres.T).max(axis=1), 0, None).astype(np.float64) ** 2
        if not distance.any():
            break
        centres = np.vstack([centres, rows[source.choice(len(rows), p=distance / distance.sum())]])
    for _ in range(_ROUNDS):
        nearest = (rows @ centres.T).argmax(axis=1)
        sums = np.array([rows[nearest == at].sum(axis=0) for at in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres).astype(np.float32)
    return centres
