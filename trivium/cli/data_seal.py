"""`trivium data seal`: make a test set known to training without giving its text away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def seal(
    files: Annotated[list[Path], typer.Argument(help="Files of the test set: rows of any shape, or documents.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; sealed/NAME beside runs/ counts.")],
    name: Annotated[str | None, typer.Option(help="Name of the set; default: that of the folder.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the test set.")] = None,
    date: Annotated[str | None, typer.Option(help="When it was made (2024-05-31); default: today.")] = None,
    ngram: Annotated[int, typer.Option(min=5, max=100, help="Words in a run that counts as the same text.")] = 13,
    shortest: Annotated[int, typer.Option(min=1, help="Words of the shortest passage that counts.")] = 5,
    as_json: Json = False,
) -> None:
    """Seal a test set: no training run may see its text.

    Writes hashes of its runs of words, and no text. Every `trivium train` checks its training data against the sealed
    sets in `sealed/` beside the folder of runs, and those that `data.sealed` names.
    """
    from trivium.data.sealing import seal as make

    sealed = make(files, output, name=name, licence=licence, date=date, ngram=ngram, shortest=shortest)
    facts = sealed.facts
    text = (
        f"{output}: {facts['rows']:,} rows, {facts['runs']:,} runs of {ngram} words, {sealed.hash[:12]}\n"
        f"left out: {facts['passages_too_short']:,} passages under {shortest} words, "
        f"{facts['runs_too_common']:,} runs that many rows share; "
        f"{facts['rows_without_runs']:,} rows cannot be recognised"
    )
    show({"folder": str(output), "hash": sealed.hash, **facts}, as_json=as_json, text=text)
