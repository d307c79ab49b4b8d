"""Figures for labels and numbers, each as a statistic of weighted rows (see `intervals`).

Shapes: N rows, K labels, B resamples. Definitions are those of scikit-learn; what is not defined is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trivium.evaluation.intervals import Floats, precision_recall_f1, ratio

Ints = NDArray[np.int64]


def one_hot(labels: Ints, number: int) -> Floats:
    """[N] -> [N, K]."""
    marks: Floats = (labels[:, None] == np.arange(number)).astype(np.float64)
    return marks


def confusion(truth: Ints, chosen: Ints, number: int) -> Ints:
    """[K, K]: rows are the truth, columns what was chosen."""
    counts: Ints = np.bincount(truth * number + chosen, minlength=number * number).reshape(number, number)
    return counts


def single_label(truth: Ints, scores: Floats, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Accuracy, macro figures, log loss, and precision, recall and F1 of each label.

    truth: [N].  scores: [N, K] probabilities.  weights: [B, N].
    """
    number = len(names)
    chosen = scores.argmax(axis=1)
    picked, true = one_hot(chosen, number), one_hot(truth, number)
    right = weights @ (picked * true)
    precision, recall, f1 = precision_recall_f1(right, weights @ picked, weights @ true)
    total = weights.sum(axis=1)
    certainty = np.log(np.maximum(scores[np.arange(len(truth)), truth], 1e-15))
    figures = {
        "accuracy": ratio(right.sum(axis=1), total),
        "macro_precision": precision.mean(axis=1),
        "macro_recall": recall.mean(axis=1),
        "macro_f1": f1.mean(axis=1),
        "log_loss": ratio(-(weights @ certainty), total),
    }
    for at, name in enumerate(names):
        figures |= {f"precision/{name}": precision[:, at], f"recall/{name}": recall[:, at], f"f1/{name}": f1[:, at]}
    return figures


def multi_label(
    truth: Floats, scores: Floats, thresholds: Floats, weights: Floats, names: Sequence[str]
) -> dict[str, Floats]:
    """Micro and macro figures, exact match, and those of each label.

    truth: [N, K], 1 where the label applies, 0 where not, NaN where it is not known (and does not count).
    """
    known = ~np.isnan(truth)
    true = np.where(known, truth, 0.0)
    picked = ((scores >= thresholds) & known).astype(np.float64)
    right, chosen, there = weights @ (picked * true), weights @ picked, weights @ true
    precision, recall, f1 = precision_recall_f1(right, chosen, there)
    micro = precision_recall_f1(right.sum(axis=1), chosen.sum(axis=1), there.sum(axis=1))
    exact = ((picked == true) | ~known).all(axis=1).astype(np.float64)
    figures = {
        "micro_precision": micro[0],
        "micro_recall": micro[1],
        "micro_f1": micro[2],
        "macro_f1": f1.mean(axis=1),
        "exact_match": ratio(weights @ exact, weights.sum(axis=1)),
    }
    for at, name in enumerate(names):
        figures |= {f"precision/{name}": precision[:, at], f"recall/{name}": recall[:, at], f"f1/{name}": f1[:, at]}
    return figures


def ranking(truth: Floats, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """([B] AUROC, [B] average precision) of one label: how well its scores put what applies before what does not.

    truth: [N] 0 or 1.  scores: [N].  Rows with equal scores count as one step of the curve.
    """
    order = np.argsort(-scores, kind="stable")
    truth, scores, weights = truth[order], scores[order], weights[:, order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, dtype=np.int64)
    hits = np.cumsum(weights * truth, axis=1)[:, last]
    misses = np.cumsum(weights * (1 - truth), axis=1)[:, last]
    if not len(last):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    zero = np.zeros((len(weights), 1))
    steps_up = np.diff(np.concatenate([zero, hits], axis=1), axis=1)
    steps_right = np.diff(np.concatenate([zero, misses], axis=1), axis=1)
    area = (steps_right * (hits - steps_up / 2)).sum(axis=1)
    auroc = ratio(area, hits[:, -1] * misses[:, -1])
    precision = ratio(hits, hits + misses, empty=0.0)
    return auroc, ratio((precision * steps_up).sum(axis=1), hits[:, -1])


def rankings(truth: Floats, scores: Floats, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """AUROC and average precision of each label, and their means over the labels that have them."""
    figures: dict[str, Floats] = {}
    areas, precisions = [], []
    for at, name in enumerate(names):
        known = ~np.isnan(truth[:, at])
        area, precision = ranking(truth[known, at], scores[known, at], weights[:, known])
        figures |= {f"auroc/{name}": area, f"average_precision/{name}": precision}
        areas.append(area)
        precisions.append(precision)
    return {"macro_auroc": _mean(areas), "macro_average_precision": _mean(precisions), **figures}


def _mean(columns: Sequence[Floats]) -> Floats:
    """[B] mean of the columns that are defined."""
    values = np.stack(columns, axis=1)
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def regression(truth: Floats, predicted: Floats, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """Mean absolute error, root mean squared error, R2, Pearson and Spearman correlation of each number.

    truth, predicted: [N, K].
    """
    figures: dict[str, Floats] = {}
    total = weights.sum(axis=1)
    for at, name in enumerate(names):
        true, guess = truth[:, at], predicted[:, at]
        error = true - guess
        squared = ratio(weights @ error**2, total)
        mean = ratio(weights @ true, total)
        variance = ratio(weights @ true**2, total) - mean**2
        figures |= {
            f"mean_absolute_error/{name}": ratio(weights @ np.abs(error), total),
            f"root_mean_squared_error/{name}": np.sqrt(squared),
            f"r2/{name}": 1 - ratio(squared, np.where(variance > 1e-12, variance, 0.0)),
            f"pearson/{name}": correlation(true, guess, weights),
            f"spearman/{name}": np.array([spearman(true, guess, each) for each in weights]),
        }
    return figures


def correlation(first: Floats, second: Floats, weights: Floats) -> Floats:
    """[B] Pearson's correlation."""
    total = weights.sum(axis=1)
    mean_a, mean_b = ratio(weights @ first, total), ratio(weights @ second, total)
    together = ratio(weights @ (first * second), total) - mean_a * mean_b
    spread_a = ratio(weights @ first**2, total) - mean_a**2
    spread_b = ratio(weights @ second**2, total) - mean_b**2
    defined = (spread_a > 1e-12) & (spread_b > 1e-12)
    spread = np.sqrt(np.where(defined, spread_a * spread_b, 0.0))
    return np.clip(ratio(together, spread), -1.0, 1.0)


def ranks(values: Floats) -> Floats:
    """[N] place of each value in their order, from 1; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts - 1) / 2)[inverse]).astype(np.float64)


def spearman(first: Floats, second: Floats, weights: Floats) -> float:
    """Spearman's correlation of the rows, each as often as `weights` [N] says."""
    chosen = np.repeat(np.arange(len(first)), weights.astype(np.int64))
    a, b = ranks(first[chosen]), ranks(second[chosen])
    return float(correlation(a, b, np.ones((1, len(a))))[0]) if len(a) else float("nan")
