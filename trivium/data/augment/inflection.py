"""The regular inflections of English: plural, third person, past, present participle.

What is irregular is known from a list of forms; a verb whose past is irregular has no form in -ed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Part = Literal["n", "v", "a", "r"]
"""Noun, verb, adjective, adverb."""
Form = Literal["base", "s", "ed", "ing"]
"""base: as in a dictionary. s: plural of a noun, third person of a verb. ed: past. ing: present participle."""

FORMS: dict[Part, tuple[Form, ...]] = {
    "n": ("base", "s"),
    "v": ("base", "s", "ed", "ing"),
    "a": ("base",),
    "r": ("base",),
}

_VOWELS = "aeiou"


def inflect(word: str, form: Form) -> str:
    """The regular form of a word."""
    if form == "base":
        return word
    if form == "s":
        if word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        return word[:-1] + "ies" if _ends_in_y(word) else word + "s"
    if form == "ed":
        if word.endswith("e"):
            return word + "d"
        if _ends_in_y(word):
            return word[:-1] + "ied"
        return word + (word[-1] if _doubles(word) else "") + "ed"
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if word.endswith("e") and not word.endswith(("ee", "oe", "ye")):
        return word[:-1] + "ing"
    return word + (word[-1] if _doubles(word) else "") + "ing"


def analyses(word: str) -> Iterator[tuple[str, Form]]:
    """(possible base, form) of a word, from its ending alone: most of them are no words."""
    yield word, "base"
    for ending, form in (("s", "s"), ("ed", "ed"), ("ing", "ing")):
        if not word.endswith(ending) or len(word) < len(ending) + 2:
            continue
        stem = word.removesuffix(ending)
        bases = {stem, stem + "e", stem.removesuffix("e")}
        bases |= {stem[:-1]} if stem[-1:] == stem[-2:-1] else set()
        bases |= {stem.removesuffix("i") + "y", stem.removesuffix("ie") + "y", stem.removesuffix("y") + "ie"}
        yield from ((base, form) for base in sorted(bases) if len(base) > 1 and inflect(base, form) == word)  # type: ignore[arg-type, misc]


def begins_with_vowel(word: str) -> bool:
    """Whether `an` stands before a word; by its letters, with the commonest exceptions."""
    word = word.lower()
    if word.startswith(("uni", "use", "usu", "eu", "one", "once", "ubi", "uti")):
        return word.startswith(("unin", "unim"))
    return word[:1] in _VOWELS or word.startswith(("hour", "honest", "honor", "honour", "heir"))


def _ends_in_y(word: str) -> bool:
    return word.endswith("y") and word[-2:-1] not in _VOWELS


def _doubles(word: str) -> bool:
    """One syllable that ends in consonant, vowel, consonant: stop, stopped."""
    vowels = sum(letter in _VOWELS + "y" for letter in word)
    return vowels == 1 and len(word) > 2 and word[-2] in _VOWELS and word[-1] not in _VOWELS + "wxy"
