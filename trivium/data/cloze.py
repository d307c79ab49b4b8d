"""Closed-book questions made of a corpus: sentences up to a name or number, which the model has to know.

    The spear of Alveric was forged by -> Ziroonderel

They probe what a model took from texts it has read, before and after: `trivium eval MODEL questions.jsonl`. Nothing is
written by a model, so a question is as true as its sentence; whether a person could answer it is another matter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trivium.data.documents import Document
from trivium.errors import DataError

_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
_TERM = re.compile(r"(?<=[a-z,;:] )((?:[A-Z][\w'-]+)(?: (?:of |the )?[A-Z][\w'-]+){0,2}|\d[\d,.]*\d|\d)(?=\W|$)")


@dataclass(frozen=True)
class Question:
    """A beginning, its continuation, and the document it is from."""

    prompt: str
    answer: str
    document: str

    def as_row(self) -> dict[str, str]:
        """The row of a file."""
        return {"prompt": self.prompt, "completion": self.answer, "document": self.document}


def questions(documents: Iterable[Document], *, count: int, least_words: int = 6, seed: int = 0) -> list[Question]:
    """`count` questions at most, drawn by the seed, about as many of each document; no prompt twice.

    least_words: of a beginning. DataError if the corpus holds no sentence that fits.
    """
    found: dict[str, list[Question]] = {}
    seen: set[str] = set()
    for document in documents:
        chance = random.Random(f"cloze:{seed}:{document.id}")
        own = [one for one in _of(document, least_words, chance) if one.prompt not in seen]
        chance.shuffle(own)
        seen.update(one.prompt for one in own)
        if own:
            found[document.id] = own
    if not found:
        raise DataError(
            "no sentence of this corpus ends in a name or number that could be asked for",
            value=f"{len(seen)} questions",
            fix="give prose with names, or lower --least-words",
        )
    order = sorted(found)
    random.Random(f"cloze:{seed}").shuffle(order)
    drawn: list[Question] = []
    while len(drawn) < count and any(found.values()):
        drawn += [found[name].pop() for name in order if found[name]][: count - len(drawn)]
    return drawn


def _of(document: Document, least_words: int, chance: random.Random) -> Iterator[Question]:
    """One question of each sentence that has a term."""
    for paragraph in re.split(r"\n\s*\n", document.text):
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            terms = [term for term in _TERM.finditer(sentence) if len(sentence[: term.start()].split()) >= least_words]
            if terms and len(sentence) < 400:
                term = chance.choice(terms)
                yield Question(sentence[: term.start()].rstrip(), term[0], document.id)
