"""Did you mean ...: the known word that a mistyped one most likely stands for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The most similar of the known words, or None if none is at least `cutoff` similar (0 to 1).

    Words one edit away (a letter left out, added, replaced, or two swapped) win over difflib's similarity, which
    underrates short words.
    """
    options = sorted(known)
    close = [option for option in options if _one_edit(word.lower(), option.lower())]
    if close:
        return max(close, key=lambda option: _similarity(word, option))
    found = difflib.get_close_matches(word, options, n=1, cutoff=cutoff)
    return found[0] if found else None


def _similarity(word: str, option: str) -> float:
    return difflib.SequenceMatcher(None, word.lower(), option.lower()).ratio()


def _one_edit(a: str, b: str) -> bool:
    """Whether one deletion, insertion, replacement or swap of neighbours (or nothing) turns a into b."""
    short, long = sorted((a, b), key=len)
    if len(long) - len(short) > 1:
        return False
    start = 0
    while start < len(short) and short[start] == long[start]:
        start += 1
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    if short[start + 1 :] == long[start + 1 :]:
        return True
    swapped = long[:start] + long[start : start + 2][::-1] + long[start + 2 :]
    return short == swapped
