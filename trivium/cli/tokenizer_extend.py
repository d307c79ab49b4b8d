"""`trivium tokenizer extend`: more tokens for a tokenizer, and rows for them in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trivium.cli.output import Json, show


def extend(
    folder: Annotated[Path, typer.Argument(help="A tokenizer folder, or a model folder, whose embeddings grow too.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    tokens: Annotated[
        list[str] | None,
        typer.Option("--tokens", help="A new token, found wherever a text spells it; can be given several times."),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option("--special", help="A new special token, or mask, sentinels, middle, modes; can be given often."),
    ] = None,
    whole_words: Annotated[
        bool, typer.Option("--whole-words", help="Find --tokens only where no letter or digit stands beside them.")
    ] = False,
    from_texts: Annotated[
        list[str] | None, typer.Option("--from-texts", help="Documents to learn tokens from; can be given often.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Tokens to learn from the documents.")] = 256,
    min_count: Annotated[int, typer.Option(min=1, help="What is rarer in the documents is not learnt.")] = 10,
    embeddings: Annotated[
        Literal["mean", "random", "zeros"],
        typer.Option(
            help="Where new rows start: mean of the tokens that stood for the text until now, or random, or 0."
        ),
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Seed of random rows.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is of the same kind.")] = False,
    as_json: Json = False,
) -> None:
    """Add tokens; old ones keep their ids, and a model says the same about them."""
    from trivium.drivers.tokenizer_extend import extend_folder
    from trivium.tokenizers.special import expanded

    result = extend_folder(
        folder,
        output,
        tokens=tokens or [],
        special=expanded(special or []),
        whole_words=whole_words,
        sources=from_texts or [],
        count=count,
        min_count=min_count,
        embeddings=embeddings,
        seed=seed,
        replace=replace,
    )
    shown = ", ".join(result["added"][:8]) + (", ..." if len(result["added"]) > 8 else "")
    number = len(result["added"])
    text = f"{number} new token{'s' if number > 1 else ''} ({shown}), {result['vocab_size']} in {output}"
    show(result, as_json=as_json, text=text)
