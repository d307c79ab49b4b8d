"""New texts in which some words are replaced by synonyms of the same part of speech and form."""

from __future__ import annotations

import random
from typing import Any

from pydantic import Field

from trivium.data.augment.replacing import choices, replacements
from trivium.data.augment.step import Augmentation, Child, Drawing
from trivium.data.augment.thesaurus import open_thesaurus
from trivium.data.augment.words import protected_terms, rewritten, words_of
from trivium.data.documents import Document


class Synonyms(Drawing):
    """See `trivium.data.augment.replacing`."""

    class Config(Augmentation):
        """Settings of `synonyms`."""

        thesaurus: str = "small"
        """`small` (common English words, built in), `wordnet`, a folder of its files, or a list (.jsonl, .csv)."""
        share: float = Field(0.1, gt=0, le=1)
        """Share of a text's words that are replaced; at least one, and only words that have a synonym."""
        certainty: float = Field(0.8, ge=0, le=1)
        """A word is replaced only if its part of speech is at least this probable."""
        senses: int = Field(1, ge=1)
        """Of WordNet: how many meanings of a word count, the most frequent first."""
        usual: float = Field(0.5, ge=0, le=1)
        """Of WordNet: least share of the uses of a word that these meanings have."""
        inflect: bool = True
        """Of a list: take its words in their English inflections too."""
        protected: list[str] = Field(default_factory=list)
        """Terms that stay as they are, or files of them (`terms.txt`, one a line)."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._protected = protected_terms(config.protected)
        self._thesaurus = open_thesaurus(
            config.thesaurus, senses=config.senses, share=config.usual, inflect=config.inflect
        )

    def children_of(self, document: Document, draw: random.Random, number: int) -> Child | None:
        if self.config.thesaurus in ("small", "wordnet") and document.meta.get("language", "en") != "en":
            return None
        words = words_of(document.text, self._protected)
        chosen = choices(words, self._thesaurus, certainty=self.config.certainty)
        count = max(1, round(self.config.share * len(words)))
        changes = replacements(document.text, chosen, draw, count=count)
        return Child(rewritten(document.text, changes), {"replaced": min(count, len(chosen))}) if changes else None
