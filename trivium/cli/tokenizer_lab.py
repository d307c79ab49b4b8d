"""`trivium tokenizer lab`: which vocabulary suits your texts, by small models of equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show
from trivium.cli.tokenizer_report import table


def lab(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or built-in sources (pydocs).")],
    candidates: Annotated[
        list[str],
        typer.Option(help="Vocabularies such as bpe:4096,unigram:4096,char,byte; can be given several times."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder of the laboratory.")] = Path("runs/tokenizer-lab"),
    flops: Annotated[float, typer.Option(min=1.0, help="Operations of each run.")] = 2e13,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Runs of each candidate.")] = 3,
    preset: Annotated[str, typer.Option(help="Body of the models.")] = "llama-1m",
    megabytes: Annotated[float, typer.Option(min=0.001, help="Most text that is read.")] = 50.0,
    held_out: Annotated[float, typer.Option(min=0.001, max=0.5, help="Share of documents to measure on.")] = 0.05,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens in a row.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in an update.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Json = False,
) -> None:
    """Train candidates, and compare them in bits per byte by small models of equal compute.

    Stop it at any time; the same command continues.
    """
    from trivium.drivers.tokenizer_lab import Settings, laboratory, rows_of, verdict

    settings = Settings(
        sources=sources,
        candidates=candidates,
        flops=flops,
        preset=preset,
        seeds=seeds,
        megabytes=megabytes,
        held_out=held_out,
        sequence_length=sequence_length,
        batch_size=batch_size,
        lr=lr,
    )
    result = laboratory(settings, output, fresh=fresh)
    lines = [*table(rows_of(result)), *(f"careful: {remark}" for remark in result["remarks"]), verdict(result)]
    show(result, as_json=as_json, text="\n".join([*lines, f"page: {output / 'lab.html'}"]))
