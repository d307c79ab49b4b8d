"""The page about a ladder of small runs: equal-compute curves, the law over compute, the check, and the proposals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trivium.core.progress import readable_count, readable_seconds
from trivium.report.pipeline import Link, Stage, Table, write_pipeline_report
from trivium.report.plot import Plot, Relation, relation
from trivium.report.render import percent
from trivium.report.story import Figure

LEVEL_STYLES = ("faint", "second", "line")
"""How the levels of compute are drawn, from the smallest on."""


def write_scaling_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write the page of `scaling.json` to the file `out` and return it."""
    held_out, forecast = result["held_out"], result["held_out"]["forecast"]
    chosen = next(row for row in result["proposals"] if row["flops"] == result["target_flops"])
    seconds = sum(row["seconds"] for row in (*result["runs"], held_out))
    return write_pipeline_report(
        [_ladder(result), _law(result), _check(result), _proposals(result)],
        out,
        title="How loss falls with compute on this data",
        over="Trivium scaling law",
        lead=f"{len(result['runs'])} small runs of {result['recipe']} gave a law, which was then asked about a run of "
        f"{held_out['flops'] / max(row['flops'] for row in result['runs']):.1f} times the compute of the largest.",
        figures=[
            Figure("Forecast", f"{forecast['value']:.3f}", f"between {forecast['low']:.3f} and {forecast['high']:.3f}"),
            Figure(
                "Measured", f"{held_out['loss']:.3f}", "inside" if held_out["inside"] else "outside of the interval"
            ),
            Figure("Error", _signed(held_out["error"]), "forecast against fact"),
            Figure(
                "Best model for the target",
                readable_count(chosen["parameters"]),
                f"{readable_count(chosen['tokens'])} tokens, {_power(chosen['flops'])} operations",
            ),
            Figure("Time of the ladder", readable_seconds(seconds), "updates only"),
        ],
    )


def _ladder(result: Mapping[str, Any]) -> Stage:
    runs = [*result["runs"], result["held_out"]]
    rows = [
        [
            row["name"],
            readable_count(row["parameters"]),
            readable_count(row["tokens"]),
            f"{row['tokens'] / row['parameters']:.1f}",
            _power(row["flops"]),
            f"{row['lr']:.2g}",
            f"{row['batch_size']}",
            f"{row['loss']:.4f}",
            f"{row['fitted']:.4f}",
            _signed(row["fitted"] / row["loss"] - 1),
        ]
        for row in runs
    ]
    head = ["run", "N", "D", "D / N", "C", "lr", "rows", "loss", "fitted", "error"]
    return Stage(
        title="The ladder",
        what="Models of several sizes were trained at three levels of compute, each from random weights to the end of "
        "its learning-rate schedule, and measured on all of the held-out data.",
        why="At equal compute, a model can be too small to use the data or too large to be trained: the law is in the "
        "bend.",
        plots=[_levels(result)],
        tables=[
            Table(
                "",
                head,
                rows,
                "N parameters of matrices, D tokens, C = 6 N D operations, loss in nats for each token. The fitted "
                "values come from the law without the held-out run.",
            )
        ],
        links=[Link(row["name"], f"{row['name']}/report.html") for row in runs],
    )


def _law(result: Mapping[str, Any]) -> Stage:
    names = {"E": "E, what remains", "A": "A", "alpha": "alpha", "B": "B", "beta": "beta"}
    laws = [result["law"], result["law_with_held_out"]]
    rows = [[words, *(_between(law[name]) for law in laws)] for name, words in names.items()]
    rows.append(["spread of the runs", *(percent(law["spread"], 2) for law in laws)])
    powers = result["exponents"]
    return Stage(
        title="The law",
        what="L(N, D) = E + A / N^alpha + B / D^beta, fitted as in Hoffmann et al. 2022. With it, the best model grows "
        f"as C^{powers['parameters']:.2f} and its data as C^{powers['tokens']:.2f}. {' '.join(result['remarks'])}",
        why="Intervals hold nine of ten refits to reweighted runs. Wide ones say that the ladder is short.",
        plots=[_over_compute(result)],
        tables=[Table("", ["", "ladder", "ladder and held-out run"], rows)],
    )


def _check(result: Mapping[str, Any]) -> Stage:
    held_out = result["held_out"]
    verdict = "inside" if held_out["inside"] else "outside of"
    return Stage(
        title="The check",
        what=f"A model of {readable_count(held_out['parameters'])} parameters on {readable_count(held_out['tokens'])} "
        f"tokens was forecast before it was trained. Its loss is {verdict} the interval.",
        figures=[
            Figure("Forecast", _between(held_out["forecast"])),
            Figure("Measured", f"{held_out['loss']:.4f}"),
            Figure("Error", _signed(held_out["error"])),
        ],
    )


def _proposals(result: Mapping[str, Any]) -> Stage:
    rows = [
        [
            _power(row["flops"]),
            readable_count(row["parameters"]),
            f"{readable_count(row['best_parameters']['low'])} to {readable_count(row['best_parameters']['high'])}",
            readable_count(row["tokens"]),
            f"{row['epochs']:.1f}",
            f"{row['shape']['hidden_size']} x {row['shape']['num_layers']}",
            f"{row['batch_size']}",
            f"{row['lr']:.2g}",
            _between(row["loss"]),
        ]
        for row in result["proposals"]
    ]
    head = ["C", "N", "N between", "D", "passes", "width x depth", "rows", "lr", "loss"]
    largest = max(row["flops"] for row in (*result["runs"], result["held_out"]))
    return Stage(
        title="Proposals",
        what="The best size and amount of data for a budget of compute, with 6 N D = C.",
        why=f"Beyond {_power(10 * largest)} operations this is a long way from anything measured here, and where the "
        "data would be read more than four times, more data is needed.",
        tables=[Table("", head, rows)],
        links=[Link("The recipe for the target", "proposal.yaml"), Link("All numbers", "scaling.json")],
    )


def _levels(result: Mapping[str, Any]) -> Plot:
    """Loss over size, a curve for each level of compute: measured dots on fitted lines."""
    law = {name: result["law"][name]["value"] for name in ("E", "A", "B", "alpha", "beta")}
    runs = result["runs"]
    lines: list[Relation] = []
    for level in sorted({row["level"] for row in runs}):
        own = sorted((row["parameters"], row["loss"], row["flops"]) for row in runs if row["level"] == level)
        compute = math.exp(sum(math.log(flops) for _, _, flops in own) / len(own))
        low, high = math.log(own[0][0] / 1.3), math.log(own[-1][0] * 1.3)
        sizes = [math.exp(low + (high - low) * place / 40) for place in range(41)]
        fitted = [
            (n, law["E"] + law["A"] * n ** -law["alpha"] + law["B"] * (compute / 6 / n) ** -law["beta"]) for n in sizes
        ]
        style = LEVEL_STYLES[level % len(LEVEL_STYLES)]
        lines.append(Relation(f"{_power(compute)} operations", style, fitted, [(n, loss) for n, loss, _ in own]))
    return relation(
        "Loss by model size, at equal compute", lines, x_label="parameters of matrices, N", log=True, x_words=_power
    )


def _over_compute(result: Mapping[str, Any]) -> Plot:
    """The lowest loss over compute with its interval; the best run of each level and the held-out run as dots."""
    points = result["curve"]
    held_out = result["held_out"]
    best = [
        min(((row["flops"], row["loss"]) for row in result["runs"] if row["level"] == level), key=lambda pair: pair[1])
        for level in sorted({row["level"] for row in result["runs"]})
    ]
    lines = [
        Relation("lower end", "faint", [(row["flops"], row["low"]) for row in points]),
        Relation("upper end", "faint", [(row["flops"], row["high"]) for row in points]),
        Relation("lowest loss by the law", "line", [(row["flops"], row["value"]) for row in points], best),
        Relation("held-out run", "second", dots=[(held_out["flops"], held_out["loss"])]),
    ]
    return relation("Lowest loss over compute", lines, x_label="operations, C", log=True, x_words=_power)


def _power(value: float) -> str:
    """12,300,000,000,000 as 1.2e13, and 58,016 as 58k."""
    if value < 1e9:
        return readable_count(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _between(interval: Mapping[str, float]) -> str:
    low, value, high = (f"{interval[name]:.4g}" for name in ("low", "value", "high"))
    return f"{value} ({low} to {high})"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}\u202f%".replace("-", "\u2212")
