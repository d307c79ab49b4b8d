"""What stands where personal data stood: `[EMAIL]`, `[EMAIL_1]`, `[EMAIL_9f3c2a71]`, or an invented value of that form.

Inside a document the number of a placeholder is the order of appearance, so that nothing can be computed from it. Over
a corpus it is HMAC-SHA256 of the value under a secret key: without the key nobody can try which value gives it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from trivium.data.safety.findings import Finding
from trivium.data.safety.money import luhn
from trivium.errors import ConfigError

Style = Literal["tag", "numbered", "fake"]

KEY_BYTES = 16
"""Shortest key that nobody can guess."""


def secret_key(file: str | None, variable: str | None) -> bytes | None:
    """The key of a file, or of an environment variable; it is never written anywhere."""
    if file is not None and variable is not None:
        raise ConfigError("the key is named twice", where="key_file, key_env", fix="keep one of them")
    if file is not None:
        path = Path(file).expanduser()
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                "the secret key cannot be read", where=path, fix="make one: head -c 32 /dev/urandom | base64 > KEY"
            ) from error
        where = str(path)
    elif variable is not None:
        key, where = os.environ.get(variable, "").encode(), f"environment variable {variable}"
    else:
        return None
    if len(key) < KEY_BYTES:
        raise ConfigError(
            "the secret key is too short to be secret",
            where=where,
            value=f"{len(key)} bytes, at least {KEY_BYTES}",
            fix="make one: head -c 32 /dev/urandom | base64",
        )
    return key


class Placeholders:
    """The placeholders of one document.

    key:      the secret of the corpus; None: placeholders are consistent inside this document only.
    document: names it; invented values differ from document to document.
    fits:     whether a recogniser still finds an invented value, which then is not taken; it might be somebody's.
    """

    def __init__(
        self, style: Style, *, key: bytes | None, document: str, seed: int, fits: Callable[[str, str], bool]
    ) -> None:
        self.style = style
        self.key = key
        self.fits = fits
        self._origin = f"{seed}\0{document}".encode()
        self._numbers: dict[str, dict[str, int]] = {}

    def of(self, finding: Finding, written: str) -> str:
        """The placeholder for a finding; the same for the same value."""
        name = finding.kind.upper()
        if self.style == "tag":
            return f"[{name}]"
        number = self._number(finding)
        digest = self._digest(finding, number)
        if self.style == "numbered":
            return f"[{name}_{digest.hex()[:8] if self.key else number}]"
        for attempt in range(8):
            value = invented(finding.kind, written, random.Random(digest + bytes([attempt])))
            if value != written and not self.fits(finding.kind, value):
                return value
        return f"[{name}_{digest.hex()[:8]}]"

    def _number(self, finding: Finding) -> int:
        numbers = self._numbers.setdefault(finding.kind, {})
        return numbers.setdefault(finding.value, len(numbers) + 1)

    def _digest(self, finding: Finding, number: int) -> bytes:
        if self.key is not None:
            message = f"{finding.kind}\0{finding.value}".encode("utf-8", "surrogatepass")
            return hmac.new(self.key, message, hashlib.sha256).digest()
        return hashlib.sha256(self._origin + f"\0{finding.kind}\0{number}".encode()).digest()


# Invented values

_GIVEN = (
    "Alex", "Robin", "Kim", "Sasha", "Noor", "Jamie", "Charlie", "Ariel", "Jules", "Mika", "Rowan", "Quinn", "Dana",
    "Toni", "Kai", "Sam", "Ren", "Eli", "Luca", "Andrea", "Yuki", "Amal", "Chris", "Pat",
)  # fmt: skip
_FAMILY = (
    "Avery", "Brook", "Castell", "Dorn", "Ebner", "Falk", "Garden", "Holm", "Ivers", "Jansky", "Keller", "Lindt",
    "Marlow", "Norwood", "Osman", "Perrin", "Quist", "Rivers", "Sato", "Tamm", "Ulm", "Varga", "Winter", "Young",
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def invented(kind: str, written: str, source: random.Random) -> str:
    """A value of the same form, from a range that is set aside for such uses where there is one."""
    return _MAKERS.get(kind, same_form)(written, source)


def same_form(written: str, source: random.Random) -> str:
    """Other digits for digits, other letters for letters in the same case; everything else stays."""
    return "".join(map(lambda character: _other(character, source), written))


def _other(character: str, source: random.Random) -> str:
    if character.isdigit():
        return source.choice("0123456789")
    if character.isalpha():
        letter = source.choice(_LETTERS)
        return letter.upper() if character.isupper() else letter
    return character


def _email(written: str, source: random.Random) -> str:
    local = written.partition("@")[0]
    length = min(max(len(local), 4), 24)
    return "".join(source.choice(_LETTERS) for _ in range(length)) + "@example." + source.choice(("com", "org", "net"))


def _phone(written: str, source: random.Random) -> str:
    """The fiction range of North America inside the groups as written; else the country code and zeros first."""
    digits = [character for character in written if character.isdigit()]
    national = 10 if len(digits) == 10 or (len(digits) == 11 and digits[0] == "1") else 0
    if national:
        fresh = [*digits[:-7], *"55501", *(source.choice("0123456789") for _ in range(2))]
    else:
        keep = 2 if written.lstrip("(").startswith(("+", "00")) else 1
        fresh = [*digits[:keep], "0", "0", *(source.choice("0123456789") for _ in digits[keep + 2 :])]
    rest = iter(fresh)
    return "".join(next(rest) if character.isdigit() else character for character in written)


def _card(written: str, source: random.Random) -> str:
    """Issuer's first digit and the length stay; the check digit is wrong, so that no account has the number."""
    fresh = written[:1] + same_form(written[1:], source)
    if luhn("".join(filter(str.isdigit, fresh))):
        fresh = fresh[:-1] + str((int(fresh[-1]) + 1) % 10)
    return fresh


def _iban(written: str, source: random.Random) -> str:
    """The country stays; check digits 00 never occur."""
    return written[:2] + "00" + same_form(written[4:], source)


def _birth_date(written: str, source: random.Random) -> str:
    """Another day of the same year; months by name stay."""
    return re.sub(r"(?<!\d)\d\d?(?!\d)", lambda found: f"{source.randint(1, 12):0{len(found[0])}d}", written)


def _name(written: str, source: random.Random) -> str:
    words = written.split()
    if len(words) == 1:
        return source.choice(_GIVEN)
    return " ".join([*(source.choice(_GIVEN) for _ in words[:-1]), source.choice(_FAMILY)])


def _ssn(written: str, source: random.Random) -> str:
    """The area 000 was never given to anybody."""
    return "000" + same_form(written[3:], source)


_MAKERS: dict[str, Callable[[str, random.Random], str]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ipv4": lambda written, source: f"198.{source.choice((18, 19))}.{source.randint(0, 255)}.{source.randint(1, 254)}",
    "ipv6": lambda written, source: "2001:db8:" + ":".join(f"{source.randint(1, 0xFFFF):x}" for _ in range(6)),
    "mac": lambda written, source: "00:00:5e:00:53:" + f"{source.randint(0, 255):02x}",
    "birth_date": _birth_date,
    "name": _name,
    "us_ssn": _ssn,
    "url_credentials": lambda written, source: "user:password" if ":" in written else "token",
    "secret": lambda written, source: written[: 4 if len(written) > 12 else 0] + "x" * min(len(written) - 4, 40),
}
