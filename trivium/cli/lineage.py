"""`trivium lineage`: what an artifact was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json


def lineage(
    path: Annotated[Path, typer.Argument(help="A model, data or tokenizer folder, or a run.")],
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw the graph into this file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the graph as a page.")] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Where to look for parents that were moved.")] = None,
    as_json: Json = False,
) -> None:
    """Show what an artifact was made from."""
    from trivium.artifacts.lineage import read_lineage, render_html, render_json, render_svg, render_text
    from trivium.artifacts.writer import write_file

    graph = read_lineage(path, runs=runs)
    for target, render in ((svg, render_svg), (html, render_html)):
        if target is not None:
            write_file(target, render(graph))
    typer.echo(render_json(graph) if as_json else render_text(graph))
