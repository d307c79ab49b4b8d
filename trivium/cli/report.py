"""`trivium report`: the page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def report(run: Annotated[Path, typer.Argument(help="A run folder, finished or not.")], as_json: Json = False) -> None:
    """Write the page about a run.

    One file, readable offline: curves, samples, data, configuration, lineage and cost.
    """
    from trivium.report.report import write_report

    path = write_report(run)
    show({"report": str(path)}, as_json=as_json, text=str(path))
