"""One report over several stages: documents, tokenizer, pretraining, tuning, evaluation, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from trivium.artifacts.writer import write_file
from trivium.errors import TriviumError
from trivium.report.curves import loss_plot
from trivium.report.plot import Plot
from trivium.report.record import read_record
from trivium.report.render import render
from trivium.report.story import Figure, key_figures, run_state

OF_A_RUN = {"Training loss", "Validation loss", "Tokens trained", "Time", "Speed", "Peak memory"}
"""Key figures of a run that are repeated in the pipeline's page."""


@dataclass(frozen=True)
class Table:
    """A small table; cells are text, those that begin like a number stand to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar; `own` marks the one the comparison is about."""

    label: str
    value: float
    own: bool = False


@dataclass(frozen=True)
class Bars:
    """A comparison of a few values, as bars from zero; digits are those after the point."""

    title: str
    bars: Sequence[Bar]
    unit: str = ""
    note: str = ""
    digits: int = 2

    @property
    def drawn(self) -> list[dict[str, Any]]:
        """Labels, lengths in percent of the longest, and the values in words."""
        longest = max((bar.value for bar in self.bars), default=0.0) or 1.0
        return [
            {
                "label": bar.label,
                "share": 100 * bar.value / longest,
                "words": f"{bar.value:,.{self.digits}f}",
                "own": bar.own,
            }
            for bar in self.bars
        ]


@dataclass(frozen=True)
class Comparison:
    """Answers to the same prompts side by side: columns such as before and after, rows of (prompt, answers)."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    title: str = ""

    def paired(self, answers: Sequence[str]) -> list[tuple[str, str]]:
        """Each answer under its column."""
        return list(zip(self.columns, answers, strict=False))


@dataclass(frozen=True)
class Link:
    """A file of the pipeline, relative to the report."""

    text: str
    href: str


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    what, why: what was done, and the reason, in a sentence or two each.
    run:       a training run, whose key figures, loss curves and report become part of the stage.
    """

    title: str
    what: str = ""
    why: str = ""
    state: Literal["done", "running", "waiting", "failed"] = "done"
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    bars: Sequence[Bars] = ()
    comparisons: Sequence[Comparison] = ()
    links: Sequence[Link] = ()
    run: Path | None = None
    plots: Sequence[Plot] = field(default=(), kw_only=True)


def write_pipeline_report(
    stages: Sequence[Stage],
    out: Path,
    *,
    title: str = "From raw text to a tuned model",
    over: str = "Trivium quickstart",
    lead: str = "",
    figures: Sequence[Figure] = (),
) -> Path:
    """Write the page of a whole pipeline to the file `out` and return it.

    over, lead: the line above the title, and the summary below it.  figures: what came of it, in numbers.
    """
    out = Path(out)
    values = {
        "title": title,
        "over": over,
        "lead": lead,
        "figures": figures,
        "stages": [_with_run(stage, out.parent) for stage in stages],
        "contents": [("top", "Overview"), *((f"stage-{n}", stage.title) for n, stage in enumerate(stages, start=1))],
    }
    write_file(out, render("pipeline.html", values))
    return out


def _with_run(stage: Stage, folder: Path) -> dict[str, Any]:
    """The stage as the template reads it, with what its run says."""
    values = {name: getattr(stage, name) for name in Stage.__dataclass_fields__}
    if stage.run is None:
        return values
    try:
        record = read_record(stage.run)
    except TriviumError:
        return values
    values["figures"] = [*stage.figures, *(figure for figure in key_figures(record) if figure.label in OF_A_RUN)]
    loss = loss_plot(record)
    values["plots"] = [*stage.plots, *([loss] if loss else [])]
    state = run_state(record)
    if record.state not in ("finished", "running"):
        values["what"] = f"{stage.what} {state.word}: {state.explanation}".strip()
    report = stage.run / "report.html"
    if report.is_file():
        values["links"] = [*stage.links, Link(f"Everything about the run {record.name}", _relative(report, folder))]
    return values


def _relative(path: Path, folder: Path) -> str:
    """How a page in `folder` names `path`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())
