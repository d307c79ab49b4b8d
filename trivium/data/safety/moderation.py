"""Classifiers that say how likely a text is harmful, by category: a model, a list of words, or the user's own class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trivium.data.safety.phrases import Phrases, read_lists
from trivium.errors import ConfigError

Scores = NDArray[np.float32]
Pieces = Literal["max", "mean", "first"]


class Classifier(Protocol):
    """Scores texts by category.

    categories: their names, in the order of the scores.
    """

    categories: Sequence[str]

    def scores(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """[N, categories], each from 0 (harmless) to 1. Must not depend on which texts come together."""


class ModelClassifier:
    """A model folder with a head for labels of texts, trained by Trivium or in the format of Hugging Face.

    pieces: what stands for a text that is longer than the model reads: the highest score or the
            mean of its pieces, or the first one.
    """

    def __init__(self, folder: str | Path, *, pieces: Pieces = "max") -> None:
        import trivium

        self.model = trivium.load(Path(folder).expanduser())
        config = self.model.module.config
        if config.head != "sequence" or config.problem == "regression":
            raise ConfigError(
                "this model gives no labels to texts",
                where=folder,
                value=f"head: {config.head}",
                fix="train one: trivium train recipes/moderation.yaml",
            )
        self.categories: Sequence[str] = config.labels
        self.pieces = pieces

    def scores(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The probability of each category."""
        cut = [self._cut(text) for text in texts]
        known = self.model.classify([piece for pieces in cut for piece in pieces], truncate=True)
        found = np.array([[one.scores[name] for name in self.categories] for one in known], dtype=np.float64)
        result, at = [], 0
        for pieces in cut:
            rows = found[at : at + len(pieces)]
            at += len(pieces)
            result.append((rows.mean(axis=0) if self.pieces == "mean" else rows.max(axis=0)).tolist())
        return result

    def _cut(self, text: str) -> list[str]:
        """The text in pieces that fit the model, special tokens left room for."""
        room = max(8, self.model.context_length - 4)
        if not text.strip():
            return ["."]
        if self.pieces == "first" or len(text.encode("utf-8", "replace")) < room:  # no token is shorter than a byte
            return [text]
        ids = self.model.tokenizer.encode(text)
        pieces = [self.model.tokenizer.decode(ids[at : at + room]) for at in range(0, len(ids), room)]
        return [piece for piece in pieces if piece.strip()] or ["."]


class WordClassifier:
    """Lists of words by category: one of them scores 0.5, each further one halves what is missing to 1."""

    def __init__(self, path: str | Path) -> None:
        lists = read_lists(Path(path).expanduser())
        self.categories: Sequence[str] = tuple(lists)
        self._phrases = Phrases(lists)

    def scores(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """1 - 0.5 ** different words, for each category."""
        return [self._scores(text) for text in texts]

    def _scores(self, text: str) -> list[float]:
        found = {(label, phrase) for label, phrase, _, _ in self._phrases.find(text)}
        return [1 - 0.5 ** sum(label == name for label, _ in found) for name in self.categories]


def own_classifier(name: str, settings: Mapping[str, Any]) -> Classifier:
    """The class `package.module:Class` with a nested Config, made from its settings."""
    from trivium.registry import component

    if ":" not in name:
        raise ConfigError("a class is named with its module", value=name, fix="write package.module:Class")
    cls = component("data/steps", name, outside=True, where="classifier")
    made: Classifier = cls(cls.Config.model_validate(dict(settings)))
    return made


def scored(classifier: Classifier, texts: Sequence[str]) -> Scores:
    """[N, K] scores in steps of 1/10,000, so that rounding of a batch changes nothing; ConfigError if they are none."""
    shape = (len(texts), len(classifier.categories))
    values = np.array(classifier.scores(texts), dtype=np.float64) if texts else np.zeros(shape)
    if values.size and (values.shape != shape or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1):
        raise ConfigError(
            "the classifier must give each text a score from 0 to 1 for each of its categories",
            value=f"shape {values.shape}, wanted {shape}",
            fix="see docs/data/privacy-and-safety.md",
        )
    return np.round(values, 4).astype(np.float32)
