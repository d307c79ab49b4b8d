"""`trivium doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def doctor(
    runs: Annotated[Path, typer.Option("--runs", help="Folder that will hold the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Check this machine, and say what to do.

    Looks at Python, packages, torch, compiler, disk, memory, GPU and arithmetic.
    """
    from trivium.cli.checks.findings import diagnose
    from trivium.errors import EXIT_INPUT

    diagnosis = diagnose(runs)
    show(diagnosis.as_dict(), as_json=as_json, text=diagnosis.render())
    if diagnosis.failed:
        raise typer.Exit(EXIT_INPUT)
