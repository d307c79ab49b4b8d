"""What a recogniser reports: where personal data stand, of which kind, and their plain form."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of personal data.

    kind:  "email", "us_ssn", ...
    start, end: its characters in the text.
    value: its plain form: the same for all spellings of the same thing. Never written anywhere.
    rank:  where two findings overlap the lower rank wins, then the longer one.
    """

    kind: str
    start: int
    end: int
    value: str
    rank: int = 5


class Recogniser(Protocol):
    """Finds the data of one kind, or of several that look alike."""

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize, /) -> Iterable[Finding]:
        """The findings between two places, in any order; they may overlap those of others. Linear in the text."""


_DIGIT_RUNS = re.compile(r"[0-9](?:[^0-9]{0,100}[0-9])*+")
_BEFORE, _AFTER = 90, 50


def around_digits(text: str) -> Iterator[tuple[int, int]]:
    """Stretches with every digit and what surrounds it: most of a book is outside of them."""
    return stretches(_DIGIT_RUNS.finditer(text), before=_BEFORE, after=_AFTER, end=len(text))


def stretches(runs: Iterable[re.Match[str]], *, before: int, after: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs with what stands `before` and `after` them, up to `end`; what would overlap is one stretch."""
    first, last = 0, -1
    for run in runs:
        if run.start() - before > last:
            if last >= 0:
                yield first, last
            first = max(0, run.start() - before)
        last = min(end, run.end() + after)
    if last >= 0:
        yield first, last


def without_overlaps(findings: Iterable[Finding], length: int) -> list[Finding]:
    """The findings in order of the text, of overlapping ones the most certain.

    length: of the text. Linear in it and in the findings.
    """
    ordered = sorted(findings, key=lambda one: (one.rank, one.start - one.end, one.start, one.kind))
    if not ordered:
        return []
    taken = bytearray(length)
    kept = []
    for one in ordered:
        if taken.find(1, one.start, one.end) < 0:
            taken[one.start : one.end] = b"\x01" * (one.end - one.start)
            kept.append(one)
    return sorted(kept, key=lambda one: one.start)


def digits_of(text: str) -> str:
    """Only the decimal digits, in ASCII."""
    return "".join(character for character in text if character in "0123456789")


_LETTER = re.compile(r"[^\W\d_]")
_DIGIT = re.compile(r"\d")


def masked(value: str, limit: int = 40) -> str:
    """The shape of a value: letters become x, digits 9; of a long one only the beginning."""
    shape = _LETTER.sub("x", _DIGIT.sub("9", value))
    return shape if len(shape) <= limit else f"{shape[:limit]}…"


def near(text: str, start: int, end: int, words: re.Pattern[str], *, before: int = 60, after: int = 20) -> bool:
    """Whether one of `words` stands shortly before or after the place."""
    return (
        words.search(text, max(0, start - before), start) is not None
        or words.search(text, end, end + after) is not None
    )


def any_word(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern of whole words, in either case; a space stands for any white space or hyphen."""
    forms = sorted({r"[\s_-]{1,2}".join(map(re.escape, word.split())) for word in words}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", re.IGNORECASE)
