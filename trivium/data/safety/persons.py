"""Dates of birth, numbers of medical records, and names of persons."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.data.safety.findings import Finding
from trivium.data.safety.phrases import Phrases
from trivium.errors import ConfigError, DataError

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?|januar|februar|märz|mai|juni|juli|oktober|dezember|janvier|février|mars|avril|juin|"
    r"juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|"
    r"octubre|noviembre|diciembre)\.?"
)
_BORN = re.compile(
    r"(?<!\w)(?:date[ _-]of[ _-]birth|birth[ _-]?date|birthday|d\.?o\.?b\.?|born|geboren|geb\.|geburtsdatum|"
    r"née?|date de naissance|nacid[oa]|fecha de nacimiento|nat[oa]|data di nascita)"
    r"(?:[\s:=\"'.(\u2013-]{1,6}(?:is|was|on|am|le|el|il)?[\s:]{0,2}(?:the )?)"
    r"(?P<date>\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d\d)"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.|er|º)?(?: of| de)? {_MONTH},?(?: de)? \d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})"
    r"(?![\w])",
    re.IGNORECASE,
)
_YEAR = re.compile(r"\d{4}")


class BirthDates:
    """Dates after "born", "date of birth" and their like, of people who may be alive.

    after: years before this one are history.
    """

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """The date alone, without the word before it."""
        for match in _BORN.finditer(text, start, end):
            year = _YEAR.search(match["date"])
            if year is None or int(year[0]) >= self.after:
                yield Finding("birth_date", *match.span("date"), " ".join(match["date"].lower().split()), 3)


_RECORD = re.compile(
    r"(?<!\w)(?:mrn|medical record|patient(?: record| file)?|hospital|chart|case file|krankenakte|patienten|fall)"
    r"[\s-]{0,2}(?:number|nummer|no\.?|nr\.?|id|identifier|#)?[\s:#.=]{0,4}"
    r"(?P<number>(?=[A-Z0-9-]*\d{4})[A-Z]{0,4}-?\d[\d-]{3,12}\d)(?![\w])",
    re.IGNORECASE,
)


class Records:
    """Numbers of medical records: after a word that says so, or wherever the user's pattern stands."""

    def __init__(self, pattern: str | None = None) -> None:
        self.own = None if pattern is None else compiled("medical_record", pattern)

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """The number alone; of a user's pattern its group `value`, or all of it."""
        for match in _RECORD.finditer(text, start, end):
            if _named(match):
                yield Finding("medical_record", *match.span("number"), match["number"].upper(), 4)
        if self.own is not None:
            yield from _of_pattern("medical_record", self.own, text, start, end)


def _named(match: re.Match[str]) -> bool:
    """ "hospital 2020-21" is no record: a plain word needs "number" or a sign behind it."""
    before = match[0][: match.start("number") - match.start()].lower()
    return (
        before.startswith(("mrn", "medical record", "krankenakte"))
        or re.search(r"num|no|nr|id|#|:", before) is not None
    )


class Patterns:
    """The user's own patterns, by kind."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.patterns = {kind: compiled(kind, pattern) for kind, pattern in patterns.items()}

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """The group `value` of a match, or all of it."""
        for kind, pattern in self.patterns.items():
            yield from _of_pattern(kind, pattern, text, rank=1)


def _of_pattern(
    kind: str, pattern: re.Pattern[str], text: str, start: int = 0, end: int = sys.maxsize, *, rank: int = 4
) -> Iterator[Finding]:
    group = "value" if "value" in pattern.groupindex else 0
    for match in pattern.finditer(text, start, end):
        if match[group]:
            yield Finding(kind, *match.span(group), match[group], rank)


def compiled(kind: str, pattern: str) -> re.Pattern[str]:
    """A user's pattern; ConfigError if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"the pattern cannot be read: {error}", where=kind, value=pattern, fix="write a Python regular expression"
        ) from error


class NameList:
    """Names of a file with one name a line, of one word or several; written as they are, or in capitals."""

    def __init__(self, path: str | Path) -> None:
        file = Path(path).expanduser()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the list of names cannot be read", where=file, fix="write one name a line, in UTF-8"
            ) from error
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        self.phrases = Phrases({"name": [form for name in names for form in (name, name.upper())]}, fold_case=False)

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """The longest name that begins at each word; one look-up for each word."""
        for _, name, begin, stop in self.phrases.find(text[start:end] if start else text):
            yield Finding("name", start + begin, start + stop, name.casefold(), 6)


_TOKEN = re.compile(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]")
_WORDS_AT_ONCE = 128


class NameModel:
    """Names that a model for tagging words finds (recipes/ner.yaml trains one).

    labels: what is a person in its tags (PER, B-PER, PERSON).
    """

    def __init__(self, folder: str | Path, labels: Sequence[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.labels = frozenset(labels)
        self._model: Any = None

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """Reads 128 words at a time; a name that runs over words is one name."""
        import trivium

        self._model = self._model or trivium.load(self.folder)
        words = list(_TOKEN.finditer(text))
        tags: list[str] = []
        pieces = [words[at : at + _WORDS_AT_ONCE] for at in range(0, len(words), _WORDS_AT_ONCE)]
        for piece in self._model.tag([[word[0] for word in piece] for piece in pieces]):
            tags += piece
        at = 0
        while at < len(words):
            begin = at
            while at < len(words) and self._continues(tags[at], first=at == begin):
                at += 1
            if at > begin:
                start, end = words[begin].start(), words[at - 1].end()
                yield Finding("name", start, end, " ".join(text[start:end].casefold().split()), 6)
            at = max(at, begin + 1)

    def _continues(self, tag: str, *, first: bool) -> bool:
        mark, _, kind = tag.rpartition("-")
        return kind in self.labels and (first or mark not in ("B", "S", "U"))
