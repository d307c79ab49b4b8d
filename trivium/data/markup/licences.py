"""What a source says about its licence, as an SPDX name where there is one."""

from __future__ import annotations

import re

_CREATIVE = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", re.IGNORECASE)
_WORDS = re.compile(
    r"creative commons[\s,-]+attribution((?:[\s,-]+(?:non-?commercial|share-?alike|no-?deriv\w*))*)",
    re.IGNORECASE,
)
_SHORT = re.compile(r"\bcc[ -](by(?:[ -](?:nc|sa|nd))*)[ -](\d\.\d)\b", re.IGNORECASE)


def licence_name(text: str | None) -> str | None:
    """`CC-BY-2.0` for the address of a Creative Commons licence; other words as they stand, None for none."""
    if not text or not text.strip():
        return None
    found = _CREATIVE.search(text)
    if found and found[1].lower() == "publicdomain":
        return "CC0-1.0" if found[2].lower() == "zero" else "Public-Domain"
    if found:
        return "-".join(filter(None, ["CC", found[2].upper(), found[3]]))
    short = _SHORT.search(text)
    if short:
        return f"CC-{short[1].upper().replace(' ', '-')}-{short[2]}"
    spelled = _WORDS.search(text)
    if spelled:
        letters = {"c": "NC", "s": "SA", "d": "ND"}
        marks = re.findall("(c)ommercial|(s)hare|(d)eriv", spelled[1].lower())
        return "-".join(["CC", "BY", *(letters[next(filter(None, mark))] for mark in marks)])
    words = " ".join(text.split())
    return words if len(words) <= 200 else f"{words[:199]}…"
