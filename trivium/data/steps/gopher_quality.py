"""Gopher's rules for running text (Rae et al. 2021, section A1.1): length, words, symbols, bullets, stop words.

The defaults are those of the paper; they are made for languages that put spaces between words, and the stop words for
English.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.words import WordKind, ratio_of, split_words
from trivium.data.step import Dropped, Result, Step

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherQuality(Step):
    """See the file's docstring; a limit that is null is not looked at."""

    class Config(StrictModel):
        """Settings of `gopher_quality`."""

        least_words: int | None = Field(50, ge=1)
        """Fewest words, those without a letter or digit not counted."""
        most_words: int | None = Field(100_000, ge=1)
        """Most words, counted in the same way."""
        least_mean_word_length: float | None = Field(3, ge=0)
        """Smallest mean length of these words, in characters."""
        most_mean_word_length: float | None = Field(10, ge=0)
        """Largest mean length of these words, in characters."""
        most_symbols_per_word: float | None = Field(0.1, ge=0)
        """Most hash signs, and most ellipses (... or \u2026), for each word."""
        most_bullet_lines: float | None = Field(0.9, ge=0, le=1)
        """Largest share of lines that begin with a bullet or a hyphen."""
        most_ellipsis_lines: float | None = Field(0.3, ge=0, le=1)
        """Largest share of lines that end with an ellipsis."""
        least_alphabetic_words: float | None = Field(0.8, ge=0, le=1)
        """Smallest share of words with at least one letter."""
        least_stop_words: int | None = Field(2, ge=0)
        """Fewest different stop words."""
        stop_words: list[str] = Field(list(STOP_WORDS))
        """The stop words, as they are written in the text."""
        words: WordKind = "whitespace"
        """`whitespace`, or `marks`: punctuation marks are words of their own, as datatrove counts."""

    def __init__(self, config: Config, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._stop_words = frozenset(config.stop_words)

    def apply(self, document: Document) -> Result:
        broken = next(self._broken(document.text), None)
        return document if broken is None else Dropped(*broken)

    def _broken(self, text: str) -> Iterator[tuple[str, str]]:
        """(rule, evidence) of each rule that the text breaks."""
        words = split_words(text, self.config.words)
        if not words:
            yield "empty text", ""
            return
        odd = [word for word in words if not word.isalpha()]
        yield from self._by_words(words, odd)
        yield from self._by_symbols(text, len(words))
        config = self.config
        if config.least_alphabetic_words is not None:
            share = 1 - sum(not any(map(str.isalpha, word)) for word in odd) / len(words)
            if share < config.least_alphabetic_words:
                evidence = ratio_of(share, "of the words", "at least", config.least_alphabetic_words)
                yield "too few words with letters", evidence
        if config.least_stop_words:
            found = len(self._stop_words.intersection(words))
            if found < config.least_stop_words:
                yield "too few stop words", f"{found} different ones, at least {config.least_stop_words}"

    def _by_words(self, words: list[str], odd: list[str]) -> Iterator[tuple[str, str]]:
        """`odd`: the words that are not all letters."""
        config = self.config
        symbols = [word for word in odd if not any(map(str.isalnum, word))]
        number = len(words) - len(symbols)
        if config.least_words is not None and number < config.least_words:
            yield "too few words", f"{number} words, at least {config.least_words}"
        if config.most_words is not None and number > config.most_words:
            yield "too many words", f"{number} words, at most {config.most_words}"
        mean = (sum(map(len, words)) - sum(map(len, symbols))) / max(1, number)
        if config.least_mean_word_length is not None and mean < config.least_mean_word_length:
            yield "words too short", ratio_of(mean, "characters on average", "at least", config.least_mean_word_length)
        if config.most_mean_word_length is not None and mean > config.most_mean_word_length:
            yield "words too long", ratio_of(mean, "characters on average", "at most", config.most_mean_word_length)

    def _by_symbols(self, text: str, words: int) -> Iterator[tuple[str, str]]:
        config = self.config
        most = config.most_symbols_per_word
        if most is not None:
            if (share := text.count("#") / words) > most:
                yield "too many hash signs", ratio_of(share, "for each word", "at most", most)
            if (share := (text.count("...") + text.count("\u2026")) / words) > most:
                yield "too many ellipses", ratio_of(share, "for each word", "at most", most)
        lines = text.splitlines()
        if config.most_bullet_lines is not None and ("-" in text or "\u2022" in text):
            share = sum(line.lstrip().startswith(("\u2022", "-")) for line in lines) / len(lines)
            if share > config.most_bullet_lines:
                yield "too many bullet lines", ratio_of(share, "of the lines", "at most", config.most_bullet_lines)
        if config.most_ellipsis_lines is not None and ("..." in text or "\u2026" in text):
            share = sum(line.rstrip().endswith(("...", "\u2026")) for line in lines) / len(lines)
            if share > config.most_ellipsis_lines:
                evidence = ratio_of(share, "of the lines", "at most", config.most_ellipsis_lines)
                yield "too many lines that end with an ellipsis", evidence
