"""Probabilities that mean what they say: temperature scaling, calibration error, and thresholds for the best F1.

Temperature scaling: Guo et al. 2017 (arXiv 1706.04599). What is fitted is measured on other rows: `crossed` fits on
each half of the rows and applies it to the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trivium.evaluation.intervals import Floats
from trivium.evaluation.metrics import Ints, one_hot

BINS = 15
_RANGE = (0.05, 20.0)
"""Temperatures outside say that the scores mean nothing."""

Fitted = TypeVar("Fitted")


@dataclass(frozen=True)
class Bin:
    """Rows whose probability lies between low and high: how many, the mean probability, and how often it was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def softmax(scores: Floats) -> Floats:
    """[N, K] -> [N, K]."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def sigmoid(scores: Floats) -> Floats:
    """Probabilities from scores, without overflow."""
    return np.where(scores >= 0, 1 / (1 + np.exp(-np.abs(scores))), 1 - 1 / (1 + np.exp(-np.abs(scores))))


def temperature(scores: Floats, truth: Floats | Ints) -> float:
    """The number by which scores are divided so that the truth is most likely.

    truth: [N] labels, or [N, K] of 0 and 1 (NaN: not known) for several labels. The loss is convex in 1 / temperature,
    so that the search cannot end in the wrong place. 1 where there is nothing to fit.
    """
    if not len(scores) or (truth.ndim == 1 and scores.shape[1] < 2):
        return 1.0
    low, high = np.log(1 / _RANGE[1]), np.log(1 / _RANGE[0])
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = _loss(scores * np.exp(left), truth), _loss(scores * np.exp(right), truth)
    while high - low > 1e-4:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = _loss(scores * np.exp(left), truth)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = _loss(scores * np.exp(right), truth)
    return float(np.exp(-(low + high) / 2))


def _loss(scores: Floats, truth: Floats | Ints) -> float:
    """Mean negative log-likelihood."""
    if truth.ndim == 1:
        highest = scores.max(axis=1)
        normaliser = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
        return float(np.mean(normaliser - scores[np.arange(len(truth)), truth.astype(np.int64)]))
    known = ~np.isnan(truth)
    return float(np.mean((np.logaddexp(0, scores) - np.where(known, truth, 0) * scores)[known])) if known.any() else 0.0


def reliability(confidence: Floats, right: Floats, bins: int = BINS) -> list[Bin]:
    """Rows by their probability; empty bins are left out."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for at in range(bins):
        here = place == at
        if here.any():
            found.append(
                Bin(
                    float(edges[at]),
                    float(edges[at + 1]),
                    int(here.sum()),
                    float(confidence[here].mean()),
                    float(right[here].mean()),
                )
            )
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: the mean distance of probability and share, over the rows."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / total if total else 0.0


def confidences(probabilities: Floats, truth: Floats | Ints) -> tuple[Floats, Floats]:
    """(probability, whether it came true) of what was chosen, or of each label that is known."""
    if truth.ndim == 1:
        right = one_hot(truth.astype(np.int64), probabilities.shape[1])
        chosen = probabilities.argmax(axis=1)
        rows = np.arange(len(truth))
        return probabilities[rows, chosen], right[rows, chosen]
    known = ~np.isnan(truth)
    return probabilities[known], truth[known].astype(np.float64)


def best_threshold(probabilities: Floats, truth: Floats) -> float:
    """The probability from which on a label is chosen so that its F1 is highest: halfway between two rows.

    0.5 where the label never applies. Of equally good thresholds the one nearest to 0.5.
    """
    known = ~np.isnan(truth)
    probabilities, truth = probabilities[known], truth[known]
    if not len(truth) or not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ordered, hits = probabilities[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    f1 = 2 * hits[last] / (last + 1 + truth.sum())
    below = np.append(ordered, 0.0)[last + 1]
    middles = (ordered[last] + below) / 2
    good = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middles[good[np.argmin(np.abs(middles[good] - 0.5))]])


def crossed(
    scores: Floats,
    truth: Floats | Ints,
    fit: Callable[[Floats, Floats | Ints], Fitted],
    apply: Callable[[Floats, Fitted], Floats],
) -> Floats:
    """`apply` to each half of the rows what was fitted on the other half: an honest picture of all rows."""
    result = np.array(scores, dtype=np.float64)
    even = np.arange(len(scores)) % 2 == 0
    for part, other in ((even, ~even), (~even, even)):
        if part.any():
            result[part] = apply(scores[part], fit(scores[other], truth[other]))
    return result
