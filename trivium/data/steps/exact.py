"""Exact duplicates: of texts that are equal, or equal up to case, punctuation and white space, one stays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from trivium.config import StrictModel
from trivium.data.dedup.buckets import equal_rows
from trivium.data.dedup.keeping import Action, Keep, apply_decision, check_keep, roster, settle, sketched
from trivium.data.dedup.words import text_hash
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Result

_NOT_WORDS = re.compile(r"[\W_]+")


class Exact(CorpusStep):
    """Compares 16 bytes of the SHA-256 of each text; takes 25 bytes of memory a document."""

    class Config(StrictModel):
        """Settings of `exact`."""

        compare: Literal["text", "normalised"] = "text"
        """The text as it is, or only its letters and digits, without case and spaces."""
        keep: Keep = "first"
        """Which one stays: the first, the longest, or the one with the highest value of `field`."""
        field: str | None = None
        """Name of a number in meta (keep: highest)."""
        action: Action = "drop"
        """Leave the others out, or keep all and write the id of the first into meta: cluster."""

        @model_validator(mode="after")
        def _has_field(self) -> Exact.Config:
            check_keep(self.keep, self.field)
            return self

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        texts = (document.text for document in documents)
        if self.config.compare == "normalised":
            texts = (normalised(text) for text in texts)
        return {
            "exact": b"".join(map(text_hash, texts)),
            **roster(documents, keep=self.config.keep, field=self.config.field),
        }

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        roots = equal_rows(sketched(sketches, "exact", "<u8", 2))
        return settle(roots, sketches, folder, likeness=lambda one, other: np.ones(len(one)), action=self.config.action)

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        return apply_decision(documents, decision)


def normalised(text: str) -> str:
    """Only letters and digits, composed, without case; a text without any stays as it is."""
    return _NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold()) or text
