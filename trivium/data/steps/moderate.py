"""Harmful texts by category, told by a classifier: left out, set aside for people to judge, or kept with their scores.

What the step writes: `moderation.json` (thresholds, counts, a histogram of the scores of each category),
`borderline.jsonl` (documents so near a threshold that somebody should look) and `set-aside.jsonl` (whole documents).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from trivium.artifacts.writer import write_plain
from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.safety.linear import LinearClassifier, is_linear
from trivium.data.safety.moderation import (
    Classifier,
    ModelClassifier,
    Scores,
    WordClassifier,
    own_classifier,
    scored,
)
from trivium.data.step import CorpusStep, Dropped, Result
from trivium.errors import ConfigError, DataError
from trivium.nearest import nearest

BINS = 20
EXCERPT = 1000
"""Characters of a borderline document that are shown."""


class Moderate(CorpusStep):
    """See `trivium.data.safety.moderation`."""

    class Config(StrictModel):
        """Settings of `moderate`; one of `model`, `words` and `classifier` says who judges."""

        model: str | None = None
        """Folder of a model that gives labels to texts, or of a linear classifier; both are trained here."""
        words: str | None = None
        """YAML file with a list of words for each category."""
        classifier: str | None = None
        """Your own class, `package.module:Class`."""
        settings: dict[str, Any] = Field({})
        """Settings of your own class."""
        threshold: float = Field(0.5, ge=0, le=1)
        """Score from which on a text belongs to a category."""
        thresholds: dict[str, float] = Field({})
        """Other thresholds, by category; one above 1 switches a category off."""
        action: Literal["drop", "quarantine", "keep"] = "drop"
        """Leave documents out; set them aside, whole, in set-aside.jsonl; or keep them, with `meta.moderation`."""
        margin: float = Field(0.1, ge=0, le=1)
        """Documents whose decision hangs on a score this near to its threshold go to borderline.jsonl."""
        pieces: Literal["max", "mean", "first"] = "max"
        """Of texts longer than the model: the highest score of a piece, their mean, or only the beginning."""
        scores: bool = True
        """Keep the scores of documents in `meta.moderation`."""

        @model_validator(mode="after")
        def _one(self) -> Moderate.Config:
            given = [name for name in ("model", "words", "classifier") if getattr(self, name) is not None]
            if len(given) != 1:
                raise ValueError(f"name one of model, words and classifier, not {' and '.join(given) or 'none'}")
            if self.settings and self.classifier is None:
                raise ValueError("settings are those of your own class; name it as classifier, or leave them out")
            return self

    config: Config
    _classifier: Classifier | None = None

    def parents(self) -> Sequence[Path]:
        """The model or the lists: both decide."""
        return [Path(path).expanduser() for path in (self.config.model, self.config.words) if path is not None]

    def sketch(self, documents: Sequence[Document]) -> Mapping[str, bytes]:
        """Scores, and the documents that people should see."""
        classifier = self._made()
        values = scored(classifier, [document.text for document in documents])
        limits = self._limits(classifier.categories)
        near, aside = [], []
        for document, row in zip(documents, values, strict=True):
            distance = float((row - limits).max()) if len(limits) else -1.0
            if abs(distance) <= self.config.margin:
                near.append(_line(_appeal(document, row, limits, classifier.categories)))
            if distance >= 0 and self.config.action == "quarantine":
                aside.append(_line({**asdict(document), "meta": dict(document.meta)}))
        head = _line({"categories": list(classifier.categories), "documents": len(documents)})
        return {"scores": head + values.tobytes(), "borderline": b"".join(near), "aside": b"".join(aside)}

    def decide(self, sketches: Sequence[Mapping[str, Path]], folder: Path) -> Sequence[Any]:
        """The scores of each part; writes the files for people."""
        counts = _Counts(self)
        for sketch in sketches:
            counts.add(*_read(sketch["scores"]))
        names = {"borderline": "borderline.jsonl", "aside": "set-aside.jsonl"}
        for name, file in names.items():
            if name == "borderline" or self.config.action == "quarantine":
                write_plain(folder / file, (sketch[name].read_bytes() for sketch in sketches))
        write_plain(folder / "moderation.json", iter([json.dumps(counts.report(), indent=1).encode()]))
        return _Decisions([sketch["scores"] for sketch in sketches])

    def apply_all(self, documents: Sequence[Document], decision: Any) -> list[Result]:
        """Drops, sets aside or keeps."""
        categories: list[str] = decision["categories"]
        values = np.frombuffer(base64.b64decode(decision["scores"]), np.float32).reshape(
            len(documents), len(categories)
        )
        limits = self._limits(categories)
        return [self._result(*pair, limits, categories) for pair in zip(documents, values, strict=True)]

    def _result(self, document: Document, row: Scores, limits: Scores, categories: Sequence[str]) -> Result:
        over = [at for at in np.argsort(limits - row, kind="stable").tolist() if row[at] >= limits[at]]
        if over and self.config.action != "keep":
            reason = categories[over[0]]
            evidence = ", ".join(f"{categories[at]} {row[at]:.2f}, threshold {limits[at]:.2f}" for at in over)
            if self.config.action == "drop":
                return Dropped(reason, evidence)
            # The pipeline counts an error in place of a result as quarantined; `Result` has no word for it.
            return DataError(f"set aside: {reason}", where=document.source, value=evidence)
        if not self.config.scores:
            return document
        judged: dict[str, Any] = {
            "scores": {name: round(float(value), 4) for name, value in zip(categories, row, strict=True)}
        }
        if over:
            judged["flagged"] = [categories[at] for at in over]
        return replace(document, meta={**document.meta, "moderation": judged})

    def _made(self) -> Classifier:
        config = self.config
        if self._classifier is None:
            if config.model is not None and is_linear(config.model):
                self._classifier = LinearClassifier(config.model)
            elif config.model is not None:
                self._classifier = ModelClassifier(config.model, pieces=config.pieces)
            elif config.words is not None:
                self._classifier = WordClassifier(config.words)
            else:
                self._classifier = own_classifier(str(config.classifier), config.settings)
        return self._classifier

    def _limits(self, categories: Sequence[str]) -> Scores:
        """[K] the threshold of each category."""
        for name in self.config.thresholds:
            if name not in categories:
                close = nearest(name, categories)
                raise ConfigError(
                    "the classifier has no such category",
                    where="thresholds",
                    value=name,
                    fix=f"did you mean {close}?" if close else f"known are {', '.join(categories)}",
                )
        given = [self.config.thresholds.get(name, self.config.threshold) for name in categories]
        return np.array(given, dtype=np.float32)


class _Counts:
    """What the report says of all scores."""

    def __init__(self, step: Moderate) -> None:
        self.step = step
        self.categories: list[str] = []
        self.documents = self.flagged = self.borderline = 0

    def add(self, categories: list[str], values: Scores) -> None:
        limits = self.step._limits(categories)
        if not self.categories:
            self.categories, self.limits = categories, limits
            self.bins = np.zeros((len(categories), BINS), dtype=np.int64)
            self.over = np.zeros(len(categories), dtype=np.int64)
        distance = (values - limits).max(axis=1) if len(categories) else np.zeros(0)
        self.documents += len(values)
        self.flagged += int((distance >= 0).sum())
        self.borderline += int((np.abs(distance) <= self.step.config.margin).sum())
        self.over += (values >= limits).sum(axis=0)
        for at, column in enumerate(values.T):
            self.bins[at] += np.bincount(np.minimum((column * BINS).astype(int), BINS - 1), minlength=BINS)

    def report(self) -> dict[str, Any]:
        """JSON values: counts, and `histogram` [20], how many scores lie in each twentieth."""
        by_category = {
            name: {
                "threshold": round(float(self.limits[at]), 4),
                "flagged": int(self.over[at]),
                "histogram": self.bins[at].tolist(),
            }
            for at, name in enumerate(self.categories)
        }
        counts = {"documents": self.documents, "flagged": self.flagged, "borderline": self.borderline}
        return {**counts, "action": self.step.config.action, "categories": by_category}


class _Decisions(Sequence[Any]):
    """The decision about each part, read when it is asked for: all of them may not fit into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Decisions(self._files[place])
        categories, values = _read(self._files[place])
        return {"categories": categories, "scores": base64.b64encode(values.tobytes()).decode()}

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


def _read(file: Path) -> tuple[list[str], Scores]:
    """(categories, scores [N, K]) of a sketch."""
    head, _, data = file.read_bytes().partition(b"\n")
    content = json.loads(head)
    names: list[str] = content["categories"]
    return names, np.frombuffer(data, dtype=np.float32).reshape(content["documents"], len(names))


def _appeal(document: Document, row: Scores, limits: Scores, categories: Sequence[str]) -> dict[str, Any]:
    """What somebody needs to judge a document."""
    decisive = int(np.argmax(row - limits))
    return {
        "id": document.id,
        "source": document.source,
        "category": categories[decisive],
        "score": round(float(row[decisive]), 4),
        "threshold": round(float(limits[decisive]), 4),
        "flagged": bool(row[decisive] >= limits[decisive]),
        "text": document.text if len(document.text) <= EXCERPT else document.text[:EXCERPT] + "…",
    }


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
