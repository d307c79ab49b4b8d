"""Text of test sets is taken out of training data, with the passage that was found as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from trivium.config import StrictModel
from trivium.data.dedup.words import word_places
from trivium.data.documents import Document
from trivium.data.intake import Intake
from trivium.data.sealing import is_sealed, load_sealed
from trivium.data.splits.overlap import NGRAM, Finder, Hit, build_index, excerpt, stretches
from trivium.data.splits.passages import rows_or_documents
from trivium.data.step import Dropped, Result, Step, listed
from trivium.recipe import Source

_TOGETHER = 64


class Decontaminate(Step):
    """Finds runs of words that a test set has too; see `trivium.data.splits.overlap`."""

    class Config(StrictModel):
        """Settings of `decontaminate`."""

        against: Annotated[list[str], BeforeValidator(listed)] = Field(min_length=1)
        """Sealed sets (folders of `trivium data seal`), or files of rows or documents."""
        ngram: int = Field(NGRAM, ge=5, le=100)
        """Words in a run (of files; a sealed set keeps its own): 13 in GPT-3, 10 in Llama 2."""
        least_share: float = Field(0.0, ge=0, le=1)
        """Least share of a document's words that must lie in such runs; 0: one run is enough (GPT-3)."""
        action: Literal["drop", "cut"] = "drop"
        """Leave the document out, or cut the runs out of it and keep the pieces (GPT-3)."""
        window: int = Field(200, ge=0)
        """Characters cut away on both sides of a run (action: cut)."""
        least_piece: int = Field(200, ge=1)
        """Shorter pieces are left out (action: cut)."""
        most_pieces: int = Field(10, ge=1)
        """A document that falls into more pieces is left out as a whole (action: cut)."""

    def parents(self) -> Sequence[Path]:
        return [Path(path) for path in self.config.against]

    @cached_property
    def _finders(self) -> list[_Named]:
        found = []
        for path in self.config.against:
            if is_sealed(Path(path)):
                index = load_sealed(Path(path)).index
            else:
                index = build_index(rows_or_documents(Source(path=path), Intake()), ngram=self.config.ngram)
            found.append(_Named(path, Finder(index)))
        return found

    def apply(self, document: Document) -> Result:
        return self.apply_all([document])[0]

    def apply_all(self, documents: Sequence[Document]) -> list[Result]:
        results: list[Result] = list(documents)
        for start in range(0, len(documents), _TOGETHER):
            texts = [document.text for document in documents[start : start + _TOGETHER]]
            hits: dict[int, list[tuple[_Named, Hit]]] = {}
            for named in self._finders:
                for text, found in groupby(named.finder.find(texts), key=lambda hit: hit.text):
                    hits.setdefault(text, []).extend((named, hit) for hit in found)
            for text, pairs in hits.items():
                results[start + text] = self._decided(documents[start + text], pairs)
        return results

    def _decided(self, document: Document, found: Sequence[tuple[_Named, Hit]]) -> Result:
        spans = stretches([hit for _, hit in found])
        places = word_places(document.text)
        share = sum(end - first for first, end in spans) / len(places)
        if share < self.config.least_share:
            return document
        named, hit = found[0]
        from_it = [other for name, other in found if name is named and other.row == hit.row]
        evidence = (
            f"{Path(named.path).name}, row {named.finder.index.names[hit.row]}, {share:.0%} of the words: "
            f"{excerpt(document.text, from_it)}"
        )
        if self.config.action == "drop":
            return Dropped("text of a test set", evidence)
        return self._cut(document, [(int(places[a, 0]), int(places[b - 1, 1])) for a, b in spans], evidence)

    def _cut(self, document: Document, spans: Sequence[tuple[int, int]], evidence: str) -> Result:
        """The pieces between the runs."""
        text, window = document.text, self.config.window
        edges = [0, *(place for a, b in spans for place in (max(0, a - window), b + window)), len(text)]
        pieces = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
        pieces = [piece for piece in pieces if len(piece) >= self.config.least_piece]
        if not pieces:
            return Dropped("text of a test set", evidence)
        if len(pieces) > self.config.most_pieces:
            return Dropped("too many pieces around text of a test set", evidence)
        return [
            replace(document, id=f"{document.id}#{number}", text=piece, meta={**document.meta, "parent": document.id})
            for number, piece in enumerate(pieces)
        ]


@dataclass(frozen=True, eq=False)
class _Named:
    path: str
    finder: Finder
