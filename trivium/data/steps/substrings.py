"""Passages that occur several times in the corpus are cut out, however the documents around them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from trivium.artifacts.writer import write_plain
from trivium.config import StrictModel
from trivium.data.dedup.keeping import roster
from trivium.data.dedup.repeats import repeated, report, spans
from trivium.data.dedup.words import shingle_hashes, word_hashes, word_places
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Dropped, Result

_TOGETHER = 64
_EXCERPT = 200


class Substrings(CorpusStep):
    """Exact substrings as in Lee et al. (2022), "Deduplicating Training Data Makes Language Models Better".

    A passage of at least n words occurs twice just if one of its runs of n words does; so every run of every document
    is hashed (64 bits, and no sampling), and the hashes are sorted in slices. It finds what a suffix array would find.
    The first occurrence stays, one in held-out data before all others. Case and punctuation do not count.

    Takes 8 bytes of disk a word and one byte of memory, besides a bounded amount for sorting.
    """

    class Config(StrictModel):
        """Settings of `substrings`."""

        words: int = Field(50, ge=5, le=1000)
        """Length of the shortest passage that is cut; Lee et al. use 50 tokens."""
        action: Literal["cut", "drop"] = "cut"
        """Cut the passages out, or leave out documents that consist of them."""
        most_repeated: float = Field(0.8, ge=0, le=1)
        """Documents with a larger share of words in such passages are left out as a whole."""
        megabytes: int = Field(512, ge=16)
        """Memory for sorting."""

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        hashes, counts = [], []
        for start in range(0, len(documents), _TOGETHER):
            words, sizes = word_hashes([document.text for document in documents[start : start + _TOGETHER]])
            runs, number = shingle_hashes(words, sizes, self.config.words)
            enough = sizes >= self.config.words
            hashes.append(runs[np.repeat(enough, number)].astype("<u8").tobytes())
            counts.append((number * enough).astype("<i8").tobytes())
        return {"runs": b"".join(hashes), "runs_counts": b"".join(counts), **roster(documents, keep="first")}

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        marks, frequent = repeated(sketches, "runs", megabytes=self.config.megabytes)
        write_plain(folder / "substrings.jsonl", report(frequent, sketches, "runs_counts"))
        counts = [np.fromfile(sketch["runs_counts"], dtype="<i8") for sketch in sketches]
        return [
            [[document, found] for document, found in spans(mark, count, self.config.words)]
            for mark, count in zip(marks, counts, strict=True)
        ]

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        results: list[Result] = list(documents)
        for position, ranges in decision:
            results[position] = self._without(documents[position], ranges)
        return results

    def _without(self, document: Document, ranges: Sequence[tuple[int, int]]) -> Result:
        text = document.text
        places = word_places(text)
        share = sum(end - first for first, end in ranges) / len(places)
        edges = [0, *(int(place) for a, b in ranges for place in (places[a, 0], places[b - 1, 1])), len(text)]
        pieces = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        if share > self.config.most_repeated or not any(map(str.strip, pieces)):
            excerpt = text[edges[1] : min(edges[2], edges[1] + _EXCERPT)]
            return Dropped("repeated passages", f"{share:.0%} of the words, such as: {excerpt}")
        if self.config.action == "drop":
            return document
        return replace(document, text="".join(pieces).strip())
