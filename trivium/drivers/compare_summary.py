"""What a comparison found: a row for each contender, tests of their differences, and a recommendation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.comparison import Comparison
from trivium.evaluation.intervals import Floats
from trivium.evaluation.significance import holm, paired_p, share_right

Result = dict[str, Any]


def rows_of(
    results: Sequence[Result], names: Sequence[str], truth: Sequence[str], settings: Comparison
) -> list[dict[str, Any]]:
    """A row for each contender on one base, the best one first, each with its difference to that."""
    by_name = {name: [result for result in results if result["contender"] == name] for name in names}
    rows = [_row(name, own, truth, settings) for name, own in by_name.items() if own]
    rows.sort(key=lambda row: -row["accuracy"]["value"])
    _compare_with_best(rows, by_name, truth)
    return rows


def _right(results: Sequence[Result], truth: Sequence[str]) -> Floats:
    """[R, N] whether run r had row n right."""
    return np.array([[float(p == t) for p, t in zip(result["predicted"], truth, strict=True)] for result in results])


def _row(name: str, results: Sequence[Result], truth: Sequence[str], settings: Comparison) -> dict[str, Any]:
    """One contender over its seeds."""

    def mean(key: str) -> float | None:
        values = [result[key] for result in results if result[key] is not None]
        return statistics.mean(values) if values else None

    figure = share_right(_right(results, truth), level=settings.level)
    each = [result["accuracy"] for result in results]
    keys = ("macro_f1", "trained_parameters", "stored_bytes", "peak_memory_bytes", "seconds", "latency_ms",
            "texts_per_second", "forgetting", "without_answer")  # fmt: skip
    return {
        "contender": name,
        "accuracy": figure.as_dict(),
        "each_seed": each,
        "spread": statistics.stdev(each) if len(each) > 1 else None,
        "lr": results[0]["lr"],
        **{key: mean(key) for key in keys},
    }


def _compare_with_best(
    rows: list[dict[str, Any]], results: Mapping[str, Sequence[Result]], truth: Sequence[str]
) -> None:
    """Adds to each row its difference to the first one, and how likely it is by chance, corrected for their number."""
    right = {row["contender"]: _right(results[row["contender"]], truth) for row in rows}
    best = right[rows[0]["contender"]]
    adjusted = holm([paired_p(best, right[row["contender"]]) for row in rows[1:]])
    for row, p in zip(rows, [1.0, *adjusted], strict=True):
        row["behind_best"] = float(best.mean() - right[row["contender"]].mean())
        row["p"] = p


def recommend(rows: Sequence[Mapping[str, Any]], settings: Comparison) -> dict[str, Any]:
    """The cheapest of those that are not shown to be worse than the best and forget no more than allowed."""
    limit = settings.max_forgetting
    allowed = [row for row in rows if limit is None or row["forgetting"] is None or row["forgetting"] <= limit]
    if not allowed:
        return {"contender": None, "reason": f"all of them forget more than {limit} bits per byte"}
    best = allowed[0]
    alike = [row for row in allowed if row is best or row["p"] > 1 - settings.level]
    chosen = min(alike, key=lambda row: (row["stored_bytes"], row["seconds"]))
    if best is not rows[0]:
        start = f"{rows[0]['contender']} was right more often but forgets more than {limit:g} bits per byte. "
    else:
        start = ""
    if chosen is best:
        worse = len(rows) - len(alike)
        reason = f"{start}It was right most often, and the others were worse ({worse}) or cost more to keep."
    else:
        reason = (
            f"{start}It is not shown to be worse than {best['contender']} (difference "
            f"{100 * (chosen['behind_best'] - best['behind_best']):.1f} points, p = {chosen['p']:.2g}), and "
            f"keeps {_times(best['stored_bytes'], chosen['stored_bytes'])} less on the disk."
        )
    return {"contender": chosen["contender"], "reason": reason, "alike": [row["contender"] for row in alike]}


def _times(large: float, small: float) -> str:
    ratio = large / small if small else math.inf
    return f"{ratio:.0f} times" if math.isfinite(ratio) and ratio >= 2 else f"{(large - small) / 1024:.0f} KiB"
