"""The results of `trivium eval` inside a run, ready for the page: tables with intervals, confusion, reliability.

Files are read without trust, as everything in a run folder: what is damaged is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.report.confusion import confusion_picture
from trivium.report.plot import Path as Curve
from trivium.report.plot import Plot, Tick
from trivium.report.record import LARGEST_JSON, Row, is_number
from trivium.report.render import percent
from trivium.report.story import Figure

MOST, LABELS, MISTAKES = 6, 60, 10
"""Evaluations, labels of a table and mistakes that are shown."""

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "f1": "F1",
    "exact": "Exact match",
    "exact_match": "All labels right",
    "macro_auroc": "AUROC",
    "macro_average_precision": "Average precision",
    "log_loss": "Log loss",
    "precision": "Precision",
    "recall": "Recall",
    "f1_answerable": "F1 where there is an answer",
    "f1_unanswerable": "F1 where there is none",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "copied": "Copies of the source",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@1": "Recall@1",
    "recall@10": "Recall@10",
    "recall@100": "Recall@100",
    "same_label_auc": "AUC of same labels",
    "neighbour_accuracy": "Accuracy of neighbours",
    "alignment": "Alignment",
    "uniformity": "Uniformity",
}
_COLUMNS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "mean_absolute_error": "mean absolute error",
    "root_mean_squared_error": "root mean squared error",
    "r2": "R2",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@10": "recall@10",
    "same_label_auc": "AUC of same labels",
    "neighbour_accuracy": "accuracy of neighbours",
}
_SHARES = {"accuracy", "exact", "exact_match", "copied"}


def evaluations(folder: Path) -> list[Row]:
    """What the page shows of each evaluation in `folder`/eval, the held-out data of the run first."""
    found = []
    for path in sorted(folder.glob("eval/*/metrics.json"), key=lambda path: (path.parent.name != "validation", path)):
        try:
            if path.stat().st_size > LARGEST_JSON:
                continue
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(_evaluation(path.parent.name, content))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            continue
    return found[:MOST]


def _evaluation(name: str, content: Mapping[str, Any]) -> Row:
    confusion = content.get("confusion")
    plots = [plot for plot in (_reliability(content.get("calibration")), _scatter(content.get("points"))) if plot]
    head, body = _per_label(content)
    return {
        "title": "Held-out data of the run" if name == "validation" else name,
        "rows": f"{int(content['rows']):,} rows",
        "figures": list(_figures(content["metrics"])),
        "head": head,
        "body": body,
        "confusion": None if confusion is None else confusion_picture(content["labels"], confusion),
        "plots": plots,
        "notes": list(_notes(content)),
        "mistakes": [_mistake(one) for one in content.get("mistakes", ())[:MISTAKES]],
        "numbers": content.get("kind") == "regression",
    }


def _figures(metrics: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures of the whole, with their intervals below."""
    for key, name in _NAMES.items():
        figure = metrics.get(key)
        if isinstance(figure, Mapping) and is_number(figure.get("value")):
            words = percent if key in _SHARES else _plain
            interval = ""
            if is_number(figure.get("low")) and is_number(figure.get("high")):
                interval = f"{_digits(figure['low'], key)} to {_digits(figure['high'], key)}"
            yield Figure(name, words(figure["value"], 1) if words is percent else words(figure["value"]), interval)


def _digits(value: float, key: str) -> str:
    return percent(value, 1) if key in _SHARES else _plain(value)


def _plain(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def _per_label(content: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """(heading, rows) of the table of labels: each figure with its interval."""
    single = content.get("per_label") or {}
    support = content.get("support") or {}
    thresholds = (content.get("thresholds") or {}).get("used") or {}
    columns = [key for key in _COLUMNS if any(key in figures for figures in single.values())]
    if not columns:
        return [], []
    head = ["label", *(["rows"] if support else []), *(_COLUMNS[key] for key in columns)]
    head += ["threshold"] if thresholds else []
    body = []
    for label, figures in list(single.items())[:LABELS]:
        cells = [f"{support.get(label, 0):,}"] if support else []
        cells += [_with_interval(figures.get(key)) for key in columns]
        cells += [_plain(thresholds[label], 2)] if thresholds else []
        body.append((label, *cells))
    if len(single) > LABELS:
        body.append((f"and {len(single) - LABELS} more", *[""] * (len(head) - 1)))
    return head, body


def _with_interval(figure: Any) -> str:
    if not isinstance(figure, Mapping) or not is_number(figure.get("value")):
        return "\u2013"
    if not (is_number(figure.get("low")) and is_number(figure.get("high"))):
        return _plain(figure["value"])
    return f"{_plain(figure['value'])} ({_plain(figure['low'], 2)}\u2013{_plain(figure['high'], 2)})"


def _notes(content: Mapping[str, Any]) -> Iterator[str]:
    fit = content.get("calibration")
    if fit:
        yield (
            f"Calibration error {percent(fit['ece_before'], 1)} as the model says it, {percent(fit['ece_after'], 1)} "
            f"at temperature {fit['temperature']:.2f}, which was fitted on {fit['fitted_on']}."
        )
    gain = content.get("thresholds")
    if gain:
        yield (
            f"Macro F1 {gain['macro_f1_at_half']:.3f} with thresholds of 0.5, {gain['macro_f1_crossed']:.3f} with "
            "thresholds fitted on the other half of these rows."
        )


def _reliability(fit: Any) -> Plot | None:
    """How often the model was right, against the probability it gave; on the diagonal it means what it says."""
    if not isinstance(fit, Mapping):
        return None
    ticks = [Tick(25.0 * at, f"{25 * at} %") for at in range(5)]
    curves = [Curve("as it should be", "faint", "M0 1000L1000 0")]
    for name, style, bins in (
        ("temperature 1", "second", fit["bins_before"]),
        (f"temperature {fit['temperature']:.2f}", "line", fit["bins_after"]),
    ):
        at = [f"{1000 * one['confidence']:.1f} {1000 - 1000 * one['accuracy']:.1f}" for one in bins]
        line = "M" + "L".join(at) if len(at) > 1 else ""
        curves.append(Curve(name, style, line, "".join(f"M{place}h.01" for place in at)))
    head = ("probability", "rows", "said", "right")
    body = [
        (
            f"{one['low']:.2f} to {one['high']:.2f}",
            f"{one['count']:,}",
            _plain(one["confidence"]),
            _plain(one["accuracy"]),
        )
        for one in fit["bins_after"]
    ]
    return Plot(
        title="Reliability",
        description="How often the model was right, against the probability it gave",
        note="Across the probability the model gave, upwards how often it was right.",
        paths=curves,
        x_ticks=ticks,
        y_ticks=ticks,
        table=[head, *body],
    )


def _scatter(points: Any) -> Plot | None:
    """True and predicted numbers."""
    if not isinstance(points, Sequence) or not points:
        return None
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0

    def place(true: float, said: float) -> str:
        return f"{1000 * (true - low) / spread:.1f} {1000 - 1000 * (said - low) / spread:.1f}"

    ticks = [Tick(25.0 * at, f"{low + spread * at / 4:.3g}") for at in range(5)]
    dots = "".join(f"M{place(*point)}h.01" for point in points)
    return Plot(
        title="True and predicted",
        description="Predicted numbers against the true ones; on the diagonal both are equal",
        note="Across the true number, upwards the predicted one.",
        paths=[Curve("as it should be", "faint", "M0 1000L1000 0"), Curve("rows", "second", "", dots)],
        x_ticks=ticks,
        y_ticks=ticks,
    )


def _mistake(one: Mapping[str, Any]) -> tuple[str, ...]:
    probability = one.get("probability")
    cells = (str(one["text"]), _label(one["true"]), _label(one["said"]))
    return (*cells, f"{probability:.2f}") if is_number(probability) else cells


def _label(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_label(item) for item in value) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
