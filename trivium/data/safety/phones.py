"""Telephone numbers: what looks like one is asked of libphonenumber (`phonenumbers`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from trivium.data.safety.findings import Finding, any_word, digits_of, near
from trivium.data.safety.packages import phonenumbers

_SIGN = r"(?:\.|[ \-/()\u00a0\u2010-\u2013]{0,3})"
_CANDIDATE = re.compile(
    rf"(?<![\w.,$€£#=-])(?:\+|00|\()?\+?\d(?:{_SIGN}\d){{6,16}}+(?!{_SIGN}\d)"
    r"(?:\s?(?:x|ext\.?)\s?\d{1,5})?(?![\w]|[.,:/]\d)"
)
"""A run of more digits than any number has is a table."""
_WORDS = (
    "phone", "phones", "telephone", "tel", "telefon", "tél", "téléphone", "teléfono", "telefono", "telefone", "mobile",
    "mobil", "cell", "cellphone", "handy", "fax", "call", "called", "calls", "text", "sms", "whatsapp", "dial", "ring",
    "contact", "reach", "hotline", "móvil", "portable", "cellulare", "rufnummer", "ph",
)  # fmt: skip
_CALLED = any_word(_WORDS)
_DATE = re.compile(
    r"(?:(?:1[5-9]|20)\d\d(?P<a>[-./ ])(?:0?[1-9]|1[0-2])(?P=a)\d{1,2}"
    r"|\d{1,2}(?P<b>[-./ ])\d{1,2}(?P=b)(?:1[5-9]|20)\d\d)"
    r"(?:\D.{0,12})?|(?:1[5-9]|20)\d\d ?[-\u2013/] ?(?:1[5-9]|20)\d\d"
)
_BRACKETS = re.compile(r"\(?\+?\d{0,4}\)?[ .-]?(?:\(\d{1,5}\))?[^()]*")
"""Brackets stand around the code of an area; "318-334 (1973)" are pages and a year."""
_FICTION = re.compile(r"\+1\d{3}55501\d\d|\+44(?:1632960|7700900|2079460|1144960|1134960|1164960|1214960)\d{3}")
"""Ranges set aside for fiction (NANPA, Ofcom); they ring nowhere."""


class Phones:
    """Numbers that are valid: with a country code anywhere, else in one of `regions`.

    A number without country code counts if it is written as numbers of the region are grouped, or a word like "phone"
    stands beside it: any ten digits are valid somewhere.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        self.regions = tuple(regions)

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """Candidates are few; each costs some 50 microseconds for each region."""
        for match in _CANDIDATE.finditer(text, start, end):
            for written in _beginnings(match[0]):
                place = match.start(), match.start() + len(written)
                found = (
                    self._number(text, *place)
                    if _BRACKETS.fullmatch(written) and not _DATE.fullmatch(written)
                    else None
                )
                if found is not None:
                    if not _FICTION.fullmatch(found):
                        yield Finding("phone", *place, found, 5)
                    break

    def _number(self, text: str, start: int, end: int) -> str | None:
        """The number in E.164, if it is one."""
        package, written = phonenumbers(), text[start:end]
        if written.startswith(("+", "(+", "00")):
            number = self._parsed(package, re.sub(r"\A\(?00", "+", written), None)
            if number is not None and package.is_valid_number(number):
                return _plain(package, number)
        called = near(text, start, end, _CALLED, before=30, after=0)
        for region in self.regions:
            number = self._parsed(package, written, region)
            if number is None or not package.is_valid_number(number):
                continue
            if called or self._usual(package, number, written, region):
                return _plain(package, number)
        return None

    @staticmethod
    def _parsed(package: Any, written: str, region: str | None) -> Any | None:
        try:
            return package.parse(written, region)
        except package.NumberParseException:
            return None

    @staticmethod
    def _usual(package: Any, number: Any, written: str, region: str) -> bool:
        """Whether the digits stand in the groups that are usual for this number, and in more than one."""
        groups = re.findall(r"\d+", written)
        if len(groups) < 3 and not (len(groups) == 2 and "(" in written):
            return False
        usual = package.format_number(number, package.PhoneNumberFormat.NATIONAL)
        return re.findall(r"\d+", usual) == groups or (digits_of(written)[:1] == "0" and len(groups) <= 4)


def _beginnings(written: str) -> Iterator[str]:
    """A candidate, and what is left without its last group or two: "212-867-5309 2 times"."""
    yield written
    for _ in range(2):
        written = re.sub(r"\D+\d+\Z", "", written)
        if len(digits_of(written)) < 7:
            return
        yield written


def _plain(package: Any, number: Any) -> str:
    return str(package.format_number(number, package.PhoneNumberFormat.E164))
