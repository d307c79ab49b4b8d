"""Which curves a run has: losses first and wide, then what else was measured, each in a small plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trivium.core.progress import readable_count
from trivium.report.plot import Plot, Points, Series, curves, running_median
from trivium.report.record import Record, Row, is_number

MEASURES = 8
"""A method's own measures that are drawn."""
_KNOWN = {
    "kind",
    "step",
    "loss",
    "lr",
    "grad_norm",
    "tokens",
    "skipped",
    "tokens_per_second",
    "seconds",
    "memory_bytes",
}
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def run_plots(record: Record) -> list[Plot]:
    """The plots of a run, the loss first; only those that have points."""
    plots = [
        loss_plot(record),
        curves(
            "Bits per byte",
            [_held_out(record, "bits_per_byte", "held-out text")],
            words=plain,
            note="On held-out text.",
        ),
        curves("Learning rate", [Series("learning rate", _points(record.train, "lr"))], words=plain, floor=0.0),
        _gradient(record),
        curves(
            "Tokens per second",
            smoothed("tokens per second", _points(record.train, "tokens_per_second")),
            words=readable_count,
            floor=0.0,
        ),
        _memory(record),
        *_measures(record),
    ]
    return [plot for plot in plots if plot is not None]


def loss_plot(record: Record) -> Plot | None:
    """Training loss, of each player where there are several, and validation loss."""
    players = list(dict.fromkeys(str(row.get("player", "")) for row in record.train))
    held_out = _held_out(record, "loss", "validation")
    if len(players) > 1:
        styles = ("line", "second")
        own = [[row for row in record.train if str(row.get("player", "")) == player] for player in players[:2]]
        series = [
            Series(f"training, {player}", _points(rows, "loss"), style)  # type: ignore[arg-type]
            for player, rows, style in zip(players, own, styles, strict=False)
        ]
        return curves("Loss", [*series, held_out], words=plain)
    points = _points(record.train, "loss")
    window = _window(points)
    note = f"The strong line is the median of {window} updates around each." if window else ""
    return curves("Loss", [*smoothed("training", points), held_out], words=plain, note=note)


def smoothed(name: str, points: Points) -> list[Series]:
    """A noisy curve: its median over a fiftieth of it, with the raw values faint behind."""
    window = _window(points)
    if not window:
        return [Series(name, points)]
    return [Series("each update", points, "faint"), Series(name, running_median(points, window))]


def plain(value: float) -> str:
    """A number with four digits: 3.214, 0.0003, 2.5e-05."""
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _window(points: Points) -> int:
    """Updates in the running median, an odd number; 0 for curves too short to need one."""
    return 2 * (len(points) // 100) + 1 if len(points) >= 100 else 0


def _points(rows: Sequence[Row], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if key in row and is_number(row[key])]


def _held_out(record: Record, key: str, name: str) -> Series:
    return Series(name, _points(record.validation, key), "points")


def _gradient(record: Record) -> Plot | None:
    limit: Any = record.setting("train.clip")
    note = f"Before clipping to {limit:g}." if is_number(limit) else "Not clipped."
    points = _points(record.train, "grad_norm")
    return curves("Gradient norm", smoothed("gradient norm", points), words=plain, note=note, floor=0.0)


def _memory(record: Record) -> Plot | None:
    points = _points(record.train, "memory_bytes")
    largest = max((y for _, y in points), default=0.0)
    size, unit = next(((size, unit) for size, unit in _UNITS if largest >= size), (1, "B"))
    scaled = [(x, y / size) for x, y in points]

    def words(value: float) -> str:
        return f"{value:.4g} {unit}" if value else "0"

    return curves("Memory", [Series("in use", scaled)], words=words, floor=0.0)


def _measures(record: Record) -> list[Plot | None]:
    """Terms of the loss and other numbers the method reports; what only repeats the loss is left out."""
    names = dict.fromkeys(key for rows in (record.train, record.validation) for row in rows for key in row)
    plots: list[Plot | None] = []
    for name in names:
        if name in _KNOWN or name == "bits_per_byte" or len(plots) == MEASURES:
            continue
        trained, held_out = _points(record.train, name), _points(record.validation, name)
        if not (trained or held_out) or _repeats_loss(record.train if trained else record.validation, name):
            continue
        title = name.replace("_", " ").capitalize()
        shown = [*smoothed("training", trained), Series("validation", held_out, "points")]
        plots.append(curves(title, shown, words=plain))
    return plots


def _repeats_loss(rows: Sequence[Row], name: str) -> bool:
    """Whether a term is the loss itself, as far as the first lines tell."""
    both = [(row["loss"], row[name]) for row in rows[:100] if is_number(row.get("loss")) and is_number(row.get(name))]
    return bool(both) and all(math.isclose(loss, value, rel_tol=1e-9) for loss, value in both)
