"""What all augmenting steps share: which documents, how many children, and what becomes of a child.

A child keeps the label and every other field of its parent; it says in `meta` whose child it is:

    parent         id of the document it was made from
    group          what the parent belongs to, so that no split divides them
    augmentation   {"step", "similarity" where it is measured, and what the step notes}

Its id is the parent's, the step and a number derived from (seed, step, parent, which child).
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.augment.similarity import Similarity, similarities
from trivium.data.documents import Document
from trivium.data.step import Result, Step


class SimilarityFilter(StrictModel):
    """Keeps children that are near enough to their parent, and not too near."""

    measure: str = "chrf"
    """`chrf` (characters), `words` (share of runs of one to three words), or a model folder (cosine of embeddings)."""
    least: float = Field(0.0, ge=-1, le=1)
    """Children less like their parent are thrown away."""
    most: float = Field(1.0, ge=-1, le=1)
    """Children more like their parent are thrown away."""


class Augmentation(StrictModel):
    """Settings that every augmenting step has."""

    children: int = Field(1, ge=1, le=100)
    """New documents from each document; fewer where some come out alike, unchanged or not similar enough."""
    splits: list[str] = Field(default_factory=lambda: ["train"])
    """Documents of other splits (`meta.split`) are left alone; one without a split is augmented."""
    originals_only: bool = True
    """Leave documents alone that are children of an earlier augmentation."""
    similarity: SimilarityFilter | None = None
    """Keep only children that are similar enough to their parent."""


@dataclass(frozen=True)
class Child:
    """A new text, and what is noted about it."""

    text: str
    notes: Mapping[str, Any] = field(default_factory=dict)


class Augmenter(Step):
    """Makes children of many documents at once; see `Drawing` for one at a time."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.name = type(self).__module__.rpartition(".")[2]
        self.account: Counter[str] = Counter()
        """What became of all children so far: kept, or thrown away and why."""
        self._similarity: Similarity | None = None

    @abstractmethod
    def children_of_all(self, documents: Sequence[Document]) -> list[list[Child]]:
        """For each document its children, before any of them is thrown away."""

    def apply(self, document: Document) -> Result:
        return self.apply_all([document])[0]

    def apply_all(self, documents: Sequence[Document]) -> list[Result]:
        asked = [number for number, document in enumerate(documents) if self._is_meant(document)]
        found = self.children_of_all([documents[number] for number in asked])
        kept = self._kept([documents[number] for number in asked], found)
        results: list[Result] = list(documents)
        for number, children in zip(asked, kept, strict=True):
            if children:
                results[number] = [documents[number], *self._made(documents[number], children)]
        return results

    def parents(self) -> Sequence[Path]:
        """The models that take part."""
        wanted = self.config.similarity
        named = wanted is not None and wanted.measure not in ("chrf", "words")
        return [Path(wanted.measure).expanduser()] if named else []

    def _is_meant(self, document: Document) -> bool:
        split = document.meta.get("split")
        child = "augmentation" in document.meta
        return (split is None or split in self.config.splits) and not (child and self.config.originals_only)

    def _kept(self, documents: Sequence[Document], found: Sequence[Sequence[Child]]) -> list[list[Child]]:
        """What is new, and similar enough."""
        kept = [self._new(document, children) for document, children in zip(documents, found, strict=True)]
        wanted = self.config.similarity
        if wanted is not None:
            pairs = [(d.text, child.text) for d, children in zip(documents, kept, strict=True) for child in children]
            self._similarity = self._similarity or similarities(wanted.measure)
            measured = iter(self._similarity(pairs))
            kept = [[self._noted(child, next(measured)) for child in children] for children in kept]
            kept = [[child for child in children if self._is_similar(child)] for children in kept]
        self.account["children"] += sum(map(len, kept))
        return kept

    def _new(self, document: Document, children: Sequence[Child]) -> list[Child]:
        seen = {_flat(document.text): "unchanged"}
        kept = []
        for child in children:
            flat = _flat(child.text)
            if not flat or flat in seen:
                self.account[seen.get(flat, "empty")] += 1
                continue
            seen[flat] = "alike"
            kept.append(child)
        return kept

    @staticmethod
    def _noted(child: Child, value: float) -> Child:
        return replace(child, notes={**child.notes, "similarity": round(value, 4)})

    def _is_similar(self, child: Child) -> bool:
        wanted, value = self.config.similarity, child.notes["similarity"]
        if wanted.least <= value <= wanted.most:
            return True
        self.account["too little similar" if value < wanted.least else "too similar"] += 1
        return False

    def _made(self, document: Document, children: Sequence[Child]) -> list[Document]:
        made = []
        for number, child in enumerate(children):
            digest = hashlib.blake2b(self._key(document, number), digest_size=4).hexdigest()
            lineage = {
                "parent": document.id,
                "group": document.group,
                "augmentation": {"step": self.name, **child.notes},
            }
            made.append(
                replace(
                    document,
                    id=f"{document.id}~{self.name}-{digest}",
                    text=child.text,
                    meta={**document.meta, **lineage},
                )
            )
        return made

    def _key(self, document: Document, number: int) -> bytes:
        return f"{self.name}\0{self.seed}\0{document.id}\0{number}".encode("utf-8", "surrogatepass")


class Drawing(Augmenter):
    """Makes each child on its own, by random numbers of its own."""

    @abstractmethod
    def children_of(self, document: Document, draw: random.Random, number: int) -> Child | None:
        """Child `number` of a document; None if nothing can be changed."""

    def children_of_all(self, documents: Sequence[Document]) -> list[list[Child]]:
        return [self._drawn(document) for document in documents]

    def draw(self, document: Document, number: int) -> random.Random:
        """The random numbers of one child."""
        return random.Random(hashlib.blake2b(self._key(document, number), digest_size=16).digest())

    def _drawn(self, document: Document) -> list[Child]:
        made = (self.children_of(document, self.draw(document, n), n) for n in range(self.config.children))
        return [child for child in made if child is not None]


def _flat(text: str) -> str:
    return " ".join(text.split()).casefold()
