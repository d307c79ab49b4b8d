"""`trivium lineage`: what an artifact was made from, and what a document went into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show
from trivium.errors import ArtifactError


def lineage(
    paths: Annotated[
        list[Path], typer.Argument(help="A model, data or tokenizer folder, or a run; with --document: where to look.")
    ],
    document: Annotated[
        str | None, typer.Option(help="Id of a document or SHA-256 of its text: which artifacts have seen it.")
    ] = None,
    takedown: Annotated[bool, typer.Option("--takedown", help="With --document: what must be made again.")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw the graph into this file.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the graph as a page.")] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Where to look for parents that were moved.")] = None,
    as_json: Json = False,
) -> None:
    """Show what an artifact was made from.

    With --document: what a document went into, and with --takedown what must be made again without it, in order.
    """
    if document is not None:
        from trivium.artifacts.lineage_documents import render_takedown, render_trace, trace_document

        trace = trace_document(document, paths)
        show(trace.to_json(), as_json=as_json, text=render_takedown(trace) if takedown else render_trace(trace))
        return
    if takedown or len(paths) > 1:
        problem = "--takedown needs a document" if takedown else "the past of one artifact can be shown at a time"
        raise ArtifactError(problem, where=paths[-1], fix="add --document ID, or give one folder")
    from trivium.artifacts.lineage import read_lineage, render_html, render_json, render_svg, render_text
    from trivium.artifacts.writer import write_file

    graph = read_lineage(paths[0], runs=runs)
    for target, render in ((svg, render_svg), (html, render_html)):
        if target is not None:
            write_file(target, render(graph))
    typer.echo(render_json(graph) if as_json else render_text(graph))
