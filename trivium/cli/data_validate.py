"""`trivium data validate`: whether the rows of files can be trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.output import Json, show


def validate(
    files: Annotated[list[str], typer.Argument(help="Files or folders of rows.")],
    shape: Annotated[str, typer.Option(help="What the rows must be; default: recognised for each row.")] = "auto",
    limit: Annotated[int, typer.Option(min=0, help="How many problems to show of each file.")] = 20,
    format: Annotated[str, typer.Option(help="How the files are read: auto, jsonl, csv, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Check every row, and name all problems with their places.

    Exit code 2 if there is any.
    """
    from trivium.data.messages import use_one_of
    from trivium.data.shapes import SHAPES
    from trivium.data.validate import describe, validate
    from trivium.errors import EXIT_INPUT, DataError
    from trivium.recipe import Source

    if shape != "auto" and shape not in SHAPES:
        raise DataError("there is no such shape", value=shape, fix=use_one_of(shape, SHAPES))
    found = [validate(Source(path=file, format=format), shape=shape, limit=limit) for file in files]
    show({"files": [one.as_dict() for one in found]}, as_json=as_json, text="\n\n".join(map(describe, found)))
    if any(one.wrong for one in found):
        raise typer.Exit(EXIT_INPUT)
