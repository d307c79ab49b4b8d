"""Exact duplicates: of texts that are equal, or equal up to case, punctuation and white space, one stays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trivium.data.dedup.buckets import equal_rows
from trivium.data.dedup.keeping import Keeping, apply_decision, roster, settle, sketched
from trivium.data.dedup.words import text_hash
from trivium.data.documents import Document
from trivium.data.step import CorpusStep, Result

_NOT_WORDS = re.compile(r"[\W_]+")
_VARIANT = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # marks that choose a picture of the same sign


class Exact(CorpusStep):
    """Compares 16 bytes of the SHA-256 of each text; takes 25 bytes of memory a document."""

    class Config(Keeping):
        """Settings of `exact`."""

        compare: Literal["text", "normalised"] = "text"
        """The text as it is, or only its letters, their marks and digits, without case and spaces."""

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
    """Only letters, their marks and digits, composed, without case; a text without any stays as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORDS.sub("" if folded.isascii() else _marks, folded) or text


def _marks(between: re.Match[str]) -> str:
    """The combining marks among what is no letter: vowels of Indic scripts, say, which tell words apart."""
    found = (c for c in between[0] if unicodedata.category(c)[0] == "M" and not _VARIANT.match(c))
    return "".join(found)
