"""New texts that say the same in other words, written by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivium.data.augment.step import Augmenter, Child
from trivium.data.augment.writing import Decoding, Writer, nth_answers, units_of
from trivium.data.documents import Document


class Paraphrase(Augmenter):
    """Each sentence is rewritten on its own; child n is made of the n-th answers."""

    class Config(Decoding):
        """Settings of `paraphrase`."""

        model: str
        """Folder of the model, trained here with `seq2seq` or of another origin."""
        prefix: str = ""
        """Put before each text, such as `paraphrase: `."""

    def __init__(self, config: Any, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._writer = Writer(config.model, config.prefix, config, seed=seed, where="paraphrase.model")

    def parents(self) -> Sequence[Path]:
        return [Path(self.config.model).expanduser(), *super().parents()]

    def children_of_all(self, documents: Sequence[Document]) -> list[list[Child]]:
        texts = [units_of(document.text, self.config.unit) for document in documents]
        answers = iter(self._writer.answers([unit for text in texts for unit in text.units], self.config.children))
        found = []
        for text in texts:
            given = [next(answers) for _ in text.units]
            children = []
            for number in range(self.config.children):
                units = nth_answers(text.units, given, number)
                changed = sum(unit != old for unit, old in zip(units, text.units, strict=True))
                children.append(Child(text.joined(units), {"rewritten": changed, "units": len(units)}))
            found.append(children)
        return found
