"""`trivium data why`: why a document is in a corpus, or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def why(
    output: Annotated[Path, typer.Argument(help="A folder that `trivium data run` wrote.")],
    document: Annotated[str, typer.Argument(metavar="ID", help="Id of a document, or the SHA-256 of its text.")],
    as_json: Json = False,
) -> None:
    """Say what each step of a pipeline said about a document."""
    from trivium.data.pipeline.why import as_text, why

    found = why(output, document)
    show({"document": document, "found": found}, as_json=as_json, text=as_text(found))
