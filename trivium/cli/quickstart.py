"""`trivium quickstart`: from the documentation in this Python installation to a tuned model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def quickstart(
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Json = False,
) -> None:
    """Make a language model of your own in minutes.

    Stop it at any time; the same command continues.
    """
    from trivium.drivers.quickstart import quickstart as run_quickstart

    result = run_quickstart(runs=runs, fresh=fresh)
    text = f"the tuned model is in {result.final}; the report is {result.report}"
    show({"final": str(result.final), "report": str(result.report)}, as_json=as_json, text=text)
