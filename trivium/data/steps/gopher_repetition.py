"""Gopher's rules against text that repeats itself (Rae et al. 2021, table A1): lines, paragraphs, n-grams of words.

Limits that lower the share of characters by n-grams are read from the table of the paper; the order of the rules is
that of the table, and the first that is broken is the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.repetition import Grams, repeated_lines, repeated_paragraphs
from trivium.data.filters.words import WordKind, ratio_of, split_words
from trivium.data.step import Dropped, Result, Step

_Words = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]


class GopherRepetition(Step):
    """See the file's docstring; a limit that is null is not looked at."""

    class Config(StrictModel):
        """Settings of `gopher_repetition`."""

        repeated_paragraphs: float | None = Field(0.30, ge=0, le=1)
        """Largest share of paragraphs that occurred before in the document."""
        repeated_paragraph_characters: float | None = Field(0.20, ge=0, le=1)
        """Largest share of characters in such paragraphs."""
        repeated_lines: float | None = Field(0.30, ge=0, le=1)
        """Largest share of lines that occurred before in the document."""
        repeated_line_characters: float | None = Field(0.20, ge=0, le=1)
        """Largest share of characters in such lines."""
        top_ngrams: dict[_Words, _Share] = Field({2: 0.20, 3: 0.18, 4: 0.16})
        """For each n the largest share of characters in the most frequent n-gram of words."""
        repeated_ngrams: dict[_Words, _Share] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
        """For each n the largest share of characters in n-grams that occurred before."""
        words: WordKind = "whitespace"
        """`whitespace`, or `marks`: punctuation marks are words of their own, as datatrove counts."""

    def apply(self, document: Document) -> Result:
        broken = next(self._broken(document.text), None)
        return document if broken is None else Dropped(*broken)

    def _broken(self, text: str) -> Iterator[tuple[str, str]]:
        """(rule, evidence) of each rule that the text breaks."""
        if not text.strip():
            yield "empty text", ""
            return
        config = self.config
        limits = (
            ("paragraph", repeated_paragraphs, config.repeated_paragraphs, config.repeated_paragraph_characters),
            ("line", repeated_lines, config.repeated_lines, config.repeated_line_characters),
        )
        for unit, measure, most, most_characters in limits:
            share, characters = measure(text)
            if most is not None and share > most:
                yield f"repeated {unit}s", ratio_of(share, f"of the {unit}s", "at most", most)
            if most_characters is not None and characters > most_characters:
                yield (
                    f"characters in repeated {unit}s",
                    ratio_of(characters, "of the characters", "at most", most_characters),
                )
        grams = Grams(split_words(text, config.words), len(text))
        for n, share, limit in grams.top_shares(list(config.top_ngrams.items())):
            yield f"most frequent {n}-gram", ratio_of(share, "of the characters", "at most", limit)
        for n, share, limit in grams.repeated_shares(list(config.repeated_ngrams.items())):
            yield f"repeated {n}-grams", ratio_of(share, "of the characters", "at most", limit)
