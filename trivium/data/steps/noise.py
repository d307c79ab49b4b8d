"""New texts with slips in them: neighbouring keys, misread letters, swapped, missing and doubled ones."""

from __future__ import annotations

import random
from typing import Any

from pydantic import Field, field_validator

from trivium.data.augment.noise import KINDS, Kind, Layout, neighbours, slip
from trivium.data.augment.step import Augmentation, Child, Drawing
from trivium.data.augment.words import protected_terms, rewritten, words_of
from trivium.data.documents import Document
from trivium.errors import ConfigError


class Noise(Drawing):
    """See `trivium.data.augment.noise`."""

    class Config(Augmentation):
        """Settings of `noise`."""

        rate: float = Field(0.03, gt=0, le=1)
        """Share of the letters at which a slip happens; at least one in a text."""
        kinds: dict[Kind, float] = Field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
        """Which slips (keyboard, ocr, swap, delete, repeat), and how often relative to each other."""
        layout: Layout = "qwerty"
        """The keyboard whose neighbouring keys are hit."""
        protected: list[str] = Field(default_factory=list)
        """Terms that stay as they are, or files of them (`terms.txt`, one a line)."""

        @field_validator("kinds")
        @classmethod
        def _some_kind(cls, kinds: dict[Kind, float]) -> dict[Kind, float]:
            if not kinds or min(kinds.values()) < 0 or not any(kinds.values()):
                raise ConfigError(
                    "kinds needs a weight above 0", where="kinds", value=kinds, fix="kinds: {keyboard: 1}"
                )
            return kinds

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._protected = protected_terms(config.protected)
        self._near = neighbours(config.layout)
        self._kinds = [kind for kind, weight in sorted(config.kinds.items()) if weight > 0]
        self._weights = [config.kinds[kind] for kind in self._kinds]

    def children_of(self, document: Document, draw: random.Random, number: int) -> Child | None:
        words = words_of(document.text, self._protected)
        letters = [(word, at) for word in words for at in range(len(word.text))]
        wanted = max(1, round(self.config.rate * len(letters)))
        changes: list[tuple[int, int, str]] = []
        taken: set[int] = set()
        draw.shuffle(letters)
        for word, at in letters:
            if len(changes) == wanted:
                break
            kind = draw.choices(self._kinds, self._weights)[0]
            made = slip(word.text, at, kind, draw, near=self._near)
            start = word.start + at
            if made is None or taken & set(range(start, start + made[0])):
                continue
            taken |= set(range(start, start + made[0]))
            changes.append((start, start + made[0], made[1]))
        return Child(rewritten(document.text, changes), {"slips": len(changes)}) if changes else None
