"""Invented personal data of every kind, and prose to hide them in.

Numbers are drawn at random until the official check passes, or get their check digits here; nobody chose them.
"""

from __future__ import annotations

import importlib
import os
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path

SHARED = Path(os.environ.get("TRIVIUM_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))

Made = tuple[str, str]
"""(value, words before it)."""

SENTENCES = (
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "He counted 1,204 sheep, 36 goats and 7 dogs between 1851 and 1853.",
    "The train of 10:42 left platform 9 at 11:05 on 3 May 1926.",
)


def prose() -> list[str]:
    """Paragraphs of old books where they are at hand, else a few sentences."""
    book = SHARED / "gutenberg" / "austen-emma.txt"
    if not book.is_file():
        return [" ".join(SENTENCES * 4)]
    paragraphs = book.read_text(encoding="utf-8", errors="replace").split("\n\n")
    return [" ".join(part.split()) for part in paragraphs if len(part) > 300][:120]


def _digits(source: random.Random, count: int) -> str:
    return "".join(source.choice(string.digits) for _ in range(count))


def _email(source: random.Random) -> Made:
    name = source.choice(("maria", "j.r", "o'brien", "li_wei", "x", "anna+news", "t-bone", "josé", "NASTYA"))
    host = source.choice(("mail.ru", "gmx.de", "sub.uni-bonn.de", "corp.co.uk", "firma.museum", "münchen.de"))
    at = source.choice(("@", "@", "@", "@", " [at] "))
    return f"{name}{source.randint(1, 99)}{at}{host}", source.choice(("write to ", "<", "mailto:", "e-mail: ", "("))


def _phone(source: random.Random) -> Made:
    forms: tuple[Callable[[], Made], ...] = (
        lambda: (f"+1 212-{source.randint(200, 499)}-{_digits(source, 4)}", "reach me at "),
        lambda: (
            f"({source.choice((212, 312, 415))}) {source.randint(200, 499)}-{_digits(source, 4)}",
            "my number: ",
        ),
        lambda: (f"{source.choice((212, 312, 415))}-{source.randint(200, 499)}-{_digits(source, 4)}", ""),
        lambda: (f"+44 20 7{source.randint(100, 399)} {_digits(source, 4)}", "London "),
        lambda: (f"020 7{source.randint(100, 399)} {_digits(source, 4)}", "tel. "),
        lambda: (f"+49 30 {source.randint(20, 89)}{_digits(source, 6)}", "Berlin "),
        lambda: (f"+33 1 42 {_digits(source, 2)} {_digits(source, 2)} {_digits(source, 2)}", "Paris, "),
        lambda: (f"0044 20 7{source.randint(100, 399)} {_digits(source, 4)}", "or "),
        lambda: (f"+91 98{_digits(source, 8)}", "call "),
    )
    return source.choice(forms)()


def _with_luhn(body: str) -> str:
    from stdnum import luhn

    return body + str(luhn.calc_check_digit(body))


def _card(source: random.Random) -> Made:
    kind = source.randrange(5)
    if kind == 0:
        number = _with_luhn("37" + _digits(source, 12))
        return source.choice((number, f"{number[:4]} {number[4:10]} {number[10:]}")), "Amex "
    start = {1: "4", 2: str(source.randint(51, 55)), 3: "6011", 4: str(source.randint(2221, 2720))}[kind]
    number = _with_luhn(start + _digits(source, 15 - len(start)))
    sign = source.choice(("", " ", "-"))
    return sign.join(number[at : at + 4] for at in range(0, 16, 4)), source.choice(("card ", "paid with ", ""))


def _iban(source: random.Random) -> Made:
    country, length, letters = source.choice((("DE", 18, 0), ("FR", 0, 0), ("NL", 10, 4), ("AT", 16, 0), ("CH", 17, 0)))
    if country == "FR":
        bank = int(_digits(source, 10))
        account = int(_digits(source, 11))
        key = 97 - (89 * (bank // 100000) + 15 * (bank % 100000) + 3 * account) % 97
        body = f"{bank:010d}{account:011d}{key:02d}"
    else:
        body = "".join(source.choice(("ABNA", "INGB", "RABO"))) if letters else ""
        body += _digits(source, length)
    number = "".join(str(int(character, 36)) for character in f"{body}{country}00")
    plain = f"{country}{98 - int(number) % 97:02d}{body}"
    grouped = " ".join(plain[at : at + 4] for at in range(0, len(plain), 4))
    return source.choice((plain, grouped)), source.choice(("IBAN ", "account ", ""))


NATIONAL = (
    ("us.ssn", "###-##-####", ""), ("us.ssn", "#########", "SSN "), ("us.itin", "9##-7#-####", ""),
    ("ca.sin", "### ### ###", "SIN "), ("gb.nhs", "### ### ####", "NHS number "), ("de.idnr", "###########", "IdNr "),
    ("fr.nir", "18505##25####", ""), ("es.dni", "########@", "DNI "), ("es.nie", "X#######@", ""),
    ("nl.bsn", "#########", "BSN "), ("be.nn", "850512#####", ""), ("pl.pesel", "850512#####", "PESEL "),
    ("se.personnummer", "850512-####", ""), ("dk.cpr", "120585-####", "CPR "), ("fi.hetu", "120585-###@", ""),
    ("no.fodselsnummer", "120585#####", ""), ("br.cpf", "###.###.###-##", ""), ("kr.rrn", "850512-1######", ""),
    ("in_.aadhaar", "5### #### ####", "Aadhaar "), ("za.idnr", "850512####08#", "ID number "),
    ("tr.tckimlik", "1##########", "TC Kimlik "),
    ("ch.ssn", "756.####.####.##", "AHV "), ("au.tfn", "### ### ###", "TFN "), ("pt.nif", "2########", "NIF "),
    ("hr.oib", "###########", "OIB "), ("bg.egn", "850512####", "EGN "),
)  # fmt: skip


def _national(source: random.Random) -> Made:
    """Random numbers until one passes the register's check."""
    if source.random() < 0.05:
        return "QQ123456C".replace("QQ", source.choice(("AB", "JK", "ST"))), "NI number "
    name, form, before = source.choice(NATIONAL)
    check = importlib.import_module(f"stdnum.{name}").is_valid
    for _ in range(200_000):
        value = "".join(
            source.choice(string.digits) if c == "#" else source.choice("ABCDEFHJKLMNPQRSTVWXYZ") if c == "@" else c
            for c in form
        )
        if name == "fr.nir":
            value += f"{97 - int(value) % 97:02d}"
        if check(value):
            return value, before
    raise AssertionError(name)


def _address(source: random.Random) -> Made:
    if source.random() < 0.3:
        groups = ":".join(f"{source.randint(1, 0xFFFF):x}" for _ in range(source.choice((3, 5))))
        return f"2a02:{groups}::{source.randint(1, 0xFFFF):x}", "from "
    last = ".".join(str(source.randint(1, 254)) for _ in range(3))
    return f"{source.choice((8, 62, 93, 185, 217))}.{last}", "IP "


def _mac(source: random.Random) -> Made:
    return source.choice(":-").join(f"{source.randint(1, 255):02x}" for _ in range(6)), "card "


def _url(source: random.Random) -> Made:
    word = "".join(source.choice(string.ascii_letters + string.digits) for _ in range(12))
    return source.choice((f"ann:{word}", f"root:{word}!")), source.choice(("https://", "postgres://", "ftp://"))


def _secret(source: random.Random) -> Made:
    def word(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        return "".join(source.choice(alphabet) for _ in range(count))

    capitals = string.ascii_uppercase + string.digits
    forms = (f"AKIA{word(16, capitals)}", f"ghp_{word(36)}", f"sk-proj-{word(40)}", f"AIza{word(35)}", f"hf_{word(34)}")
    forms += (f"glpat-{word(20)}", f"xoxb-{_digits(source, 12)}-{word(24)}", f"sk_live_{word(24)}", f"npm_{word(36)}")
    forms += (f"eyJ{word(20)}.eyJ{word(40)}.{word(43)}", f"github_pat_{word(60)}", f"SG.{word(22)}.{word(43)}")
    return source.choice(forms), source.choice(("key ", "token=", "export KEY="))


def _birth_date(source: random.Random) -> Made:
    year, month, day = source.randint(1930, 2010), source.randint(1, 12), source.randint(1, 28)
    name = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")[
        month % 10
    ]
    forms = (
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}/{month:02d}/{year}",
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
    )
    return source.choice(forms), source.choice(("born on ", "date of birth: ", "DOB ", "Birthday: ", "born "))


def _record(source: random.Random) -> Made:
    return _digits(source, 8), source.choice(("MRN: ", "medical record number ", "Patient ID: ", "MRN "))


MAKERS: dict[str, Callable[[random.Random], Made]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "national_id": _national,
    "ip": _address,
    "mac": _mac,
    "url_credentials": _url,
    "secret": _secret,
    "birth_date": _birth_date,
    "medical_record": _record,
}


def planted(source: random.Random, count: int) -> Iterator[tuple[str, str, str, str]]:
    """(kind, value, words before it, words after it), all kinds in turn."""
    kinds = list(MAKERS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        value, before = MAKERS[kind](source)
        yield kind, value, before, "@db.corp.com/x" if kind == "url_credentials" else "."
