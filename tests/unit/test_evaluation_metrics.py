"""Figures against scikit-learn and seqeval, and by what must hold for any data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.evaluation import answers, calibration, metrics
from trivium.evaluation.entities import entities, entity_counts, entity_figures, is_spans
from trivium.evaluation.intervals import with_intervals

sklearn = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")


def ones(rows: int) -> np.ndarray:
    return np.ones((1, rows))


def close(ours: np.ndarray, theirs: float) -> bool:
    return math.isclose(float(ours[0]), theirs, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [2, 5])
def test_one_label_against_scikit_learn(seed: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, labels, 60)
    scores = calibration.softmax(random.normal(size=(60, labels)).round(1))
    names = [f"l{at}" for at in range(labels)]
    ours = metrics.single_label(truth, scores, ones(60), names)
    chosen = scores.argmax(axis=1)
    each = sklearn.precision_recall_fscore_support(truth, chosen, labels=range(labels), zero_division=0)
    macro = sklearn.precision_recall_fscore_support(
        truth, chosen, labels=range(labels), average="macro", zero_division=0
    )
    assert close(ours["accuracy"], sklearn.accuracy_score(truth, chosen))
    assert close(ours["log_loss"], sklearn.log_loss(truth, scores, labels=range(labels)))
    for at, name in enumerate(("precision", "recall", "f1")):
        assert close(ours[f"macro_{name}"], macro[at])
        assert all(close(ours[f"{name}/{label}"], each[at][number]) for number, label in enumerate(names))
    assert (
        metrics.confusion(truth, chosen, labels) == sklearn.confusion_matrix(truth, chosen, labels=range(labels))
    ).all()
    ranked = metrics.rankings(metrics.one_hot(truth, labels), scores, ones(60), names)
    for number, label in enumerate(names):
        assert close(ranked[f"auroc/{label}"], sklearn.roc_auc_score(truth == number, scores[:, number]))
        assert close(
            ranked[f"average_precision/{label}"], sklearn.average_precision_score(truth == number, scores[:, number])
        )


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_against_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = (random.random((50, 4)) < 0.3).astype(float)
    scores = random.random((50, 4)).round(1)
    names = list("abcd")
    ours = metrics.multi_label(truth, scores, np.full(4, 0.5), ones(50), names)
    picked = scores >= 0.5
    for average in ("micro", "macro"):
        assert close(ours[f"{average}_f1"], sklearn.f1_score(truth, picked, average=average, zero_division=0))
    assert close(ours["exact_match"], sklearn.accuracy_score(truth, picked))
    assert close(ours["micro_precision"], sklearn.precision_score(truth, picked, average="micro", zero_division=0))


def test_labels_that_are_not_known_do_not_count() -> None:
    random = np.random.default_rng(0)
    truth, scores = (random.random((40, 2)) < 0.5).astype(float), random.random((40, 2))
    hidden = truth.copy()
    hidden[20:, 1] = np.nan
    ours = metrics.multi_label(hidden, scores, np.full(2, 0.5), ones(40), ["a", "b"])
    assert close(ours["f1/b"], sklearn.f1_score(truth[:20, 1], scores[:20, 1] >= 0.5))
    ranked = metrics.rankings(hidden, scores, ones(40), ["a", "b"])
    assert close(ranked["auroc/b"], sklearn.roc_auc_score(truth[:20, 1], scores[:20, 1]))


def test_weights_are_repeated_rows() -> None:
    random = np.random.default_rng(1)
    truth, scores = (random.random(30) < 0.4).astype(float), random.random(30).round(1)
    weights = random.integers(0, 4, 30).astype(float)
    again = np.repeat(np.arange(30), weights.astype(int))
    for ours, theirs in zip(
        metrics.ranking(truth, scores, weights[None]),
        metrics.ranking(truth[again], scores[again], ones(len(again))),
        strict=True,
    ):
        assert close(ours, float(theirs[0]))
    numbers = random.normal(size=(30, 1))
    for name, value in metrics.regression(numbers, scores[:, None], weights[None], ["x"]).items():
        assert close(
            value, float(metrics.regression(numbers[again], scores[again, None], ones(len(again)), ["x"])[name][0])
        )


@pytest.mark.parametrize("seed", range(3))
def test_numbers_against_scikit_learn_and_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(seed)
    truth = random.normal(size=(40, 1)).round(1)
    guess = (truth + random.normal(size=(40, 1))).round(1)
    ours = metrics.regression(truth, guess, ones(40), ["x"])
    assert close(ours["mean_absolute_error/x"], sklearn.mean_absolute_error(truth, guess))
    assert close(ours["root_mean_squared_error/x"], sklearn.root_mean_squared_error(truth, guess))
    assert close(ours["r2/x"], sklearn.r2_score(truth, guess))
    assert close(ours["pearson/x"], stats.pearsonr(truth[:, 0], guess[:, 0]).statistic)
    assert close(ours["spearman/x"], stats.spearmanr(truth, guess).statistic)


def test_what_is_not_defined_is_not_a_number() -> None:
    nothing = np.zeros(5)
    auroc, precision = metrics.ranking(nothing, np.arange(5.0), ones(5))
    assert math.isnan(auroc[0]) and math.isnan(precision[0])
    constant = metrics.regression(np.ones((5, 1)), np.arange(5.0)[:, None], ones(5), ["x"])
    assert math.isnan(constant["r2/x"][0]) and math.isnan(constant["spearman/x"][0])


TAGS = st.sampled_from(["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"])


@given(st.lists(TAGS, max_size=12))
@settings(max_examples=300, deadline=None)
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling", reason="pip install seqeval")
    assert entities(tags) == labelling.get_entities(tags)


@pytest.mark.parametrize("seed", range(4))
def test_entity_figures_are_those_of_seqeval(seed: int) -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="pip install seqeval")
    random = np.random.default_rng(seed)
    kinds = ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    truth, chosen = ([[kinds[at] for at in random.integers(0, 6, 12)] for _ in range(20)] for _ in range(2))
    ours = entity_figures(*entity_counts(truth, chosen), ones(20))
    assert close(ours["f1"], seqeval.f1_score(truth, chosen))
    assert close(ours["precision"], seqeval.precision_score(truth, chosen))
    assert close(ours["macro_f1"], seqeval.f1_score(truth, chosen, average="macro"))


def test_names_of_entities_and_of_single_words() -> None:
    assert is_spans(["O", "B-PER", "I-PER"]) and not is_spans(["NOUN", "VERB"]) and not is_spans(["O"])


def test_answers_as_squad_counts_them() -> None:
    assert answers.best("The  Panthers!", ["panthers"]) == (1.0, 1.0)
    assert answers.best("", []) == (1.0, 1.0)
    assert answers.best("something", []) == (0.0, 0.0)
    assert answers.best("", ["something"]) == (0.0, 0.0)
    exact, f1 = answers.best("gold coins", ["silver", "gold coin"])
    assert (exact, f1) == (0.0, 0.5)


# Intervals


def test_interval_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    hits = (np.arange(400) < 100).astype(float)
    figure = with_intervals(lambda weights: {"mean": weights @ hits / weights.sum(axis=1)}, 400)["mean"]
    assert figure.value == 0.25
    error = math.sqrt(0.25 * 0.75 / 400)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert figure.low < figure.value < figure.high


def test_intervals_depend_on_the_seed_only_and_narrow_with_more_rows() -> None:
    def width(rows: int, seed: int = 0) -> tuple[float, float]:
        values = np.arange(rows) % 2
        figure = with_intervals(lambda weights: {"mean": weights @ values / weights.sum(axis=1)}, rows, seed=seed)
        return figure["mean"].low, figure["mean"].high

    assert width(100) == width(100)
    assert width(100, seed=1) != width(100)
    assert width(1600)[1] - width(1600)[0] < 0.5 * (width(100)[1] - width(100)[0])


# Calibration


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_found_again(true: float) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(20000, 4)) * 2
    chances = calibration.softmax(scores)
    truth = (random.random((20000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert calibration.temperature(scores * true, truth) == pytest.approx(true, rel=0.05)
    several = (random.random(scores.shape) < calibration.sigmoid(scores)).astype(float)
    assert calibration.temperature(scores * true, several) == pytest.approx(true, rel=0.05)


def test_temperature_lowers_the_loss_and_the_calibration_error() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(5000, 3)) * 2
    truth = (random.random((5000, 1)) > calibration.softmax(scores).cumsum(axis=1)).sum(axis=1)
    loud = scores * 3

    def error(values: np.ndarray) -> float:
        return calibration.calibration_error(
            calibration.reliability(*calibration.confidences(calibration.softmax(values), truth))
        )

    after = calibration.crossed(loud, truth, calibration.temperature, lambda part, fitted: part / fitted)
    assert error(loud) > 0.1 > 0.03 > error(after)


def test_a_model_that_knows_its_chances_has_no_calibration_error() -> None:
    bins = calibration.reliability(np.full(100, 0.7), (np.arange(100) < 70).astype(float))
    assert calibration.calibration_error(bins) == pytest.approx(0.0, abs=1e-12)
    assert [(one.count, one.confidence) for one in bins] == [(100, pytest.approx(0.7))]


@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_threshold_is_better_than_the_one_chosen(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 10 for score, _ in rows])
    truth = np.array([float(right) for _, right in rows])

    def f1(threshold: float) -> float:
        picked = scores >= threshold
        return float(2 * (picked * truth).sum() / max(1.0, picked.sum() + truth.sum()))

    chosen = calibration.best_threshold(scores, truth)
    assert 0 <= chosen <= 1
    if truth.any():
        assert f1(chosen) == pytest.approx(max(f1(at / 20) for at in range(21)))
    else:
        assert chosen == 0.5
