"""Paragraphs (or lines) that other documents have too are cut out: menus, footers, licences, syndicated text."""

from __future__ import annotations

import re
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
from trivium.data.dedup.words import folded, text_hash
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Dropped, Result

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SPACE = re.compile(r"\s+")
_EXCERPT = 200


class Paragraphs(CorpusStep):
    """Of paragraphs equal up to case and white space the first ones stay, those of held-out data before others.

    Takes 8 bytes of disk a paragraph and one byte of memory, besides a bounded amount for sorting.
    """

    class Config(StrictModel):
        """Settings of `paragraphs`."""

        unit: Literal["paragraph", "line"] = "paragraph"
        """What is compared: text between blank lines, or every line."""
        least_characters: int = Field(50, ge=1)
        """Shorter ones are never cut."""
        copies: int = Field(1, ge=1)
        """How many occurrences of each stay."""
        action: Literal["cut", "drop"] = "cut"
        """Cut them out, or leave out documents that consist of them."""
        most_repeated: float = Field(0.5, ge=0, le=1)
        """Documents with a larger share of characters in such paragraphs are left out as a whole."""
        megabytes: int = Field(512, ge=16)
        """Memory for sorting."""

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        hashes: list[bytes] = []
        counts: list[int] = []
        for document in documents:
            units = [unit for unit, counts_here in self._units(document.text) if counts_here]
            hashes.extend(text_hash(_SPACE.sub(" ", folded(unit)).strip())[:8] for unit in units)
            counts.append(len(units))
        return {
            "units": b"".join(hashes),
            "units_counts": np.array(counts, dtype="<i8").tobytes(),
            **roster(documents, keep="first"),
        }

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        marks, frequent = repeated(sketches, "units", copies=self.config.copies, megabytes=self.config.megabytes)
        counts = [np.fromfile(sketch["units_counts"], dtype="<i8") for sketch in sketches]
        write_plain(folder / "paragraphs.jsonl", report(frequent, sketches, "units_counts"))
        return [
            [[document, found] for document, found in spans(mark, count, 1)]
            for mark, count in zip(marks, counts, strict=True)
        ]

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        results: list[Result] = list(documents)
        for position, ranges in decision:
            cut = {number for first, end in ranges for number in range(first, end)}
            results[position] = self._without(documents[position], cut)
        return results

    def _units(self, text: str) -> list[tuple[str, bool]]:
        """Each paragraph, and whether it is long enough to count."""
        units = text.split("\n") if self.config.unit == "line" else _BLANK_LINES.split(text)
        return [(unit, len(unit.strip()) >= self.config.least_characters) for unit in units]

    def _without(self, document: Document, cut: set[int]) -> Result:
        kept: list[str] = []
        gone: list[str] = []
        number = 0
        for unit, counts in self._units(document.text):
            (gone if counts and number in cut else kept).append(unit)
            number += counts
        share = sum(map(len, gone)) / len(document.text)
        excerpt = gone[0] if len(gone[0]) <= _EXCERPT else f"{gone[0][:_EXCERPT]}…"
        text = ("\n" if self.config.unit == "line" else "\n\n").join(kept).strip("\n")
        if share > self.config.most_repeated or not text.strip():
            return Dropped("repeated paragraphs", f"{share:.0%} of the characters, such as: {excerpt}")
        return document if self.config.action == "drop" else replace(document, text=text)
