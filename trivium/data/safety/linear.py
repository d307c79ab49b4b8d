"""A linear classifier of texts by category: TF-IDF of hashed words, pairs of words and runs of characters.

It learns from a thousand rows in seconds, where a network from random weights needs many more, and reads a million
characters a second. For each category its weights w and bias b minimise

    sum_i c_i log(1 + exp(-y_i (w x_i + b))) + |w|^2 / (2 C)

over the rows whose label is known; c makes both sides of a category weigh the same. Newton's method with conjugate
gradients (Lin, Weng and Keerthi 2008). x has length 1; the hash of a feature is its CRC-32, modulo 2^18.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.writer import write_artifact, write_file, write_plain
from trivium.data.intake import Intake
from trivium.data.labels import read_label_rows, switch_of
from trivium.data.reading import source_parent
from trivium.errors import DataError, ModelError
from trivium.recipe import LabelSettings, Source

Floats = NDArray[np.float64]

KIND = "linear classifier"
FACTS, WEIGHTS = "classifier.json", "classifier.safetensors"
_BITS = 18
_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\w+|[^\w\s]")
_RUNS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Rows:
    """Texts as sparse rows of equal length 1: `value` of feature `column` in `row`; N of them."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    value: Floats
    number: int

    def times(self, weights: Floats) -> Floats:
        """[features] -> [N]."""
        sums: Floats = np.bincount(self.row, self.value * weights[self.column], minlength=self.number).astype(
            np.float64
        )
        return sums

    def transposed_times(self, values: Floats) -> Floats:
        """[N] -> [features]."""
        sums: Floats = np.bincount(self.column, self.value * values[self.row], minlength=1 << _BITS).astype(np.float64)
        return sums


def features(text: str) -> Counter[int]:
    """How often each hashed feature occurs."""
    folded = text.casefold()
    words = _WORD.findall(folded)
    names = [f"w {word}" for word in words] + [f"p {one} {two}" for one, two in pairwise(words)]
    for piece in _PIECE.findall(folded):
        padded = f" {piece[:40]} "
        names += [f"c {padded[at : at + run]}" for run in _RUNS for at in range(max(1, len(padded) - run + 1))]
    return Counter(zlib.crc32(name.encode("utf-8", "replace")) & ((1 << _BITS) - 1) for name in names)


def rows_of(counted: Sequence[Mapping[int, int]], weight: Floats) -> Rows:
    """TF-IDF of counted features; `weight` [features] is the IDF."""
    lengths = [len(one) for one in counted]
    column = np.fromiter((name for one in counted for name in one), dtype=np.int64, count=sum(lengths))
    count = np.fromiter((number for one in counted for number in one.values()), dtype=np.float64, count=sum(lengths))
    row = np.repeat(np.arange(len(counted)), lengths)
    value = (1 + np.log(count)) * weight[column]
    norm = np.sqrt(np.bincount(row, value * value, minlength=len(counted)))
    return Rows(row, column, value / np.maximum(norm[row], 1e-12), len(counted))


def train_linear(
    source: str | Path,
    target: Path,
    *,
    text: str | None,
    labels: Sequence[str],
    strength: float = 10.0,
    replace: bool = False,
) -> dict[str, Any]:
    """Train on rows with columns of 0 and 1 (empty: not known), and write the folder; returns its facts.

    strength: C above; larger ones follow the training rows more closely.
    """
    settings = LabelSettings(text=text, label=list(labels))
    rows = list(read_label_rows(Source(path=str(source)), settings, Intake()))
    truth = np.array([[_known(row.row.where, cell) for cell in row.value] for row in rows])
    counted = [features(" ".join(row.texts)) for row in rows]
    seen = np.zeros(1 << _BITS)
    for one in counted:
        seen[list(one)] += 1
    weight = np.log((1 + len(counted)) / (1 + seen)) + 1
    known = rows_of(counted, weight)
    found = [_fit(known, column, strength, name, source) for column, name in zip(truth.T, labels, strict=True)]
    facts = {
        "categories": list(labels),
        "rows": len(rows),
        "positives": {name: int(np.nansum(column)) for name, column in zip(labels, truth.T, strict=True)},
        "strength": strength,
        "bias": [bias for _, bias in found],
    }
    parents = [source_parent(Source(path=str(source)), "training data")]
    with write_artifact(target, kind=KIND, parents=parents, config={"strength": strength}, replace=replace) as folder:
        from safetensors.numpy import save

        tensors = {"weights": np.stack([w for w, _ in found]).astype(np.float32), "idf": weight.astype(np.float32)}
        write_plain(folder / WEIGHTS, iter([save(tensors)]))
        write_file(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False))
    return facts


def _known(where: str, cell: Any) -> float:
    switch = np.nan if cell is None or cell == "" else switch_of(cell)
    if switch is None:
        raise DataError("a label is neither 0 nor 1", where=where, value=cell, fix="write 0, 1, or nothing")
    return float(switch)


def _fit(rows: Rows, labels: Floats, strength: float, name: str, source: str | Path) -> tuple[Floats, float]:
    """(weights, bias) of one category."""
    known = ~np.isnan(labels)
    positive = float((labels == 1).sum())
    if not 0 < positive < known.sum():
        raise DataError(
            "a category always applies, or never, so it cannot be learnt",
            where=source,
            value=name,
            fix="add rows, or leave it out",
        )
    sign = np.where(labels == 1, 1.0, -1.0)
    cost = strength * np.where(labels == 1, known.sum() / (2 * positive), known.sum() / (2 * (known.sum() - positive)))
    cost = np.where(known, cost, 0.0)
    weights, bias = np.zeros(1 << _BITS), 0.0
    for _ in range(30):
        probability = 1 / (1 + np.exp(-np.clip(sign * (rows.times(weights) + bias), -500, 500)))
        slope = cost * (probability - 1) * sign
        gradient, bias_gradient = weights + rows.transposed_times(slope), float(slope.sum())
        if np.sqrt(gradient @ gradient + bias_gradient**2) < 1e-3 * strength:
            break
        step, bias_step = _newton(rows, cost * probability * (1 - probability), gradient, bias_gradient)
        weights, bias = weights - step, bias - bias_step
    return weights, bias


def _newton(rows: Rows, curvature: Floats, gradient: Floats, bias_gradient: float) -> tuple[Floats, float]:
    """The Newton step by conjugate gradients on (I + X^T D X)."""
    target = np.append(gradient, bias_gradient)
    found, rest = np.zeros_like(target), target.copy()
    direction, size = rest.copy(), float(rest @ rest)
    goal = 1e-4 * size
    for _ in range(60):
        inside = curvature * (rows.times(direction[:-1]) + direction[-1])
        product = np.append(direction[:-1] + rows.transposed_times(inside), inside.sum() + 1e-6 * direction[-1])
        length = size / float(direction @ product)
        found += length * direction
        rest -= length * product
        size, before = float(rest @ rest), size
        if size < goal:
            break
        direction = rest + size / before * direction
    return found[:-1], float(found[-1])


class LinearClassifier:
    """A folder that `train_linear` wrote."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder).expanduser()
        try:
            from safetensors.numpy import load

            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            tensors = load((path / WEIGHTS).read_bytes())
            self.categories: Sequence[str] = tuple(facts["categories"])
            self._bias = np.array(facts["bias"], dtype=np.float64)
            self._weights, self._idf = tensors["weights"].astype(np.float64), tensors["idf"].astype(np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError("the folder holds no linear classifier", where=path, value=str(error)) from error
        if self._weights.shape != (len(self.categories), 1 << _BITS) or self._bias.shape != (len(self.categories),):
            raise ModelError("the linear classifier does not fit its categories", where=path)

    def scores(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The probability of each category."""
        rows = rows_of([features(text) for text in texts], self._idf)
        margins = np.stack([rows.times(weights) for weights in self._weights], axis=1) + self._bias
        found: list[list[float]] = (1 / (1 + np.exp(-np.clip(margins, -500, 500)))).tolist()
        return found


def is_linear(folder: str | Path) -> bool:
    """Whether a folder holds such a classifier."""
    return (Path(folder).expanduser() / FACTS).is_file()
