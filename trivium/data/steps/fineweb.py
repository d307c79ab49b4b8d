"""FineWeb's own rules (Penedo et al. 2024): lines that end in punctuation, short lines, repeated lines, lists.

The defaults are those of datatrove, with which FineWeb was made. Its paper states 0.1 for the characters in repeated
lines where the code has 0.01.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.words import TERMINAL, WordKind, lines_of, ratio_of, repeats, split_words
from trivium.data.step import Dropped, Result, Step


class FineWeb(Step):
    """See the file's docstring; a limit that is null is not looked at."""

    class Config(StrictModel):
        """Settings of `fineweb`."""

        least_punctuated_lines: float | None = Field(0.12, ge=0, le=1)
        """Smallest share of lines that end with a mark that ends a sentence."""
        none_punctuated: bool = False
        """Keep documents in which no line at all ends so (poems, scripts without such marks)."""
        most_short_lines: float | None = Field(0.67, ge=0, le=1)
        """Largest share of short lines."""
        short_line: int = Field(30, ge=1)
        """Characters up to which a line is short."""
        repeated_line_characters: float | None = Field(0.01, ge=0, le=1)
        """Largest share of characters in lines that occurred before in the document."""
        most_lines_per_word: float | None = Field(0.3, ge=0)
        """Most line breaks for each word; lists have more."""
        words: WordKind = "whitespace"
        """`whitespace`, or `marks`: punctuation marks are words of their own, as datatrove counts."""

    def apply(self, document: Document) -> Result:
        broken = next(self._broken(document.text), None)
        return document if broken is None else Dropped(*broken)

    def _broken(self, text: str) -> Iterator[tuple[str, str]]:
        """(rule, evidence) of each rule that the text breaks."""
        config = self.config
        lines = lines_of(text)
        if not lines:
            yield "empty text", ""
            return
        if config.least_punctuated_lines is not None:
            share = sum(line[-1] in TERMINAL for line in lines) / len(lines)
            if share < config.least_punctuated_lines and not (share == 0 and config.none_punctuated):
                evidence = ratio_of(share, "of the lines", "at least", config.least_punctuated_lines)
                yield "too few lines that end with punctuation", evidence
        if config.most_short_lines is not None:
            share = sum(len(line) <= config.short_line for line in lines) / len(lines)
            if share > config.most_short_lines:
                yield "too many short lines", ratio_of(share, "of the lines", "at most", config.most_short_lines)
        breaks = text.count("\n")
        if config.repeated_line_characters is not None:
            share = repeats(lines)[1] / (len(text) - breaks)
            if share > config.repeated_line_characters:
                evidence = ratio_of(share, "of the characters", "at most", config.repeated_line_characters)
                yield "characters in repeated lines", evidence
        if config.most_lines_per_word is not None and breaks:
            share = breaks / len(split_words(text, config.words))
            if share > config.most_lines_per_word:
                yield "too many line breaks", ratio_of(share, "for each word", "at most", config.most_lines_per_word)
