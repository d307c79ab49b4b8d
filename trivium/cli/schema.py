"""`trivium schema`: recipes explained to editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output: Annotated[Path | None, typer.Option("--output", help="File to write; default: print it.")] = None,
) -> None:
    """Write the JSON schema of recipes for editors."""
    import json

    from trivium.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    from trivium.artifacts.writer import write_file

    write_file(output, text)
    typer.echo(f"written; begin recipes in that folder with: # yaml-language-server: $schema={output.name}", err=True)
