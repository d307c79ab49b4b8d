"""The page about a sweep: how it went, what matters, what was given up for what, and every trial."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.core.progress import readable_bytes, readable_count, readable_seconds
from trivium.report.pipeline import Bar, Bars, Link, Stage, Table, write_pipeline_report
from trivium.report.plot import SIDE, Band, Plot, Relation, Tick, relation
from trivium.report.plot import Path as Drawn
from trivium.report.story import Figure

ROWS = 200
"""Trials in the table."""
LABEL = 14
"""Characters of a label on an axis."""
GOOD = 0.25
"""Share of the complete trials that count as good."""
Result = Mapping[str, Any]
Row = Mapping[str, Any]


def write_sweep_report(result: Result, out: Path) -> Path:
    """Write the page of `sweep.json` to the file `out` and return it."""
    trials = result["trials"]
    counts = {
        state: sum(row["state"] == state for row in trials) for state in ("complete", "pruned", "failed", "running")
    }
    counted = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    best, goal = result["best"], result["goals"][0]
    seeds = result["settings"]["seeds"]
    figures = [Figure("Trials", f"{len(trials)}", counted), Figure("Time", readable_seconds(result["seconds"]))]
    if best:
        spread = f"± {best['spread']:.2g} over {seeds} seeds" if best["spread"] else f"trial {best['number']}"
        figures.insert(0, Figure(f"Best {goal}", words(goal)(best["goals"][0]), spread))
    stages = [_best(result)] if best else []
    stages.append(_history(result))
    if counts["complete"] > 1:
        stages.append(_matters(result))
        if len(result["goals"]) > 1:
            stages.append(_front(result))
    stages.append(_trials(result))
    return write_pipeline_report(
        stages,
        out,
        title=f"Search for settings of {result['name']}",
        over="Trivium sweep",
        lead=f"{len(trials)} of {result['wanted']} trials over {len(result['space'])} settings, proposed by "
        f"{result['settings']['sampler']['name']}, judged by {', '.join(result['goals'])}.",
        figures=figures,
    )


def words(metric: str) -> Callable[[float], str]:
    """How a figure of this name is written."""
    if metric == "seconds":
        return readable_seconds
    if metric in ("memory", "bytes"):
        return readable_bytes
    if metric in ("parameters", "parameters.trained", "tokens_per_second"):
        return readable_count
    return "{:.4g}".format


def setting(value: Any) -> str:
    """A value of a setting as one would write it."""
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)


def _best(result: Result) -> Stage:
    best, several = result["best"], len(result["goals"]) > 1
    rows = [[key, setting(value), setting(result["own"].get(key))] for key, value in best["values"].items()]
    what = f"Trial {best['number']}" + (f" is the best by {result['goals'][0]}." if several else ".")
    links = [Link("The best recipe, for trivium train", "best.yaml"), Link("All numbers", "sweep.json")]
    links += [Link(f"The run {name}", f"trials/{name}/report.html") for name in result["runs"][str(best["number"])]]
    return Stage(
        title="The best",
        what=what,
        tables=[Table("", ["setting", "best", "in the recipe"], rows)],
        links=links,
        figures=[Figure(name, words(name)(value)) for name, value in zip(result["goals"], best["goals"], strict=True)],
    )


def _history(result: Result) -> Stage:
    goal, better = result["goals"][0], max if result["maximize"][0] else min
    complete = _complete(result)
    stage = "Each dot is a trial; the line is the best so far."
    ended = [
        (row["number"], row["seen"][-1][1]) for row in result["trials"] if row["state"] == "pruned" and row["seen"]
    ]
    if ended:
        stage += " Faint dots are trials that were ended early, at the figure they had then."
    if not complete and not ended:
        return Stage(title="How it went", what="No trial has been measured yet.", state="running")
    curve: list[tuple[float, float]] = []
    for row in complete:
        value = row["goals"][0]
        if curve:
            curve.append((row["number"], curve[-1][1]))
            value = better(value, curve[-1][1])
        curve.append((row["number"], value))
    lines = [
        Relation("ended early", "faint", dots=ended),
        Relation("trials", "line", dots=[(row["number"], row["goals"][0]) for row in complete]),
        Relation("best so far", "second", curve=curve),
    ]
    plot = _plot(result, f"{goal} by trial", lines, goal, x_label="trial", x_words="{:.0f}".format, x_ticks=None)
    return Stage(title="How it went", what=stage, plots=[plot])


def _matters(result: Result) -> Stage:
    shares, how = result["importance"]["shares"], result["importance"]["how"]
    bars = []
    if shares:
        top = max(shares, key=lambda key: shares[key])
        drawn = [Bar(key, 100 * share, own=key == top) for key, share in shares.items()]
        note = f"Share of the variation of {result['goals'][0]} over the space that a setting explains, by {how}."
        bars = [Bars("Importance", drawn, unit="%", note=f"{note} With few trials this is a rough figure.", digits=0)]
    return Stage(
        title="What matters",
        what="Each setting against the first goal, and all settings of each trial as one line: the best is marked, and "
        "the best quarter is drawn strong.",
        plots=[_parallel(result), *(_slice(result, key) for key in result["space"])],
        bars=bars,
    )


def _front(result: Result) -> Stage:
    numbers = set(result["front"])
    members = [row for row in _complete(result) if row["number"] in numbers]
    head = ["trial", *result["goals"], *result["space"]]
    rows = [
        [
            f"{row['number']}",
            *(words(name)(value) for name, value in zip(result["goals"], row["goals"], strict=True)),
            *(setting(row["values"][key]) if key in row["values"] else "" for key in result["space"]),
        ]
        for row in members
    ]
    return Stage(
        title="What is given up for what",
        what=f"{len(members)} trials are beaten by none in all goals at once. Their recipes lie in front/.",
        plots=[_against(result, place) for place in range(1, len(result["goals"]))],
        tables=[Table("", head, rows)],
        links=[Link(f"Recipe of trial {row['number']}", f"front/{row['number']:04d}.yaml") for row in members],
    )


def _trials(result: Result) -> Stage:
    head = ["trial", "state", *result["goals"], *result["space"], "time", "reason"]
    rows = [
        [
            f"{row['number']}",
            row["state"],
            *(
                [words(n)(v) for n, v in zip(result["goals"], row["goals"], strict=True)]
                if row["goals"]
                else [""] * len(result["goals"])
            ),
            *(setting(row["values"][key]) if key in row["values"] else "" for key in result["space"]),
            readable_seconds(row["seconds"]),
            row["reason"],
        ]
        for row in result["trials"][-ROWS:]
    ]
    note = f"The last {ROWS} trials; sweep.json has all." if len(result["trials"]) > ROWS else ""
    return Stage(title="All trials", tables=[Table("", head, rows, note)])


def _complete(result: Result) -> list[Row]:
    return [row for row in result["trials"] if row["state"] == "complete"]


def _ends(values: Sequence[float], *, maximize: bool) -> tuple[float, float]:
    """What is shown of a goal: bad outliers must not flatten everything else."""
    ordered = sorted((-value if maximize else value) for value in values)
    low, high, usual = ordered[0], ordered[-1], ordered[int((len(ordered) - 1) * 0.8)]
    if high - low > 3 * (usual - low) > 0:
        high = usual + 0.5 * (usual - low)
    return (-high, -low) if maximize else (low, high)


def _plot(
    result: Result,
    title: str,
    lines: Sequence[Relation],
    goal: str,
    *,
    x_label: str,
    x_words: Callable[[float], str],
    log: bool = False,
    x_ticks: Sequence[float] | None,
    note: str = "",
) -> Plot:
    place = result["goals"].index(goal)
    every = [y for line in lines for _, y in line.dots]
    return relation(
        title,
        lines,
        x_label=x_label,
        x_words=x_words,
        y_words=words(goal),
        y_label=goal,
        log=log,
        ends=_ends(every, maximize=result["maximize"][place]),
        x_ticks=x_ticks,
        note=note,
    )


def _slice(result: Result, key: str) -> Plot:
    """One setting against the first goal."""
    goal, space = result["goals"][0], result["space"][key]
    rows = [row for row in _complete(result) if key in row["values"]]
    choices = space.get("choices")

    def x(row: Row) -> float:
        return float(choices.index(row["values"][key]) if choices is not None else row["values"][key])

    def name(value: float) -> str:
        if choices is None:
            return f"{value:.3g}"
        return setting(choices[round(value)]).strip('"')[:LABEL] if float(value).is_integer() else ""

    best = result["best"]["number"]
    lines = [
        Relation("trials", "line", dots=[(x(row), row["goals"][0]) for row in rows if row["number"] != best]),
        Relation("the best", "second", dots=[(x(row), row["goals"][0]) for row in rows if row["number"] == best]),
    ]
    ticks = None if choices is None else [float(n) for n in range(len(choices))]
    if not rows:
        lines = [Relation("trials", "line", dots=[(0.0, 0.0)])]
    return _plot(
        result,
        f"{goal} by {key}",
        lines,
        goal,
        x_label=key,
        x_words=name,
        log=bool(space.get("log")),
        x_ticks=ticks,
    )


def _against(result: Result, place: int) -> Plot:
    """The first goal against another one; the front as a line."""
    first, other = result["goals"][0], result["goals"][place]
    numbers = set(result["front"])
    points = {row["number"]: (row["goals"][place], row["goals"][0]) for row in _complete(result)}
    members = sorted(points[number] for number in numbers)
    lines = [
        Relation("beaten", "line", dots=[point for number, point in points.items() if number not in numbers]),
        Relation("front", "second", curve=members, dots=members),
    ]
    return _plot(result, f"{first} against {other}", lines, first, x_label=other, x_words=words(other), x_ticks=None)


def _parallel(result: Result) -> Plot:
    """Parallel coordinates: an axis for each setting and for the first goal, a line for each trial."""
    goal, keys = result["goals"][0], list(result["space"])
    rows = [row for row in _complete(result)]
    ends = _ends([row["goals"][0] for row in rows], maximize=result["maximize"][0])
    columns = [*keys, goal]
    across = [0.04 + 0.92 * number / (len(columns) - 1) for number in range(len(columns))]

    def line(row: Row) -> str:
        places = [_height(result["space"][key], row["values"].get(key)) for key in keys]
        share = (row["goals"][0] - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
        places.append(min(1.0, max(0.0, share)))
        drawn = [(x, y) for x, y in zip(across, places, strict=True) if y is not None]
        return "M" + "L".join(f"{x * SIDE:.1f} {(1 - 0.03 - 0.94 * y) * SIDE:.1f}" for x, y in drawn)

    ranked = sorted(rows, key=lambda row: row["goals"][0], reverse=result["maximize"][0])
    good = ranked[1 : max(1, math.ceil(GOOD * len(ranked)))]
    others = ranked[1 + len(good) :]
    paths = [Drawn("", "grid", "".join(f"M{x * SIDE:.1f} 0V1000" for x in across))]
    paths += [
        Drawn(name, style, "".join(map(line, some)))
        for name, style, some in (
            ("others", "faint", others),
            (f"the best {GOOD:.0%}", "line", good),
            ("the best", "second", ranked[:1]),
        )
        if some
    ]
    lower = [_end_words(result["space"][key]) for key in keys]
    names = [f"{key} from {low} to {high}" for key, (low, high) in zip(keys, lower, strict=True)]
    names.append(f"{goal} from {words(goal)(ends[0])} to {words(goal)(ends[1])}")
    width = 100 / len(columns)
    return Plot(
        title="All settings of each trial",
        description="; ".join(f"trial {row['number']}: {row['goals'][0]:.4g}" for row in ranked[:5]),
        note=f"From bottom to top: {'; '.join(names)}.",
        paths=paths,
        x_ticks=[Tick(100 * x, column.rpartition(".")[2][:LABEL]) for x, column in zip(across, columns, strict=True)],
        y_ticks=[],
        bands=[
            Band(number * width, width, 100 * across[number], column, _best_values(ranked, column, goal))
            for number, column in enumerate(columns)
        ],
        x_label="",
    )


def _best_values(ranked: Sequence[Row], column: str, goal: str) -> list[tuple[str, str]]:
    """What the best five trials have on an axis."""
    return [
        (
            f"trial {row['number']}",
            words(goal)(row["goals"][0]) if column == goal else setting(row["values"].get(column)),
        )
        for row in ranked[:5]
    ]


def _height(space: Mapping[str, Any], value: Any) -> float | None:
    """Place of a value on its axis, 0 to 1."""
    if value is None and "choices" not in space:
        return None
    if "choices" in space:
        choices = space["choices"]
        return choices.index(value) / max(1, len(choices) - 1) if value in choices else None
    scale = math.log if space.get("log") else float
    low, high = scale(space["low"]), scale(space["high"])
    return float((scale(value) - low) / (high - low))


def _end_words(space: Mapping[str, Any]) -> tuple[str, str]:
    if "choices" in space:
        return setting(space["choices"][0]), setting(space["choices"][-1])
    return setting(space["low"]), f"{setting(space['high'])}{' (log)' if space.get('log') else ''}"
