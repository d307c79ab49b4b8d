"""The page about a comparison: which way was how good, at what cost, what it forgot, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trivium.core.progress import readable_bytes, readable_count, readable_seconds
from trivium.report.pipeline import Link, Stage, Table, write_pipeline_report
from trivium.report.plot import SIDE, Band, Plot, Tick, nice_ticks
from trivium.report.plot import Path as Drawn
from trivium.report.render import percent
from trivium.report.story import Figure

HEAD = ("contender", "accuracy", "interval", "behind", "p", "macro F1", "trained", "on disk", "memory", "time",
        "one text", "forgotten")  # fmt: skip
_SHORT = (0, 1, 2, 4, 6, 7, 8, 9, 11)
"""Columns that are shown in a terminal."""
_LETTER, _HIGH = 2.4, 7.5
"""Width of a letter and height of a line in the smallest plots, in hundredths of their sides."""


def write_comparison_report(summary: Mapping[str, Any], out: Path) -> Path:
    """Write the page of `comparison.json` to the file `out` and return it."""
    bases = summary["bases"]
    stages = [stage for base in bases for stage in (_quality(base, summary), _costs(base, summary))]
    first = bases[0]["recommendation"]
    return write_pipeline_report(
        [*stages, _how(summary)],
        out,
        title="Which way to make the model do this",
        over="Trivium comparison",
        lead=f"{len(bases[0]['rows'])} ways on {len(bases)} base model{'s' if len(bases) > 1 else ''}, "
        f"{len(summary['seeds'])} seeds each, measured once on {summary['parts']['test']:,} test rows.",
        figures=[
            Figure("Recommended", first["contender"] or "none", first["reason"]),
            Figure("Best", bases[0]["rows"][0]["contender"], _interval(bases[0]["rows"][0])),
            Figure("Most frequent label", percent(summary["majority"], 1), "what a guess would get"),
        ],
    )


def as_text(summary: Mapping[str, Any], folder: Path) -> str:
    """The table and the recommendation for a terminal."""
    lines = []
    for base in summary["bases"]:
        lines.append(f"{base['base']} on {summary['parts']['test']:,} test rows, {len(summary['seeds'])} seeds:")
        cells = [[_cells(row)[at] for at in _SHORT] for row in base["rows"]]
        heads = [HEAD[at] for at in _SHORT]
        widths = [max(len(row[at]) for row in [heads, *cells]) for at in range(len(heads))]
        lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
                  for row in [heads, *cells]]  # fmt: skip
        found = base["recommendation"]
        lines.append(f"recommended: {found['contender'] or 'none'}. {found['reason']}")
    lines += [f"left out: {name} ({reason})" for name, reason in summary["skipped"].items()]
    return "\n".join([*lines, f"the report is {folder / 'report.html'}"])


def _quality(base: Mapping[str, Any], summary: Mapping[str, Any]) -> Stage:
    found = base["recommendation"]
    return Stage(
        title=f"Quality on {Path(base['base']).parent.name or base['base']}",
        what=f"Recommended: {found['contender'] or 'none'}. {found['reason']}",
        why=f"Intervals ({percent(summary['level'])}) draw seeds and test rows anew. p is that of the difference to "
        "the best one, from flipping the signs of the differences of rows, after Holm's correction.",
        plots=[_forest(base["rows"], summary["majority"])],
        tables=[
            Table(
                "",
                HEAD,
                [_cells(row) for row in base["rows"]],
                "trained: parameters. memory: most that the training process used. time: training, with its start. "
                "forgotten: bits per byte more on the probe. Learning rates were chosen on the validation part.",
            )
        ],
    )


def _costs(base: Mapping[str, Any], summary: Mapping[str, Any]) -> Stage:
    rows = [row for row in base["rows"] if row["trained_parameters"]]
    plots = [
        _scatter(rows, "trained_parameters", "Accuracy by trained parameters", "parameters that train", readable_count),
        _scatter(rows, "stored_bytes", "Accuracy by size on the disk", "bytes", readable_bytes),
        _scatter(rows, "seconds", "Accuracy by time of training", "seconds", readable_seconds),
    ]
    if summary["probe"]:
        plots.append(_forgotten(rows))
    return Stage(
        title=f"Cost on {Path(base['base']).parent.name or base['base']}",
        what="What quality costs: parameters that train, bytes to keep for each task, time, and what is forgotten.",
        why="An adapter can be taken off: then the base is exactly what it was. What is drawn is measured with it on.",
        plots=[plot for plot in plots if plot is not None],
    )


def _how(summary: Mapping[str, Any]) -> Stage:
    budget = summary["budget"]
    length = f"{budget['epochs']:g} epochs" if budget["epochs"] else f"{budget['steps']} updates"
    taken = {row["contender"]: row["lr"] for row in summary["bases"][0]["rows"]}
    rows = [
        [name, ", ".join(f"{lr:g}" for lr in tried), f"{taken[name]:g}"]
        for name, tried in summary["learning_rates"].items()
        if taken.get(name)
    ]
    parts = summary["parts"]
    return Stage(
        title="How it was done",
        what=f"{length} of {budget['batch_size']} rows for each run; {parts['train']:,} rows to learn from, "
        f"{parts['validation']:,} to choose learning rates by, {parts['test']:,} to measure on, once, at the end.",
        why=f"Seeds {', '.join(map(str, summary['seeds']))}. The test part is {summary['test_sha256'][:12]}.",
        tables=[Table("Learning rates that were tried", ["contender", "with the first seed", "taken"], rows)],
        links=[Link("All numbers", "comparison/comparison.json")],
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["contender"],
        f"{row['accuracy']['value']:.3f}",
        f"{row['accuracy']['low']:.3f} to {row['accuracy']['high']:.3f}",
        f"{100 * row['behind_best']:.1f}",
        f"{row['p']:.2g}",
        f"{row['macro_f1']:.3f}",
        readable_count(row["trained_parameters"]),
        readable_bytes(row["stored_bytes"]),
        "\u2013" if row["peak_memory_bytes"] is None else readable_bytes(row["peak_memory_bytes"]),
        readable_seconds(row["seconds"]),
        f"{row['latency_ms']:.1f} ms",
        "\u2013" if row["forgetting"] is None else f"{row['forgetting']:+.3f}".replace("-", "\u2212"),
    ]


def _interval(row: Mapping[str, Any]) -> str:
    figure = row["accuracy"]
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _forest(rows: Sequence[Mapping[str, Any]], majority: float) -> Plot:
    """Each contender a line: its accuracy as a dot, its interval, and the share of the most frequent label."""
    lows = [row["accuracy"]["low"] for row in rows]
    ticks = nice_ticks(min(*lows, majority), max(row["accuracy"]["high"] for row in rows), 5)
    left, right = ticks[0], ticks[-1]

    def across(value: float) -> float:
        return 0.02 + 0.96 * (value - left) / (right - left)

    heights = [1 - (at + 0.5) / len(rows) for at in range(len(rows))]
    lines = "".join(
        f"M{across(row['accuracy']['low']) * SIDE:.1f} {(1 - y) * SIDE:.1f}"
        f"L{across(row['accuracy']['high']) * SIDE:.1f} {(1 - y) * SIDE:.1f}"
        for row, y in zip(rows, heights, strict=True)
    )
    dots = "".join(
        f"M{across(row['accuracy']['value']) * SIDE:.1f} {(1 - y) * SIDE:.1f}h.01"
        for row, y in zip(rows, heights, strict=True)
    )
    guess = f"M{across(majority) * SIDE:.1f} 0L{across(majority) * SIDE:.1f} {SIDE:.0f}"
    return Plot(
        title="Share of right answers, with its interval",
        description="; ".join(f"{row['contender']}: {_interval(row)}" for row in rows),
        note="The faint line is the share of the most frequent label.",
        paths=[Drawn("interval", "line", lines, dots), Drawn("most frequent label", "faint", guess)],
        x_ticks=[Tick(100 * across(value), f"{value:g}") for value in ticks],
        y_ticks=[Tick(100 * y, row["contender"]) for row, y in zip(rows, heights, strict=True)],
        x_label="accuracy",
        table=[("contender", "accuracy"), *((row["contender"], _interval(row)) for row in rows)],
    )


def _scatter(
    rows: Sequence[Mapping[str, Any]], key: str, title: str, x_label: str, words: Any, *, log: bool = True
) -> Plot | None:
    """Dots of accuracy over something that it costs."""
    points = [(float(row[key]), float(row["accuracy"]["value"]), str(row["contender"])) for row in rows if row[key]]
    return _dots(title, points, x_label, words, log=log)


def _forgotten(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
    points = [
        (float(row["forgetting"]), float(row["accuracy"]["value"]), str(row["contender"]))
        for row in rows
        if row["forgetting"] is not None
    ]
    return _dots(
        "Accuracy by what was forgotten",
        points,
        "bits per byte more on the probe",
        lambda value: f"{value:+.2f}",
        log=False,
    )


def _dots(
    title: str, points: Sequence[tuple[float, float, str]], x_label: str, words: Any, *, log: bool
) -> Plot | None:
    if len(points) < 2:
        return None
    scale = math.log if log else float
    left, right = min(scale(x) for x, _, _ in points), max(scale(x) for x, _, _ in points)
    y_ticks = nice_ticks(min(y for _, y, _ in points), max(y for _, y, _ in points), 5)
    low, high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return 0.04 + 0.92 * (scale(x) - left) / max(1e-9, right - left)

    ordered = sorted(points)
    places = [100 * across(x) for x, _, _ in ordered]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), 100.0]
    dots = "".join(f"M{across(x) * SIDE:.1f} {(1 - (y - low) / (high - low)) * SIDE:.1f}h.01" for x, y, _ in ordered)
    if log:
        marks = [math.exp(left + (right - left) * at / 2) for at in range(3)]
    else:
        marks = [value for value in nice_ticks(left, right, 4) if left <= value <= right]
    return Plot(
        title=title,
        description=f"{title}: " + "; ".join(f"{name} {y:.3f} at {words(x)}" for x, y, name in ordered),
        note="",
        labels=_apart(
            [(100 * across(x), 100 * (y - low) / (high - low), name, across(x) > 0.6) for x, y, name in ordered]
        ),
        paths=[Drawn("contenders", "points", "", dots)],
        x_ticks=[Tick(100 * across(value), words(value)) for value in marks],
        y_ticks=[Tick(100 * (y - low) / (high - low), f"{y:g}") for y in y_ticks],
        bands=[
            Band(edges[n], edges[n + 1] - edges[n], places[n], name, [("accuracy", f"{y:.3f}"), (x_label, words(x))])
            for n, (x, y, name) in enumerate(ordered)
        ],
        x_label=x_label,
        table=[(x_label, "accuracy", "of"), *((words(x), f"{y:.3f}", name) for x, y, name in ordered)],
    )


def _apart(labels: Sequence[tuple[float, float, str, bool]]) -> list[tuple[float, float, str, bool]]:
    """Labels (x, y, text, whether it ends at x), moved up where they would lie on one another."""
    placed: list[tuple[float, float, float]] = []
    found = []
    for x, y, name, ends in sorted(labels, key=lambda label: label[1]):
        wide = _LETTER * (len(name) + 1)
        left, right = (x - wide, x) if ends else (x, x + wide)
        while near := [at for a, b, at in placed if a < right and left < b and abs(at - y) < _HIGH]:
            y = max(near) + _HIGH
        placed.append((left, right, y))
        found.append((x, y, name, ends))
    return found
