"""Slips of the keyboard and misreadings of a scanner, one character at a time."""

from __future__ import annotations

import random
from typing import Literal

Kind = Literal["keyboard", "ocr", "swap", "delete", "repeat"]
KINDS: tuple[Kind, ...] = ("keyboard", "ocr", "swap", "delete", "repeat")
Layout = Literal["qwerty", "qwertz", "azerty"]

_ROWS: dict[Layout, tuple[str, ...]] = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}

_CONFUSED = (
    "rn:m m:rn cl:d d:cl vv:w w:vv nn:m li:h ri:n fi:h l:1 1:l I:l l:I i:l O:0 0:O o:0 S:5 5:S B:8 8:B g:9 Z:2 z:2 "
    "e:c c:e h:b b:h u:v v:u n:u u:n t:f f:t a:o G:6 D:O E:F ü:u ö:o ä:a é:e ß:B"
)
"""What optical character recognition takes for something else (printed:read)."""


def neighbours(layout: Layout) -> dict[str, str]:
    """For each letter the letters beside it, above and below, on a keyboard."""
    rows = _ROWS[layout]
    found: dict[str, str] = {}
    for at, row in enumerate(rows):
        for column, letter in enumerate(row):
            near = [row[c] for c in (column - 1, column + 1) if 0 <= c < len(row)]
            for other, columns in ((at - 1, (column, column + 1)), (at + 1, (column - 1, column))):
                if 0 <= other < len(rows):
                    near += [rows[other][c] for c in columns if 0 <= c < len(rows[other])]
            found[letter] = "".join(near)
    return found


_CONFUSED_WITH: dict[str, list[str]] = {}
for _pair in _CONFUSED.split():
    _printed, _, _read = _pair.partition(":")
    _CONFUSED_WITH.setdefault(_printed, []).append(_read)


def slip(word: str, at: int, kind: Kind, draw: random.Random, *, near: dict[str, str]) -> tuple[int, str] | None:
    """(characters replaced, what stands there now) for a slip at character `at` of a word; None if none is possible."""
    letter = word[at]
    if kind == "keyboard":
        others = near.get(letter.lower(), "")
        if not others:
            return None
        other = draw.choice(others)
        return 1, other.upper() if letter.isupper() else other
    if kind == "ocr":
        for size in (2, 1):
            if len(word) >= at + size and (others_read := _CONFUSED_WITH.get(word[at : at + size])):
                return size, draw.choice(others_read)
        return None
    if kind == "swap":
        pair = word[at : at + 2]
        return (2, pair[::-1]) if len(pair) == 2 and pair[0] != pair[1] else None
    if kind == "delete":
        return (1, "") if len(word) > 1 else None
    return 1, letter * 2
