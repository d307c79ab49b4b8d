"""Easy data augmentation: synonyms, random insertion, swap and deletion of words (Wei and Zou 2019, arXiv:1901.11196).

Each child is made by one of the four operations, which take turns in a random order. As in the paper an operation
changes a share alpha of the words: `synonyms` words are replaced, `insertions` times a synonym of some word is put
somewhere, `swaps` times two words change places, and each word is left out with the probability `deletions`. Unlike the
authors' code, which writes everything in lower case and without punctuation, the rest of the text stays as it is, and
synonyms are those of the step `synonyms`: of the same part of speech and form.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from trivium.data.augment.replacing import Choice, choices, replacements
from trivium.data.augment.step import Augmentation, Child, Drawing
from trivium.data.augment.thesaurus import open_thesaurus
from trivium.data.augment.words import Word, protected_terms, rewritten, words_of
from trivium.data.documents import Document

_OPERATIONS = ("synonyms", "insertions", "swaps", "deletions")


class Eda(Drawing):
    """See the file's docstring."""

    class Config(Augmentation):
        """Settings of `eda`."""

        children: int = Field(4, ge=1, le=100)
        """New documents from each document; the paper makes 4 of each text for 5,000 texts, 16 for 500."""
        synonyms: float = Field(0.1, ge=0, le=1)
        """Share of the words replaced by a synonym; 0 leaves the operation out."""
        insertions: float = Field(0.1, ge=0, le=1)
        """Synonyms put in at random places, as a share of the words; 0 leaves the operation out."""
        swaps: float = Field(0.1, ge=0, le=1)
        """Pairs of words that change places, as a share of the words; 0 leaves the operation out."""
        deletions: float = Field(0.1, ge=0, lt=1)
        """Probability with which each word is left out; 0 leaves the operation out."""
        thesaurus: str = "small"
        """As in the step `synonyms`."""
        certainty: float = Field(0.8, ge=0, le=1)
        """As in the step `synonyms`."""
        protected: list[str] = Field(default_factory=list)
        """Terms that stay where and as they are, or files of them (`terms.txt`, one a line)."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._protected = protected_terms(config.protected)
        self._thesaurus = open_thesaurus(config.thesaurus)
        self._operations = [name for name in _OPERATIONS if getattr(config, name) > 0]

    def children_of(self, document: Document, draw: random.Random, number: int) -> Child | None:
        words = words_of(document.text, self._protected)
        if not words or not self._operations:
            return None
        turn, place = divmod(number, len(self._operations))
        order = list(self._operations)
        self.draw(document, -1 - turn).shuffle(order)
        for name in order[place:] + order[:place]:  # the next one, if there is no synonym, or nothing was left out
            share = getattr(self.config, name)
            count = max(1, int(share * len(words)))
            changes = self._changes(name, document.text, words, draw, count=count, share=share)
            if changes:
                return Child(rewritten(document.text, changes), {"operation": name})
        return None

    def _changes(
        self, name: str, text: str, words: Sequence[Word], draw: random.Random, *, count: int, share: float
    ) -> list[tuple[int, int, str]]:
        if name == "swaps":
            return _swapped(words, draw, count=count)
        if name == "deletions":
            return _deleted(text, words, draw, share=share)
        chosen = choices(words, self._thesaurus, certainty=self.config.certainty)
        if name == "synonyms":
            return replacements(text, chosen, draw, count=count)
        return _inserted(words, chosen, draw, count=count)


def _inserted(
    words: Sequence[Word], chosen: Sequence[Choice], draw: random.Random, *, count: int
) -> list[tuple[int, int, str]]:
    """Synonyms of random words before other random words."""
    if not chosen:
        return []
    places = draw.sample(range(len(words)), min(count, len(words)))
    return [(words[at].start, words[at].start, f"{draw.choice(draw.choice(chosen).others).lower()} ") for at in places]


def _swapped(words: Sequence[Word], draw: random.Random, *, count: int) -> list[tuple[int, int, str]]:
    order = list(range(len(words)))
    if len(words) > 1:
        for _ in range(count):
            one, other = draw.sample(range(len(words)), 2)
            order[one], order[other] = order[other], order[one]
    return [
        (word.start, word.end, words[other].text)
        for word, other in zip(words, order, strict=True)
        if word is not words[other]
    ]


def _deleted(text: str, words: Sequence[Word], draw: random.Random, *, share: float) -> list[tuple[int, int, str]]:
    """Words left out with the space before them; at least one word stays."""
    out = [word for word in words if draw.random() < share]
    if len(out) == len(words):
        out.remove(draw.choice(out))
    changes = []
    for word in out:
        before = word.start > 0 and text[word.start - 1] == " "
        after = word.start == 0 and text[word.end : word.end + 1] == " "
        changes.append((word.start - before, word.end + after, ""))
    return changes
