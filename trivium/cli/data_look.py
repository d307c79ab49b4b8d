"""`trivium data look`: a first look at data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from trivium.data.step import Step


def look(
    sources: Annotated[
        list[str], typer.Argument(help="Files, folders, built-in sources, or the output folder of a pipeline.")
    ],
    tokenizer: Annotated[Path | None, typer.Option(help="Count tokens with this tokenizer or model folder.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=200, help="How many entries to show.")] = 8,
    step: Annotated[
        list[str] | None,
        typer.Option(
            help="Try a step of a pipeline on every entry, alone: gopher_quality, or {name: c4, least_sentences: 3}; "
            "can be given several times."
        ),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Column that holds the text of a document.")] = "text",
    format: Annotated[str, typer.Option(help="How files are read: auto, jsonl, csv, txt, ...")] = "auto",
    as_json: Json = False,
) -> None:
    """Show what data holds: shapes, lengths, languages, repetition, odd entries, samples.

    For the output folder of a pipeline also what each step left out. Reads everything once, in flat memory.
    """
    from trivium.data.look.gather import look
    from trivium.recipe import Source
    from trivium.report.data_look import as_dict, as_page, as_text

    counted = None
    if tokenizer is not None:
        from trivium.tokenizers.tokenizer import Tokenizer

        counted = Tokenizer.load(tokenizer)
    read = [Source(path=name, text_field=text_field, format=format) for name in sources]
    found = look(read, tokenizer=counted, samples=samples, steps=[_step(text) for text in step or []])
    if html is not None:
        from trivium.artifacts.writer import write_file

        write_file(html, as_page(found))
    written = f"\n\nwritten to {html}" if html else ""
    show(as_dict(found), as_json=as_json, text=as_text(found) + written)


def _step(text: str) -> tuple[str, Step]:
    """A step by its name, or with settings, written as in a pipeline file."""
    from trivium.data.pipeline.plan import resolve_pipeline
    from trivium.data.pipeline.work import make_step
    from trivium.data.step import CorpusStep
    from trivium.errors import ConfigError
    from trivium.marked_yaml import parse_value

    written = parse_value(text, where="--step").plain()
    resolved = resolve_pipeline({"name": "look", "output": "look", "sources": ["pydocs"], "steps": [written]})
    chosen = resolved.steps[0]
    made = make_step(chosen.cls, chosen.dump(), resolved.pipeline.seed)
    if isinstance(made, CorpusStep):
        raise ConfigError(
            "this step decides about a whole corpus, not about one entry",
            where="--step",
            value=chosen.name,
            fix="run it in a pipeline: trivium data run PIPELINE --dry-run",
        )
    return chosen.name, made
