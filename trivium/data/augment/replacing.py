"""Words replaced by synonyms, the part of speech and the inflection kept.

What part of speech a word is, is decided from how usual it is as each and from the word before it; where that leaves
doubt the word stays. It needs no tagger, and reads English.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from trivium.data.augment.inflection import Part, begins_with_vowel
from trivium.data.augment.thesaurus import Reading, Thesaurus
from trivium.data.augment.words import Word, cased_like, is_plain


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NOUN_AFTER = _set(
    "a an the this that these those my your his her its our their some any no every each another both few "
    "many several all of"
)
_VERB_AFTER = _set(
    "to can could will would shall should may might must do does did i you we they he she who don't "
    "doesn't didn't won't can't couldn't wouldn't shouldn't cannot let's please not"
)
_QUALITY_AFTER = _set(
    "is are was were be been being am very so too more most quite rather really seems seemed looks looked "
    "feels felt becomes became extremely completely utterly truly"
)
_OTHERS = _set(
    "and or but if then than as at by for from in into on onto out over under up down off with without "
    "about after before between through during against again further once here there when where why how "
    "what which whom whose it him them me us myself yourself himself herself itself ourselves themselves "
    "has have had having doing such only own same just now nor because until while also even still well "
    "yet ever never always often much little less least other others one two three first last like get "
    "gets got go goes went come comes came make makes made take takes took thing things way ways lot lots "
    "kind sort bit"
)
_STOP = _NOUN_AFTER | _VERB_AFTER | _QUALITY_AFTER | _OTHERS
"""Words that are never replaced."""

_CONTEXT: dict[str, dict[Part, float]] = {
    "noun": {"n": 1.0, "a": 0.5, "v": 0.02, "r": 0.1},
    "verb": {"n": 0.08, "a": 0.05, "v": 1.0, "r": 0.3},
    "quality": {"n": 0.2, "a": 1.0, "v": 0.3, "r": 0.5},
    "": {"n": 1.0, "a": 1.0, "v": 1.0, "r": 1.0},
}
"""How well each part of speech fits behind words of a kind."""


@dataclass(frozen=True)
class Choice:
    """A word that can be replaced, and by which words (in its form, in its capitals)."""

    word: Word
    others: tuple[str, ...]


def likeliest(readings: Sequence[Reading], before: str) -> tuple[Reading, float] | None:
    """The most probable reading of a word behind the word `before`, and its probability; None without readings."""
    kind = "noun" if before in _NOUN_AFTER else "verb" if before in _VERB_AFTER else ""
    kind = kind or ("quality" if before in _QUALITY_AFTER else "")
    fits = [(reading, reading.weight * _CONTEXT[kind][reading.part]) for reading in readings]
    total = sum(weight for _, weight in fits)
    if not total:
        return None
    best = max(fits, key=lambda each: each[1])
    return best[0], best[1] / total


def choices(words: Sequence[Word], thesaurus: Thesaurus, *, certainty: float) -> list[Choice]:
    """The words of a text that have a synonym, in order."""
    found = []
    before = ""
    for word in words:
        lower = word.text.lower()
        if is_plain(word) and lower not in _STOP and len(lower) > 2:
            best = likeliest(thesaurus.readings(lower), "" if word.first else before)
            if best is not None and best[1] >= certainty:
                others = _forms(best[0], thesaurus)
                if forms := tuple(cased_like(other, word.text) for other in others if other != lower):
                    found.append(Choice(word, forms))
        before = lower
    return found


def replacements(text: str, chosen: Sequence[Choice], draw: random.Random, *, count: int) -> list[tuple[int, int, str]]:
    """Changes that replace `count` of the words by one of their synonyms each, with `a` and `an` set right."""
    changes = []
    for choice in draw.sample(list(chosen), min(count, len(chosen))):
        new = draw.choice(choice.others)
        changes.append((choice.word.start, choice.word.end, new))
        changes += _article(text, choice.word, new)
    return changes


def _forms(reading: Reading, thesaurus: Thesaurus) -> list[str]:
    bases = (base for base in thesaurus.synonyms(reading.base, reading.part) if base not in _STOP)
    others = (thesaurus.inflected(base, reading.part, reading.form) for base in bases)
    return [other for other in others if other]


def _article(text: str, word: Word, new: str) -> list[tuple[int, int, str]]:
    """`a film` becomes `an epic`."""
    start = word.start - 1
    if start < 1 or text[start] != " " or begins_with_vowel(word.text) == begins_with_vowel(new):
        return []
    for article, other in (("an", "a"), ("a", "an")):
        at = start - len(article)
        if at >= 0 and text[at:start].lower() == article and not text[at - 1 : at].isalnum():
            return [(at, start, cased_like(other, text[at:start]) if text[at].isupper() else other)]
    return []
