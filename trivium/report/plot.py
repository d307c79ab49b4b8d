"""Small plots: the geometry of curves, histograms and bars, in percent of the frame.

A curve is one SVG path that is stretched over its frame (lines keep their width), and every text is HTML beside it,
so a plot fits any window and its letters stay readable. `templates/plot.html` draws what is computed here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

POINTS = 600
BANDS = 90
MOST_VALUES = 8
"""Values under the pointer."""
SIDE = 1000.0
"""Units of the frame's sides inside an SVG."""

Points = list[tuple[float, float]]
Words = Callable[[float], str]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in percent from the left or the bottom, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """One line of a plot. style: `line`, `faint` (raw values behind a median), `second` or `points` (joined dots)."""

    name: str
    points: Points
    style: Literal["line", "faint", "second", "points"] = "line"


@dataclass(frozen=True)
class Path:
    """A drawn series: `d` is the SVG path, `dots` another one of dots."""

    name: str
    style: str
    d: str
    dots: str = ""


@dataclass(frozen=True)
class Band:
    """A vertical strip that shows its values under the pointer. left, width, middle: percent."""

    left: float
    width: float
    middle: float
    title: str
    values: list[tuple[str, str]]


@dataclass(frozen=True)
class Plot:
    """Everything the template draws."""

    title: str
    description: str
    note: str
    paths: list[Path]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bands: list[Band] = field(default_factory=list)
    bars: list[tuple[float, float, float]] = field(default_factory=list)
    """(left, width, height) in percent, of a histogram."""
    labels: list[tuple[float, float, str, bool]] = field(default_factory=list)
    """(left, bottom) in percent of a dot, its name, and whether that stands to the left of it."""
    x_label: str = "update"
    table: list[tuple[str, ...]] = field(default_factory=list)
    """The values in words, for readers without the picture; the first row is the heading."""


def curves(
    title: str,
    series: Sequence[Series],
    *,
    words: Words,
    note: str = "",
    floor: float | None = None,
) -> Plot | None:
    """A plot of curves over the updates; None without a single finite point.

    words: a value as text.  floor: the lower end of the axis (0 for amounts).
    """
    shown = [Series(one.name, finite(one.points), one.style) for one in series]
    shown = [one for one in shown if one.points]
    if not shown:
        return None
    every = [point for one in shown for point in one.points]
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    y_values = nice_ticks(*_range([y for _, y in every], floor), 5)
    low, high = y_values[0], y_values[-1]
    hidden = sum(y > high for _, y in every)
    if hidden:
        note = f"{note} {hidden} {'value lies' if hidden == 1 else 'values lie'} above the frame.".strip()

    def place(x: float, y: float) -> tuple[float, float]:
        return _across(x, left, right), (y - low) / (high - low)

    paths = []
    for one in shown:
        dots = one.style == "points" or len(one.points) == 1
        drawn = [place(x, y) for x, y in downsample(one.points)]
        paths.append(Path(one.name, one.style, _line(drawn), _dots(drawn) if dots and len(drawn) <= 60 else ""))
    x_values = [x for x in nice_ticks(left, right, 6) if left <= x <= right and float(x).is_integer()]
    return Plot(
        title=title,
        description=f"{title}: " + "; ".join(_spoken(one, words) for one in shown if one.style != "faint"),
        note=note,
        paths=paths,
        x_ticks=[Tick(100 * place(x, low)[0], f"{x:,.0f}") for x in x_values],
        y_ticks=[Tick(100 * place(left, y)[1], words(y)) for y in y_values],
        bands=_bands(shown, words, left, right),
        table=_table(shown, words),
    )


def histogram(title: str, counts: dict[str, int], *, x_label: str, unit: str) -> Plot | None:
    """Bars over named classes, in their order, from the first to the last that holds anything; None if none does."""
    names = [name for name, count in counts.items() if count]
    if not names:
        return None
    every_name = list(counts)
    counts = {name: counts[name] for name in every_name[every_name.index(names[0]) : every_name.index(names[-1]) + 1]}
    total, width = sum(counts.values()), 100 / len(counts)
    most = max(counts, key=lambda name: counts[name])
    y_values = [value for value in nice_ticks(0, max(counts.values()), 4) if float(value).is_integer()]
    high = max(*y_values, *counts.values())
    every = max(1, math.ceil(len(counts) / 8))
    bars, bands, ticks = [], [], []
    for number, (name, count) in enumerate(counts.items()):
        left = number * width
        bars.append((left + width * 0.08, width * 0.84, 100 * count / high))
        bands.append(Band(left, width, 50, f"{name} {x_label}", [(unit, f"{count:,} ({count / total:.1%})")]))
        if number % every == 0:
            ticks.append(Tick(left + width / 2, name[:14]))
    return Plot(
        title=title,
        description=f"{title}: {total:,} {unit}, most of them with {most} {x_label}",
        note="",
        paths=[],
        x_ticks=ticks,
        y_ticks=[Tick(100 * value / high, f"{value:,.0f}") for value in y_values],
        bands=bands,
        bars=bars,
        x_label=x_label,
        table=[(x_label, unit), *((name, f"{count:,}") for name, count in counts.items())],
    )


@dataclass(frozen=True)
class Relation:
    """Something drawn over a figure that is no update: a curve, dots, or both; styles as in `Series`."""

    name: str
    style: str = "line"
    curve: Points = field(default_factory=list)
    dots: Points = field(default_factory=list)


def relation(
    title: str,
    lines: Sequence[Relation],
    *,
    x_label: str,
    x_words: Words,
    y_words: Words = "{:.4g}".format,
    y_label: str = "loss",
    log: bool = False,
    ends: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None,
    note: str = "",
) -> Plot:
    """Curves and dots over any figure; something must be drawn.

    log: a logarithmic axis.  ends: (lowest, highest) value that is shown, if not all are.  x_ticks: default, round.
    """
    every = [point for line in lines for point in (*line.curve, *line.dots)]
    scale = math.log if log else float
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    left, right = scale(low_x), scale(high_x)
    y_values = nice_ticks(*(ends or (min(y for _, y in every), max(y for _, y in every))), 5)
    low, high = y_values[0], y_values[-1]
    hidden = sum(not low <= y <= high for _, y in every)
    if hidden:
        note = f"{note} {hidden} {'value lies' if hidden == 1 else 'values lie'} outside of the frame.".strip()

    def across(x: float) -> float:
        return 0.02 + 0.96 * (scale(x) - left) / (right - left) if right > left else 0.5

    def at(point: tuple[float, float]) -> str:
        return _at(across(point[0]), max(-2.0, (point[1] - low) / (high - low)))

    if x_ticks is None:
        x_ticks = _decades(low_x, high_x) if log else [x for x in nice_ticks(low_x, high_x, 6) if low_x <= x <= high_x]
    dots = sorted((x, y, line.name) for line in lines for x, y in line.dots)
    return Plot(
        title=title,
        description=f"{title}; measured: " + "; ".join(f"{y:.3f} at {x_words(x)} ({name})" for x, y, name in dots),
        note=note,
        paths=[
            Path(
                line.name,
                line.style,
                "M" + "L".join(map(at, line.curve)) if line.curve else "",
                "".join(f"M{at(point)}h.01" for point in line.dots),
            )
            for line in lines
        ],
        x_ticks=[Tick(100 * across(x), x_words(x)) for x in x_ticks],
        y_ticks=[Tick(100 * (y - low) / (high - low), y_words(y)) for y in y_values],
        bands=_dot_bands(dots, across, x_words),
        x_label=x_label,
        table=[(x_label, y_label, "of"), *((x_words(x), f"{y:.4f}", name) for x, y, name in dots)],
    )


def _dot_bands(
    dots: Sequence[tuple[float, float, str]], across: Callable[[float], float], x_words: Words
) -> list[Band]:
    """A strip for each place with dots, with their values."""
    places: dict[float, list[tuple[str, str]]] = {}
    for x, y, name in dots:
        places.setdefault(x, []).append((name, f"{y:.4f}"))
    at = [100 * across(x) for x in places]
    edges: list[float] = [0.0, *((a + b) / 2 for a, b in pairwise(at)), 100.0]
    return [
        Band(edges[n], edges[n + 1] - edges[n], at[n], x_words(x), values[:MOST_VALUES])
        for n, (x, values) in enumerate(places.items())
    ]


def _decades(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2 and 5 of each decade, or only 1 where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def finite(points: Points) -> Points:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def downsample(points: Points, limit: int = POINTS) -> Points:
    """At most `limit` points in the same order; of each stretch the lowest and the highest stay, so spikes are seen."""
    if len(points) <= limit:
        return points
    stretches = (limit - 2) // 2
    kept = {0, len(points) - 1}
    for number in range(stretches):
        start, end = (len(points) * n // stretches for n in (number, number + 1))
        places = range(start, end)
        kept.add(min(places, key=lambda place: points[place][1]))
        kept.add(max(places, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]


def running_median(points: Points, window: int, *, places: int = POINTS) -> Points:
    """The median of `window` points around some of them, which one spike does not move; fewer points at both ends."""
    last = len(points) - 1
    chosen = range(len(points)) if len(points) <= places else (last * n // (places - 1) for n in range(places))
    medians = []
    for place in chosen:
        half = min(window // 2, place, last - place)
        around = sorted(y for _, y in points[place - half : place + half + 1])
        medians.append((points[place][0], around[half]))
    return medians


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover low..high; the first is at most low and the last at least high."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-290):  # as good as constant
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12 - math.floor(math.log10(step))) for number in range(first, last + 1)]


def _range(values: list[float], floor: float | None) -> tuple[float, float]:
    """(lower end, upper end) of what is shown: a few spikes must not flatten everything else."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[int((len(ordered) - 1) * 0.98)]
    if len(ordered) >= 50 and high - low > 3 * (usual - low) > 0:
        high = usual + 0.25 * (usual - low)
    return (min(low, floor) if floor is not None else low), high


def _line(drawn: Points) -> str:
    """Corners of the line, moved by `_at` into the frame."""
    return "M" + "L".join(_at(x, y) for x, y in drawn) if len(drawn) > 1 else ""


def _dots(drawn: Points) -> str:
    """Lines of no length: with round ends they are dots that stay round when the frame is stretched."""
    return "".join(f"M{_at(x, y)}h.01" for x, y in drawn)


def _at(x: float, y: float) -> str:
    # Far above the frame a point is cut off: browsers lose precision with huge coordinates.
    return f"{x * SIDE:.1f} {(1 - min(y, 3.0)) * SIDE:.1f}"


def _across(x: float, left: float, right: float) -> float:
    """Place of `x` on the axis, 0 to 1, with a little room at both ends for dots and line ends."""
    return 0.01 + 0.98 * (x - left) / (right - left) if right > left else 0.5


def _nearest(points: Points, x: float) -> tuple[float, float]:
    place = bisect_left(points, (x, -math.inf))
    around = points[max(0, place - 1) : place + 1]
    return min(around, key=lambda point: abs(point[0] - x))


def _bands(series: Sequence[Series], words: Words, left: float, right: float) -> list[Band]:
    """Strips around evenly chosen points of the densest series, with the nearest value of each series."""
    densest = max(series, key=lambda one: len(one.points)).points
    number = min(BANDS, len(densest))
    chosen = [densest[round(i * (len(densest) - 1) / max(1, number - 1))][0] for i in range(number)]
    places = [100 * _across(x, left, right) for x in chosen]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), 100.0]
    bands = []
    for at, x in enumerate(chosen):
        values = []
        for one in series:
            near, y = _nearest(one.points, x)
            where = "" if near == x else f" (update {near:,.0f})"
            values.append((one.name, f"{words(y)}{where}"))
        bands.append(Band(edges[at], edges[at + 1] - edges[at], places[at], f"update {x:,.0f}", values))
    return bands


def _spoken(one: Series, words: Words) -> str:
    (first, start), (last, end) = one.points[0], one.points[-1]
    lowest = min(y for _, y in one.points)
    return (
        f"{one.name} goes from {words(start)} at update {first:,.0f} to {words(end)} at update {last:,.0f}, "
        f"lowest {words(lowest)}"
    )


def _table(series: Sequence[Series], words: Words, rows: int = 10) -> list[tuple[str, ...]]:
    steps = sorted({x for one in series for x, _ in one.points})
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, rows - 1))] for i in range(min(rows, len(steps)))})
    heading = ("update", *(one.name for one in series))
    return [heading, *((f"{x:,.0f}", *(words(_nearest(one.points, x)[1]) for one in series)) for x in chosen)]
