"""New texts by translation into another language and back (Sennrich et al. 2016, arXiv:1511.06709).

Any two encoder-decoders make a way there and back; several ways (pivots) give several children. How well a way back
finds the original again is the mean log-probability of the original's tokens, given the translation, under the model
that translates back: near 0 where the translation kept the meaning, far below where it lost it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.data.augment.step import Augmenter, Child
from trivium.data.augment.writing import Decoding, Model, Units, Writer, nth_answers, units_of
from trivium.data.documents import Document


class Pivot(StrictModel):
    """One way there and back."""

    name: str
    """Of the language; children say through which they went."""
    there: Model
    """The model that translates into it."""
    back: Model
    """The model that translates back; it may be the same folder with another prefix."""


class Backtranslate(Augmenter):
    """Each sentence goes there and back on its own."""

    class Config(Decoding):
        """Settings of `backtranslate`."""

        pivots: list[Pivot] = Field(min_length=1)
        """The ways there and back; each gives `children` new documents."""
        least_quality: float | None = Field(None, le=0)
        """Children whose original is less probable (mean log-probability of a token) are thrown away."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._ways = [
            (
                pivot.name,
                Writer(pivot.there.path, pivot.there.prefix, config, seed=seed, where=f"pivots: {pivot.name}.there"),
                Writer(pivot.back.path, pivot.back.prefix, config, seed=seed, where=f"pivots: {pivot.name}.back"),
            )
            for pivot in config.pivots
        ]

    def parents(self) -> Sequence[Path]:
        folders = (path for pivot in self.config.pivots for path in (pivot.there.path, pivot.back.path))
        return [*(Path(path).expanduser() for path in dict.fromkeys(folders)), *super().parents()]

    def children_of_all(self, documents: Sequence[Document]) -> list[list[Child]]:
        texts = [units_of(document.text, self.config.unit) for document in documents]
        found: list[list[Child]] = [[] for _ in documents]
        for name, there, back in self._ways:
            for children, made in zip(found, self._through(name, there, back, texts), strict=True):
                children += made
        return found

    def _through(self, name: str, there: Writer, back: Writer, texts: Sequence[Units]) -> list[list[Child]]:
        """The children of one way: one translation there, several answers back."""
        units = [unit for text in texts for unit in text.units]
        abroad = [_first(given) for given in there.answers(units, 1)]
        returned = iter(back.answers([text for text in abroad if text], self.config.children))
        answers = [next(returned) if text else [] for text in abroad]
        lengths = [max(1, len(unit)) for unit in units]
        qualities = self._qualities(back, units, abroad)
        children: list[list[Child]] = []
        at = 0
        for text in texts:
            here = slice(at, at + len(text.units))
            at = here.stop
            weights = [
                length for length, quality in zip(lengths[here], qualities[here], strict=True) if quality is not None
            ]
            known = [quality for quality in qualities[here] if quality is not None]
            if not known:  # nothing came back
                children.append([])
                continue
            quality = round(sum(w * q for w, q in zip(weights, known, strict=True)) / sum(weights), 4)
            notes = {"pivot": name, "quality": quality}
            versions = [nth_answers(text.units, answers[here], n) for n in range(self.config.children)]
            made = [Child(text.joined(version), notes) for version in versions]
            if self.config.least_quality is not None and quality < self.config.least_quality:
                self.account["too little of the original is left"] += len(made)
                made = []
            children.append(made)
        return children

    def _qualities(self, back: Writer, units: Sequence[str], abroad: Sequence[str]) -> list[float | None]:
        """How probable each unit is, given its translation; None for one that was not translated."""
        asked = [number for number, text in enumerate(abroad) if text]
        found: list[float | None] = [None] * len(units)
        if asked:
            values = back.likelihoods([units[number] for number in asked], [abroad[number] for number in asked])
            for number, value in zip(asked, values, strict=True):
                found[number] = value
        return found


def _first(given: Sequence[Any]) -> str:
    """The translation of a unit; empty if there is none, or it was not finished."""
    return str(given[0].text) if given and given[0].ended else ""
