"""Results go to stdout, as text for people or as one JSON object for programs; everything else goes to stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
"""The option every verb with a result has."""


def show(result: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Prints the result once, also when torchrun started several processes."""
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(json.dumps(result, ensure_ascii=False, default=str) if as_json else text)
