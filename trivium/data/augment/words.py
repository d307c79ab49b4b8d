"""Texts as words that may be changed and everything else, which may not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trivium.errors import DataError

_TOKEN = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")  # noqa: RUF001
_GUARDED = re.compile(
    r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.-]+|[@#]\w+|`[^`\n]*`|<[^<>\n]{1,200}>|\{[^{}\n]{0,200}\}|\S*\d\S*"
)
"""Addresses, handles, code, tags, placeholders, and whatever has a digit in it."""


@dataclass(frozen=True)
class Word:
    """A word of a text: the characters start..end-1."""

    text: str
    start: int
    end: int
    first: bool
    """Whether a sentence begins with it."""


class Protected:
    """Terms that stay as they are: matched as whole words, in any case."""

    def __init__(self, terms: Sequence[str]) -> None:
        known = sorted({term.strip() for term in terms if term.strip()}, key=len, reverse=True)
        choices = "|".join(r"\s+".join(map(re.escape, term.split())) for term in known)
        self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE) if known else None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of everything that must not be changed, in order."""
        found = [match.span() for match in _GUARDED.finditer(text)]
        if self._pattern is not None:
            found += [match.span() for match in self._pattern.finditer(text)]
        return sorted(found)


def protected_terms(given: Sequence[str]) -> Protected:
    """Terms, of which those that name a file (`terms.txt`) stand for its lines."""
    terms: list[str] = []
    for term in given:
        if not term.endswith((".txt", ".list")):
            terms.append(term)
            continue
        try:
            terms += Path(term).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the list of protected terms cannot be read", where=term, value=str(error), fix="one term a line, UTF-8"
            ) from None
    return Protected(terms)


def words_of(text: str, protected: Protected) -> list[Word]:
    """The words that may be changed, in order."""
    spans = protected.spans(text)
    found: list[Word] = []
    at = 0
    for match in _TOKEN.finditer(text):
        while at < len(spans) and spans[at][1] <= match.start():
            at += 1
        if at < len(spans) and spans[at][0] < match.end():
            continue
        before = text[: match.start()].rstrip("\"'“‘(*_ \t")[-1:]  # noqa: RUF001
        found.append(Word(match.group(), *match.span(), first=before in ("", ".", "!", "?", "\n", ":")))
    return found


def rewritten(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The text with (start, end, new text) put in; changes must not overlap."""
    pieces: list[str] = []
    at = 0
    for start, end, new in sorted(changes):
        pieces += [text[at:start], new]
        at = end
    return "".join([*pieces, text[at:]])


def cased_like(word: str, model: str) -> str:
    """`word` with the capitals of `model`: LIKE, Like or like."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def is_plain(word: Word) -> bool:
    """Whether a word is written like, Like (at the beginning of a sentence only: elsewhere it is a name) or LIKE."""
    text = word.text
    return text.isalpha() and (text.islower() or (text.istitle() and word.first) or (len(text) > 3 and text.isupper()))
