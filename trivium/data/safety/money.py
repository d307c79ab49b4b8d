"""Payment cards and bank accounts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from trivium.data.safety.findings import Finding, digits_of
from trivium.data.safety.packages import stdnum

_CARD = re.compile(r"(?<![\w.,/-])\d{4}(?:(?P<sign>[ -]?)\d{4,6}(?:(?P=sign)\d{1,5}){1,3}|\d{9,15})(?![\w-]|[.,/]\d)")
_TOGETHER = re.compile(r"(?<![\w.,/-])\d{13,19}(?![\w-]|[.,/]\d)")
_ISSUERS: tuple[tuple[str, int, int, frozenset[int]], ...] = (
    ("visa", 4, 4, frozenset({13, 16, 19})),
    ("mastercard", 51, 55, frozenset({16})),
    ("mastercard", 2221, 2720, frozenset({16})),
    ("american express", 34, 34, frozenset({15})),
    ("american express", 37, 37, frozenset({15})),
    ("discover", 6011, 6011, frozenset(range(16, 20))),
    ("discover", 644, 659, frozenset(range(16, 20))),
    ("diners club", 300, 305, frozenset({14, 16, 19})),
    ("diners club", 36, 36, frozenset({14, 16, 19})),
    ("diners club", 38, 39, frozenset({14, 16, 19})),
    ("jcb", 3528, 3589, frozenset(range(16, 20))),
    ("unionpay", 62, 62, frozenset(range(16, 20))),
    ("mir", 2200, 2204, frozenset(range(16, 20))),
    ("maestro", 5018, 5018, frozenset(range(16, 20))),
    ("maestro", 5020, 5020, frozenset(range(16, 20))),
    ("maestro", 5038, 5038, frozenset(range(16, 20))),
    ("maestro", 6304, 6304, frozenset(range(16, 20))),
    ("maestro", 6759, 6763, frozenset(range(16, 20))),
)
"""Issuer, first and last prefix, lengths (ISO/IEC 7812; the issuers' published ranges)."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    total = sum(map(int, digits[-1::-2]))
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def issuer(digits: str) -> str | None:
    """Who issues cards with such numbers; None if nobody does."""
    for name, low, high, lengths in _ISSUERS:
        if len(digits) in lengths and low <= int(digits[: len(str(low))]) <= high:
            return name
    return None


def cards(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
    """Numbers of payment cards: a range of an issuer, its length and the check digit."""
    for pattern in (_CARD, _TOGETHER):
        for match in pattern.finditer(text, start, end):
            digits = digits_of(match[0])
            if issuer(digits) and len(set(digits)) > 1 and luhn(digits):
                yield Finding("card", *match.span(), digits, 2)


_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30}")


def ibans(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
    """Bank accounts: the country's length and structure, and both check digits."""
    module, at = None, start
    while (match := _IBAN.search(text, at, end)) is not None:
        module = module or stdnum("iban")
        found = _longest_valid(match[0], module)
        at = match.start() + 2  # the next one may begin inside what looked like this one
        if found is not None:
            at = match.start() + found[1]
            if not text[at : at + 1].isalnum():
                yield Finding("iban", match.start(), at, found[0], 1)


def _longest_valid(candidate: str, module: object) -> tuple[str, int] | None:
    """(plain form, characters) of the longest beginning that is an account: words may follow it in capitals."""
    ends = [at + 1 for at, character in enumerate(candidate) if character.isalnum()]
    for end in reversed(ends[14:]):
        plain = re.sub(r"[ \u00a0-]", "", candidate[:end]).upper()
        if _mod97(plain) and module.is_valid(plain):  # type: ignore[attr-defined]
            return plain, end
    return None


def _mod97(plain: str) -> bool:
    """ISO 7064 mod 97-10 over the account with its first four characters at the end."""
    turned = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
    return int(turned) % 97 == 1
