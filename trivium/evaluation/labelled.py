"""What a model with a head is worth on labelled data: figures with intervals, pictures' numbers, and each prediction.

`evaluate` reads the data by the labels of the model and returns an `Evaluation`; nothing is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from trivium.data.intake import Intake
from trivium.data.labelled import LabelledDataset, LabelSet
from trivium.data.opening import open_labelled
from trivium.data.spans import Question, read_questions
from trivium.errors import DataError, ModelError
from trivium.evaluation import calibration, metrics
from trivium.evaluation.answers import best
from trivium.evaluation.entities import entity_counts, entity_figures, is_spans
from trivium.evaluation.intervals import Figure, Floats, ratio, with_intervals
from trivium.inference import classify
from trivium.inference.decisions import Decisions

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel
    from trivium.recipe import DataSection, Source

KINDS = {"sequence": "labels", "token": "tokens", "span": "questions"}
"""Head of a model -> kind of data it is measured on."""
MISTAKES = 20
"""Rows shown of those the model was surest of and wrong."""


@dataclass(frozen=True)
class Evaluation:
    """Results on one data set.

    summary:     everything the report shows; JSON values only.
    predictions: one for each row.
    decisions:   temperature and thresholds fitted on these rows, for heads on whole texts.
    """

    summary: dict[str, Any]
    predictions: list[dict[str, Any]]
    decisions: Decisions = field(default_factory=Decisions)


def evaluate(model: LanguageModel, sources: Sequence[Source], settings: DataSection, *, seed: int = 0) -> Evaluation:
    """Measures a model with a head on `sources`; ModelError if it has none."""
    head = model.module.config.head
    if head == "sequence":
        return evaluate_texts(model, sources, settings, seed=seed)
    if head == "token":
        return evaluate_words(model, sources, settings, seed=seed)
    if head == "span":
        return evaluate_questions(model, sources, settings, seed=seed)
    raise ModelError(
        "this model has no head for labels, tags or answers",
        value=f"head: {head}",
        fix="train one: trivium train recipes/classification.yaml (or ner, question_answering)",
    )


def _opened(model: LanguageModel, kind: Any, sources: Sequence[Source], settings: DataSection) -> LabelledDataset:
    config = model.module.config
    labels = LabelSet(config.labels, config.problem)
    return open_labelled(sources, kind=kind, tokenizer=model.tokenizer, settings=settings, like=labels, keep_rows=True)


def _summary(kind: str, dataset: LabelledDataset, figures: Mapping[str, Figure], **more: Any) -> dict[str, Any]:
    """Figures of the whole under `metrics`, those of single labels (`name/label`) under `per_label`."""
    whole = {name: figure.as_dict() for name, figure in figures.items() if "/" not in name}
    single: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        if "/" in name:
            kind_of_figure, _, label = name.partition("/")
            single.setdefault(label, {})[kind_of_figure] = figure.as_dict()
    account = {key: dataset.account[key] for key in ("input", "kept", "dropped", "quarantined")}
    return {"kind": kind, "rows": len(dataset), "data": account, "metrics": whole, "per_label": single, **more}


# Whole texts


def evaluate_texts(
    model: LanguageModel, sources: Sequence[Source], settings: DataSection, *, seed: int = 0
) -> Evaluation:
    """One label, several labels, or numbers for each text."""
    dataset = _opened(model, "labels", sources, settings)
    sequences = [(dataset.table.ids(at).tolist(), int(second)) for at, second in enumerate(dataset.fields["second"])]
    scores = np.array(classify.head_scores(model.module, sequences))
    truth = dataset.fields["label"].astype(np.float64)
    problem = model.module.config.problem
    if problem == "regression":
        return _numbers(dataset, scores, truth, model.module.config.labels, seed)
    if problem == "single_label":
        return _one_label(model, dataset, scores, truth.astype(np.int64), seed)
    return _several_labels(model, dataset, scores, truth, seed)


def _numbers(dataset: LabelledDataset, scores: Floats, truth: Floats, names: tuple[str, ...], seed: int) -> Evaluation:
    figures = with_intervals(
        lambda weights: metrics.regression(truth, scores, weights, names),
        len(truth),
        seed=seed,
        resamples=1000 if len(truth) <= 5000 else 200,
    )
    predictions = [
        {**row, "id": dataset.sample_id(at), "true": true, "predicted": guess}
        for at, (row, true, guess) in enumerate(zip(dataset.rows or (), truth.tolist(), scores.tolist(), strict=True))
    ]
    worst = np.argsort(-np.abs(scores - truth).sum(axis=1))[:MISTAKES]
    mistakes = [_shown(predictions[at]) for at in worst]
    points = [[true[0], guess[0]] for true, guess in zip(truth[:500].tolist(), scores[:500].tolist(), strict=True)]
    summary = _summary("regression", dataset, figures, labels=list(names), mistakes=mistakes, points=points)
    return Evaluation(summary, predictions)


def _one_label(
    model: LanguageModel, dataset: LabelledDataset, scores: Floats, truth: metrics.Ints, seed: int
) -> Evaluation:
    names = model.module.config.labels
    probable = calibration.softmax(scores / model.decisions.temperature)
    hot = metrics.one_hot(truth, len(names))

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        figures = metrics.single_label(truth, probable, weights, names)
        return figures | {key: value for key, value in metrics.rankings(hot, probable, weights, names).items()}

    figures = with_intervals(statistic, len(truth), seed=seed)
    chosen = probable.argmax(axis=1)
    predictions = [
        {
            **row,
            "id": dataset.sample_id(at),
            "true": names[truth[at]],
            "predicted": names[chosen[at]],
            "scores": dict(zip(names, probable[at].tolist(), strict=True)),
        }
        for at, row in enumerate(dataset.rows or ())
    ]
    wrong = np.flatnonzero(chosen != truth)
    surest = wrong[np.argsort(-probable[wrong, chosen[wrong]])][:MISTAKES]
    decisions = Decisions(calibration.temperature(scores, truth), {}, len(truth))
    summary = _summary(
        "single_label",
        dataset,
        figures,
        labels=list(names),
        support={name: int((truth == at).sum()) for at, name in enumerate(names)},
        confusion=metrics.confusion(truth, chosen, len(names)).tolist(),
        calibration=_calibrated(model.decisions, scores, truth, "single_label"),
        mistakes=[_shown(predictions[at], probable[at, chosen[at]]) for at in surest],
    )
    return Evaluation(summary, predictions, decisions)


def _several_labels(
    model: LanguageModel, dataset: LabelledDataset, scores: Floats, truth: Floats, seed: int
) -> Evaluation:
    names = model.module.config.labels
    probable = calibration.sigmoid(scores / model.decisions.temperature)
    thresholds = np.array([model.decisions.thresholds.get(name, 0.5) for name in names])

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        figures = metrics.multi_label(truth, probable, thresholds, weights, names)
        return figures | metrics.rankings(truth, probable, weights, names)

    figures = with_intervals(statistic, len(truth), seed=seed)
    temperature = calibration.temperature(scores, truth)
    best_thresholds = _thresholds(calibration.sigmoid(scores / temperature), truth)
    decisions = Decisions(temperature, dict(zip(names, best_thresholds.tolist(), strict=True)), len(truth))
    predictions = []
    for at, row in enumerate(dataset.rows or ()):
        true = [name for name, value in zip(names, truth[at], strict=True) if value == 1]
        picked = [name for name, value in zip(names, probable[at] >= thresholds, strict=True) if value]
        by_name = dict(zip(names, probable[at].tolist(), strict=True))
        predictions.append({**row, "id": dataset.sample_id(at), "true": true, "predicted": picked, "scores": by_name})
    wrong = np.abs(np.where(np.isnan(truth), probable, truth) - probable).max(axis=1)
    mistakes = [_shown(predictions[at], wrong[at]) for at in np.argsort(-wrong)[:MISTAKES] if wrong[at] > 0.5]
    summary = _summary(
        "multi_label",
        dataset,
        figures,
        labels=list(names),
        support={name: int(np.nansum(truth[:, at])) for at, name in enumerate(names)},
        thresholds=_threshold_gain(scores, truth, names, thresholds, best_thresholds),
        calibration=_calibrated(model.decisions, scores, truth, "multi_label"),
        mistakes=mistakes,
    )
    return Evaluation(summary, predictions, decisions)


def _thresholds(probable: Floats, truth: Any) -> Floats:
    return np.array([calibration.best_threshold(probable[:, at], truth[:, at]) for at in range(probable.shape[1])])


def _threshold_gain(
    scores: Floats, truth: Floats, names: Sequence[str], used: Floats, best_here: Floats
) -> dict[str, Any]:
    """Macro F1 with thresholds of 0.5, and with those fitted on the other half of the rows."""
    probable = calibration.sigmoid(scores)
    picked = calibration.crossed(probable, truth, _thresholds, lambda part, fitted: (part >= fitted).astype(np.float64))
    one, half = np.ones((1, len(truth))), np.full(len(names), 0.5)
    before = metrics.multi_label(truth, probable, half, one, names)["macro_f1"][0]
    after = metrics.multi_label(truth, picked, half, one, names)["macro_f1"][0]
    return {
        "used": dict(zip(names, used.tolist(), strict=True)),
        "fitted": dict(zip(names, best_here.tolist(), strict=True)),
        "macro_f1_at_half": float(before),
        "macro_f1_crossed": float(after),
    }


def _calibrated(decisions: Decisions, scores: Floats, truth: Any, problem: str) -> dict[str, Any]:
    """Calibration error and reliability at temperature 1 and afterwards.

    Afterwards: the temperature of the model folder, fitted on other data; else one that is fitted on each half of these
    rows and measured on the other.
    """
    stored = decisions.rows > 0
    scaled = (
        scores / decisions.temperature
        if stored
        else calibration.crossed(scores, truth, calibration.temperature, lambda part, fitted: part / fitted)
    )
    result: dict[str, Any] = {
        "temperature": decisions.temperature if stored else calibration.temperature(scores, truth),
        "fitted_on": "other data" if stored else "the other half of these rows",
    }
    for name, values in (("before", scores), ("after", scaled)):
        confidence, right = calibration.confidences(classify.probabilities(values, problem), truth)
        bins = calibration.reliability(confidence, right)
        result[f"ece_{name}"] = calibration.calibration_error(bins)
        result[f"bins_{name}"] = [asdict(one) for one in bins]
    return result


def _shown(prediction: Mapping[str, Any], probability: float | None = None) -> dict[str, Any]:
    """A row of the table of mistakes."""
    text = " | ".join(str(prediction[key]) for key in ("text", "text_pair") if key in prediction)
    shown = {"id": prediction["id"], "text": text[:300], "true": prediction["true"], "said": prediction["predicted"]}
    return shown if probability is None else {**shown, "probability": float(probability)}


# Words


def evaluate_words(
    model: LanguageModel, sources: Sequence[Source], settings: DataSection, *, seed: int = 0
) -> Evaluation:
    """A tag for each word."""
    dataset = _opened(model, "tokens", sources, settings)
    rows = [(at, row) for at, row in enumerate(dataset.rows or ()) if row]
    words = [cast("list[str]", row["tokens"]) for _, row in rows]
    truth = [cast("list[str]", row["tags"]) for _, row in rows]
    chosen = classify.tag(model, words, length=settings.sequence_length)
    names = model.module.config.labels
    number = {name: at for at, name in enumerate(names)}
    right = np.array([sum(map(str.__eq__, *pair)) for pair in zip(truth, chosen, strict=True)], dtype=np.float64)
    total = np.array([len(tags) for tags in truth], dtype=np.float64)
    spans = is_spans(names)
    counts = entity_counts(truth, chosen) if spans else _tag_counts(truth, chosen, number)

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        return {"accuracy": ratio(weights @ right, weights @ total), **entity_figures(*counts, weights)}

    figures = with_intervals(statistic, len(rows), seed=seed)
    there, said = (np.array([number[tag] for tags in side for tag in tags], dtype=np.int64) for side in (truth, chosen))
    predictions = [
        {"id": dataset.sample_id(at), "tokens": list(word), "true": list(tags), "predicted": list(guess)}
        for (at, _), word, tags, guess in zip(rows, words, truth, chosen, strict=True)
    ]
    summary = _summary(
        "entities" if spans else "tags",
        dataset,
        figures,
        labels=list(names),
        support=dict(zip(counts[0], (int(each) for each in counts[3].sum(axis=0)), strict=True)),
        confusion=metrics.confusion(there, said, len(names)).tolist(),
        words=int(total.sum()),
    )
    return Evaluation({**summary, "rows": len(rows)}, predictions)


def _tag_counts(
    truth: Sequence[Sequence[str]], chosen: Sequence[Sequence[str]], number: Mapping[str, int]
) -> tuple[list[str], Floats, Floats, Floats]:
    """(tags, right, chosen, true) in each sentence, for tags that stand for single words."""
    counts = np.zeros((3, len(truth), len(number)))
    for row, (there, said) in enumerate(zip(truth, chosen, strict=True)):
        for one, other in zip(there, said, strict=True):
            counts[1, row, number[other]] += 1
            counts[2, row, number[one]] += 1
            counts[0, row, number[one]] += one == other
    return list(number), counts[0], counts[1], counts[2]


# Questions


def evaluate_questions(
    model: LanguageModel, sources: Sequence[Source], settings: DataSection, *, seed: int = 0
) -> Evaluation:
    """Answers that stand in a context."""
    intake = Intake(settings.on_error)
    asked: list[Question] = [question for source in sources for question in read_questions(source, intake)]
    if not asked:
        raise DataError("there are no questions", where=", ".join(source.path for source in sources))
    given = classify.answer(
        model,
        [(one.question, one.context) for one in asked],
        length=settings.sequence_length,
        stride=settings.labels.stride,
        allow_none=any(not one.answers for one in asked),
    )
    values = np.array(
        [best(said.text, [text for text, _ in one.answers]) for one, said in zip(asked, given, strict=True)]
    )
    answerable = np.array([bool(one.answers) for one in asked])

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        total = weights.sum(axis=1)
        figures = {"exact": ratio(weights @ values[:, 0], total), "f1": ratio(weights @ values[:, 1], total)}
        if not answerable.all():
            for name, rows in (("answerable", answerable), ("unanswerable", ~answerable)):
                figures[f"f1_{name}"] = ratio(weights[:, rows] @ values[rows, 1], weights[:, rows].sum(axis=1))
        return figures

    figures = with_intervals(statistic, len(asked), seed=seed)
    predictions: list[dict[str, Any]] = [
        {
            "id": one.name,
            "text": one.question,
            "true": [text for text, _ in one.answers],
            "predicted": said.text,
            "start": said.start,
            "score": said.score,
            "f1": float(value),
        }
        for one, said, value in zip(asked, given, values[:, 1], strict=True)
    ]
    wrong = sorted((one for one in predictions if one["f1"] == 0), key=lambda one: -one["score"])[:MISTAKES]
    account = {"input": len(asked), "kept": len(asked), "dropped": {}, "quarantined": dict(intake.quarantined)}
    return Evaluation(
        {
            "kind": "answers",
            "rows": len(asked),
            "data": {**account, "input": len(asked) + intake.quarantined.total()},
            "metrics": {name: figure.as_dict() for name, figure in figures.items()},
            "per_label": {},
            "mistakes": [_shown(one) for one in wrong],
        },
        predictions,
    )
