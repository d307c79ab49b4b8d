"""Documents that say the same in other words, by the vectors of a model folder (SemDeDup)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trivium.data.dedup.keeping import Keeping, apply_decision, roster, settle, sketched
from trivium.data.dedup.meaning import grouped, near_in_groups
from trivium.data.dedup.shelves import Shelf
from trivium.data.dedup.words import Ints
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Result

_EACH_PAIR = 20_000
"""Documents up to which all pairs are compared."""


class Semantic(CorpusStep):
    """Vectors take 2 bytes a dimension on the disk and 4 in memory (3 kB a document with 768 dimensions)."""

    class Config(Keeping):
        """Settings of `semantic`."""

        model: str
        """Folder of an encoder, a decoder or an encoder-decoder."""
        threshold: float = Field(0.95, gt=0, le=1)
        """Least cosine of vectors that mean the same."""
        pooling: Literal["mean", "first", "last", "max"] = "mean"
        """How the vectors of a text's tokens become one."""
        characters: int = Field(2000, ge=10)
        """How much of a text is read, from its beginning."""
        groups: int | None = Field(None, ge=1)
        """Groups of the k-means; only documents of one are compared. Default: one up to 20,000 documents, then sqrt."""

    def parents(self) -> Sequence[Path]:
        return [Path(self.config.model)]

    @cached_property
    def _model(self) -> Any:
        from trivium import load

        return load(self.config.model)

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        vectors = np.zeros((0, self._model.module.config.hidden_size), dtype=np.float32)
        if documents:
            texts = [self._beginning(document.text) for document in documents]
            vectors = self._model.embed(texts, pooling=self.config.pooling).numpy()
        return {
            "vectors": vectors.astype("<f2").tobytes(),
            **roster(documents, keep=self.config.keep, field=self.config.field),
        }

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        count = len(sketched(sketches, "held_out", "u1"))
        width = sum(sketch["vectors"].stat().st_size for sketch in sketches) // 2 // max(1, count)
        vectors = Shelf(sketches, "vectors", "<f2", width=max(1, width)).rows(np.arange(count)).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        groups = self.config.groups or (1 if count <= _EACH_PAIR else int(count**0.5))
        places = grouped(vectors, min(groups, max(1, count)), seed=self.seed)
        roots = near_in_groups(np.arange(count, dtype=np.int64), vectors, places, self.config.threshold)

        def likeness(one: Ints, other: Ints) -> NDArray[np.float64]:
            return np.asarray(np.minimum((vectors[one] * vectors[other]).sum(axis=1), 0.9999), dtype=np.float64)

        return settle(roots, sketches, folder, likeness=likeness, action=self.config.action)

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        return apply_decision(documents, decision)

    def _beginning(self, text: str) -> str:
        """As much of a text as the settings and the model allow; never nothing."""
        text = text[: self.config.characters] or " "
        tokenizer, room = self._model.tokenizer, self._model.module.config.max_positions - 2
        ids = tokenizer.encode(text)
        return text if len(ids) <= room else tokenizer.decode(ids[:room])
