"""The rules of C4 (Raffel et al. 2020): whole sentences on long enough lines, no placeholder text, no code.

Lines without a closing mark, with too few words or a word too long, or about JavaScript, cookies and terms of use are
taken out; what is left must hold enough sentences. The numbers are those of the paper (5 sentences, 3 words a line);
the code of TensorFlow Datasets has 3 and 5. The list of bad words of the paper is not part of Trivium: name a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.filters.words import count_sentences, split_sentences
from trivium.data.step import Dropped, Result, Step
from trivium.errors import DataError

_CLOSING = (".", "?", "!", '"', "'")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_WITHOUT_SPACES = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")


class C4(Step):
    """See the file's docstring."""

    class Config(StrictModel):
        """Settings of `c4`."""

        unit: Literal["line", "sentence"] = "line"
        """What is looked at and taken out: lines, as in the paper, or sentences (`sentence`)."""
        closing_mark: bool = True
        """Take out lines that do not end with . ? ! or a quotation mark, or end with an ellipsis."""
        least_words_per_line: int = Field(3, ge=0)
        """Take out lines with fewer words."""
        longest_word: int | None = Field(1000, ge=1)
        """Take out lines with a longer word, in characters."""
        least_sentences: int = Field(5, ge=0)
        """Leave out documents with fewer sentences in the lines that stay."""
        lorem_ipsum: bool = True
        """Leave out documents with the placeholder text `lorem ipsum`."""
        curly_brackets: bool = True
        """Leave out documents with a {, which are mostly code."""
        javascript: bool = True
        """Take out lines that mention JavaScript."""
        policy: bool = True
        """Take out lines about terms of use, privacy policies and cookies."""
        citations: bool = True
        """Remove the citation marks of Wikipedia: [1], [edit], [citation needed]."""
        bad_words: Path | None = None
        """A file with one word or phrase a line; documents that hold one are left out."""
        keep_bad_words: float = Field(0.0, ge=0, le=1)
        """Share of these documents that is kept all the same."""

    def parents(self) -> Sequence[Path]:
        return [self.config.bad_words] if self.config.bad_words else []

    def apply(self, document: Document) -> Result:
        text, lowered = document.text, document.text.lower()
        unwanted = self._unwanted(document, lowered)
        if unwanted is not None:
            return unwanted
        lines = text.splitlines() if self.config.unit == "line" else split_sentences(text)
        kept = self._kept(lines, lowered)
        config = self.config
        if config.lorem_ipsum and (found := _first_with("lorem ipsum", kept, lowered)):
            return Dropped("lorem ipsum", found)
        if config.javascript:
            kept = _without(("javascript",), kept, lowered)
        if config.curly_brackets and (found := _first_with("{", kept, lowered)):
            return Dropped("curly bracket", found)
        if config.policy:
            kept = _without(POLICY, kept, lowered)
        sentences = self._sentences(kept)
        if sentences < config.least_sentences:
            evidence = f"{sentences} in the {len(kept)} of {len(lines)} {config.unit}s that stay"
            return Dropped("too few sentences", f"{evidence}, at least {config.least_sentences}")
        if not kept:
            return Dropped("empty text")
        return replace(document, text=("\n" if config.unit == "line" else " ").join(kept).strip())

    def _unwanted(self, document: Document, lowered: str) -> Dropped | None:
        """A bad word, unless the document is one of those that are kept all the same."""
        if self.config.bad_words is None:
            return None
        found = self._bad_words.search(lowered)
        if found is None:
            return None
        digest = hashlib.sha256(f"c4 bad words {self.seed} {document.id}".encode()).digest()
        if int.from_bytes(digest[:8], "little") < self.config.keep_bad_words * 2**64:
            return None
        return Dropped("bad word", _around(lowered, found.group().strip()))

    def _kept(self, lines: Sequence[str], lowered: str) -> list[str]:
        """The lines that read like text, without marks of citations."""
        config = self.config
        citations = config.citations and "[" in lowered
        kept = []
        for whole in lines:
            line = whole.strip()
            if not line:
                continue
            words = line.split(None, config.least_words_per_line)  # no more than needed to know
            if config.longest_word is not None and _longest_word(line, config.longest_word) > config.longest_word:
                continue
            if citations:
                line = _CITATION.sub("", line)
            if config.closing_mark and (not line.endswith(_CLOSING) or line.endswith("...")):
                continue
            if len(words) >= config.least_words_per_line:
                kept.append(line)
        return kept

    def _sentences(self, lines: Sequence[str]) -> int:
        """How many sentences the lines hold; counted no further than needed."""
        enough = self.config.least_sentences
        if self.config.unit == "sentence" or len(lines) >= enough:
            return len(lines)  # each line holds one at least
        return sum(count_sentences(line, enough) for line in lines)

    @cached_property
    def _bad_words(self) -> re.Pattern[str]:
        path = self.config.bad_words
        try:
            words = [word for line in path.read_text(encoding="utf-8").splitlines() if (word := line.strip().lower())]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the list of bad words cannot be read", where=path, value=str(error), fix="one word a line, in UTF-8"
            ) from error
        if not words:
            raise DataError("the list of bad words is empty", where=path, fix="write one word a line")
        inside = [re.escape(word) for word in words if _WITHOUT_SPACES.search(word)]
        apart = [re.escape(word) for word in words if not _WITHOUT_SPACES.search(word)]
        parts = [*inside, *([rf"(?:\W|^)(?:{'|'.join(apart)})(?=\W|$)"] if apart else [])]
        return re.compile("|".join(parts))


def _longest_word(line: str, limit: int) -> int:
    """Characters of the longest word, if the line is long enough to have one beyond the limit."""
    return max(map(len, line.split())) if len(line) > limit else 0


def _first_with(phrase: str, lines: Sequence[str], lowered: str) -> str | None:
    """An excerpt of the first line that holds a phrase; `lowered` is the text the lines are from."""
    line = next((line for line in lines if phrase in line.lower()), None) if phrase in lowered else None
    return None if line is None else _around(line, phrase)


def _without(phrases: Sequence[str], lines: list[str], lowered: str) -> list[str]:
    """The lines that hold none of the phrases."""
    present = [phrase for phrase in phrases if phrase in lowered]
    return [line for line in lines if not any(phrase in line.lower() for phrase in present)] if present else lines


def _around(text: str, found: str) -> str:
    """An excerpt with what was found."""
    at = text.lower().find(found)
    return " ".join(text[max(0, at - 30) : at + len(found) + 30].split())
