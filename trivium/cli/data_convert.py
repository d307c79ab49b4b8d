"""`trivium data convert`: rows from one shape and kind of file to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def convert(
    paths: Annotated[
        list[str], typer.Argument(metavar="IN... OUT", help="Files or folders to read; the file to write.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="messages, sharegpt, alpaca, prompt_completion, preferences, ranked, kto, text, labels or pairs; "
            "default: rows stay as they are, only the kind of file changes."
        ),
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave out what the new shape cannot say, and count it.")
    ] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Set rows aside that cannot be read or converted, and count them.")
    ] = False,
    format: Annotated[str, typer.Option(help="How the input is read: auto, jsonl, csv, alpaca, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Convert rows to another shape, or to another kind of file.

    What the rows are is recognised from their fields. Nothing is lost in silence: a row that the new shape cannot hold
    is an error with its place.
    """
    from trivium.data.convert import convert, describe
    from trivium.errors import DataError
    from trivium.recipe import Source

    if len(paths) < 2:
        raise DataError("two paths are needed", value=paths[0], fix="name what to read and the file to write")
    sources = [Source(path=path, format=format) for path in paths[:-1]]
    account = convert(sources, Path(paths[-1]), to=to, lossy=lossy, on_error="quarantine" if quarantine else "error")
    show(account.as_dict(), as_json=as_json, text=describe(account))
