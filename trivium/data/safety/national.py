"""Numbers that states give to persons, told by their check digits (python-stdnum).

Where a checksum alone would hit too often (one number in ten or eleven passes), or there is none, the number counts
only near a word that says what it is, or in a notation that nothing else has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trivium.data.safety.findings import Finding, any_word, near, stretches
from trivium.data.safety.packages import stdnum


@dataclass(frozen=True)
class NationalId:
    """How the numbers of one register look.

    form:    what is tried.
    module:  what checks it, in python-stdnum; None: the form says enough.
    words:   one of these must stand near; empty: the number speaks for itself.
    distinct: a notation in which it needs no such word.
    """

    name: str
    form: str
    module: str | None
    words: tuple[str, ...] = ()
    distinct: str | None = None


_ID = ("id", "id number", "identity number", "identification number", "national id", "tax id", "tin")
_DE = ("idnr", "steuer-id", "identifikationsnummer", "steueridentifikationsnummer", "steuernummer", "tin", "tax id")
_US = ("ssn", "social security", "soc sec", "social")
_REGISTERS = (
    NationalId("ar_dni", r"\d{1,2}\.?\d{3}\.?\d{3}", "ar.dni", ("dni", "documento")),
    NationalId("at_vnr", r"\d{4} ?\d{6}", "at.vnr", ("svnr", "vsnr", "sozialversicherungsnummer")),
    NationalId("au_tfn", r"\d{3} ?\d{3} ?\d{2,3}", "au.tfn", ("tfn", "tax file number", "tax file no")),
    NationalId("be_nn", r"\d{2}[. ]?\d{2}[. ]?\d{2}[- ]?\d{3}[. ]?\d{2}", "be.nn"),
    NationalId("bg_egn", r"\d{10}", "bg.egn", ("egn", "егн")),
    NationalId("br_cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", "br.cpf", ("cpf",), r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    NationalId("ca_sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", ("sin", "social insurance", "nas")),
    NationalId("ch_ssn", r"756\.?\d{4}\.?\d{4}\.?\d{2}", "ch.ssn"),
    NationalId("cl_rut", r"\d{1,2}\.?\d{3}\.?\d{3}-[\dkK]", "cl.rut", ("rut", "run"), r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    NationalId("cn_ric", r"\d{17}[\dX]", "cn.ric"),
    NationalId("cz_rc", r"\d{6}/?\d{3,4}", "cz.rc", ("rč", "rodné číslo", "rodne cislo"), r"\d{6}/\d{4}"),
    NationalId("de_idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", _DE),
    NationalId("dk_cpr", r"\d{6}-?\d{4}", "dk.cpr", ("cpr", "cpr-nr", "cpr nr", "personnummer")),
    NationalId("ee_ik", r"[1-6]\d{10}", "ee.ik", ("isikukood", *_ID)),
    NationalId("es_dni", r"\d{8}[ -]?[A-Z]", "es.dni"),
    NationalId("es_nie", r"[XYZ][ -]?\d{7}[ -]?[A-Z]", "es.nie"),
    NationalId("fi_hetu", r"\d{6}[-+ABCDEFYXWVU]\d{3}[0-9A-Y]", "fi.hetu"),
    NationalId("fr_nir", r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    NationalId("gb_nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", ("nhs", "nhs number", "nhs no")),
    NationalId("gb_nino", r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]", None),
    NationalId("gr_amka", r"\d{11}", "gr.amka", ("amka", "αμκα")),
    NationalId("hr_oib", r"\d{11}", "hr.oib", ("oib",)),
    NationalId("ie_pps", r"\d{7}[A-W][A-IW]?", "ie.pps"),
    NationalId("il_idnr", r"\d{8}-?\d", "il.idnr", ("teudat zehut", "ת.ז", *_ID)),
    NationalId("in_aadhaar", r"[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar", ("aadhaar", "aadhar", "uidai", "uid")),
    NationalId("in_pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", "in_.pan"),
    NationalId("it_codicefiscale", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    NationalId("jp_in", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "jp.in_", ("my number", "個人番号")),
    NationalId("kr_rrn", r"\d{6}-[1-8]\d{6}", "kr.rrn"),
    NationalId("lt_asmens", r"[1-6]\d{10}", "lt.asmens", ("asmens kodas", *_ID)),
    NationalId("mx_curp", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d", "mx.curp"),
    NationalId("my_nric", r"\d{6}-\d{2}-\d{4}", "my.nric"),
    NationalId("nl_bsn", r"\d{4}\.?\d{2}\.?\d{3}", "nl.bsn", ("bsn", "burgerservicenummer", "sofinummer", "sofi")),
    NationalId("no_fodselsnummer", r"\d{6} ?\d{5}", "no.fodselsnummer"),
    NationalId("nz_ird", r"\d{2,3}[- ]?\d{3}[- ]?\d{3}", "nz.ird", ("ird", "ird number")),
    NationalId("pl_pesel", r"\d{11}", "pl.pesel", ("pesel",)),
    NationalId("pt_nif", r"[1-35-9]\d{2} ?\d{3} ?\d{3}", "pt.nif", ("nif", "contribuinte", "número fiscal")),
    NationalId("ro_cnp", r"[1-9]\d{12}", "ro.cnp", ("cnp", "cod numeric personal")),
    NationalId("se_personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer"),
    NationalId("si_emso", r"\d{13}", "si.emso", ("emšo", "emso", "jmbg")),
    NationalId("sk_rc", r"\d{6}/?\d{3,4}", "sk.rc", ("rč", "rodné číslo", "rodne cislo"), r"\d{6}/\d{4}"),
    NationalId("th_pin", r"\d-?\d{4}-?\d{5}-?\d{2}-?\d", "th.pin", _ID, r"\d-\d{4}.{9}\d"),
    NationalId("tr_tckimlik", r"[1-9]\d{10}", "tr.tckimlik", ("tc kimlik", "kimlik", "tckn", "t.c.")),
    NationalId("us_itin", r"9\d{2}[ -]?\d{2}[ -]?\d{4}", "us.itin", ("itin", "taxpayer"), r"9\d{2}-\d{2}-\d{4}"),
    NationalId("us_ssn", r"\d{3}[ -]?\d{2}[ -]?\d{4}", "us.ssn", _US, r"\d{3}-\d{2}-\d{4}"),
    NationalId("za_idnr", r"\d{13}", "za.idnr", ("rsa id", "south african id", *_ID)),
)  # fmt: skip
REGISTERS = {register.name: register for register in _REGISTERS}
"""Every register that is known, by name."""

DEFAULT = (
    "us_ssn", "us_itin", "ca_sin", "gb_nino", "gb_nhs", "ie_pps", "de_idnr", "fr_nir", "es_dni", "es_nie",
    "it_codicefiscale", "nl_bsn", "be_nn", "ch_ssn", "at_vnr", "pt_nif", "pl_pesel", "se_personnummer", "dk_cpr",
    "fi_hetu", "no_fodselsnummer", "br_cpf", "mx_curp", "in_aadhaar", "in_pan", "cn_ric", "kr_rrn", "au_tfn", "nz_ird",
    "tr_tckimlik", "za_idnr",
)  # fmt: skip

_DENSE = re.compile(r"\d(?:[ ./A-Z-]{0,2}\d){3,}+")
"""Four digits or more with hardly anything between them. Every number has such a run."""
_BEFORE, _AFTER = 12, 24
"""Characters of a number that may stand before and after that run."""


class NationalIds:
    """Numbers of the chosen registers."""

    def __init__(self, names: Sequence[str]) -> None:
        self._registers = [_Register(REGISTERS[name]) for name in names]

    def __call__(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Finding]:
        """Looks only where digits stand close together."""
        dense = _DENSE.finditer(text, start, end)
        for first, last in stretches(dense, before=_BEFORE, after=_AFTER, end=len(text)):
            for register in self._registers:
                yield from register.inside(text, first, last)


class _Register:
    """A register with its patterns made ready."""

    def __init__(self, given: NationalId) -> None:
        self.name = given.name
        self.form = re.compile(rf"(?<![\w.-])(?:{given.form})(?!\w|[-./]\d)")
        self.words = any_word(given.words) if given.words else None
        self.distinct = re.compile(given.distinct) if given.distinct else None
        self.module = given.module

    def inside(self, text: str, start: int, end: int) -> Iterator[Finding]:
        """The numbers between two places."""
        for match in self.form.finditer(text, start, end):
            written = match[0]
            if text[match.end() : match.end() + 1].isalnum():  # cut off by the end of the window
                continue
            alone = self.words is None or (self.distinct is not None and self.distinct.fullmatch(written) is not None)
            named = self.words is not None and near(text, *match.span(), self.words)
            if (alone or named) and (self.module is None or stdnum(self.module).is_valid(written)):
                yield Finding(self.name, *match.span(), re.sub(r"[ ./]", "", written).upper(), 3 if named else 4)
