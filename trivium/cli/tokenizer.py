"""`trivium tokenizer`: train one, and see what it does to a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trivium.cli.output import Json, show
from trivium.cli.vectors import vectors
from trivium.errors import TokenizerError

app = typer.Typer(help="Train and try tokenizers and word vectors.", no_args_is_help=True, rich_markup_mode=None)
app.command()(vectors)


@app.command()
def train(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or built-in sources (pydocs).")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    kind: Annotated[
        Literal["bpe", "word", "char", "byte"],
        typer.Option(help="Frequent pieces of text, whole words, the characters of the documents, or the 256 bytes."),
    ] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Number of tokens of a bpe or word vocabulary; default 8192.")
    ] = None,
    split: Annotated[
        Literal["gpt4", "gpt2"] | None,
        typer.Option(help="How text is cut before bpe tokens are learnt; default gpt4."),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(
            help="Further special tokens of a bpe vocabulary: mask (for mlm), sentinels (denoise), middle (clm), modes "
            "(UL2), or a token as it is written; can be given several times."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a tokenizer.")] = False,
    as_json: Json = False,
) -> None:
    """Make a vocabulary from documents: byte-level BPE, words, characters or bytes."""
    from trivium.artifacts.record import parent_of
    from trivium.artifacts.writer import check_target, write_artifact
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.train import train_bpe, train_bytes, train_characters, train_word

    for option, value in (("--vocab-size", vocab_size), ("--split", split), ("--special", special)):
        if value is not None and kind != "bpe" and (kind, option) != ("word", "--vocab-size"):
            raise TokenizerError(f"{option} has no effect on --kind {kind}", value=value, fix=f"leave out {option}")
    check_target(output, kind="tokenizer", replace=replace)
    intake = Intake()
    texts = (
        document.text for name in sources for document in read_documents(Source.model_validate({"path": name}), intake)
    )
    if kind == "bpe":
        tokenizer = train_bpe(
            texts, vocab_size=vocab_size or 8192, split=split or "gpt4", special=expanded(special or [])
        )
    elif kind == "word":
        tokenizer = train_word(texts, vocab_size=vocab_size or 8192)
    else:
        tokenizer = train_characters(texts) if kind == "char" else train_bytes()
    settings = {"sources": sources, "kind": kind, "vocab_size": vocab_size, "split": split, "special": special}
    parents = [parent_of(Path(name), role="documents") for name in sources if Path(name).exists()]
    with write_artifact(output, kind="tokenizer", parents=parents, config=settings, replace=replace) as folder:
        tokenizer.save(folder)
    for message in tokenizer.messages:
        typer.echo(message, err=True)
    result = {"folder": str(output), "vocab_size": tokenizer.vocab_size}
    show(result, as_json=as_json, text=f"{tokenizer.vocab_size} tokens in {output}")


@app.command()
def encode(
    folder: Annotated[Path, typer.Argument(help="A tokenizer or model folder.")],
    text: Annotated[str, typer.Argument(help="The text, or - to read it from the input.")],
    as_json: Json = False,
) -> None:
    """Show the tokens of a text."""
    import sys

    from trivium.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    words = sys.stdin.read() if text == "-" else text
    ids = tokenizer.encode(words)
    pieces = [tokenizer.decode([token], skip_special=False) for token in ids]
    lines = [f"{token:>7}  {piece!r}" for token, piece in zip(ids, pieces, strict=True)]
    lines.append(f"{len(ids)} tokens for {len(words.encode())} bytes")
    show({"ids": ids, "tokens": pieces}, as_json=as_json, text="\n".join(lines))
