"""`trivium data classifier`: a linear classifier of texts for the step `moderate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def classifier(
    rows: Annotated[str, typer.Argument(help="Rows with a text and a column of 0 and 1 for each category.")],
    label: Annotated[list[str], typer.Option(help="Column of a category; given once for each.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    text: Annotated[str | None, typer.Option(help="Column of the text; default: text, prompt, ...")] = None,
    strength: Annotated[
        float, typer.Option(min=0.001, help="How closely it follows the rows; less where there are few.")
    ] = 10.0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a classifier.")] = False,
    as_json: Json = False,
) -> None:
    """Train a linear classifier of harmful texts.

    Takes seconds for thousands of rows. A label that is missing in a row is not known, and not trained.
    """
    from trivium.data.safety.linear import train_linear

    facts = train_linear(rows, output, text=text, labels=label, strength=strength, replace=replace)
    counts = ", ".join(f"{name} {count:,}" for name, count in facts["positives"].items())
    show({"folder": str(output), **facts}, as_json=as_json, text=f"{facts['rows']:,} rows ({counts}) -> {output}")
