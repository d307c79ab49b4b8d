"""`trivium tokenizer`: train one, and see what it does to a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trivium.cli.output import Json, show
from trivium.cli.tokenizer_extend import extend
from trivium.cli.tokenizer_import import import_, write_tokenizer
from trivium.cli.tokenizer_lab import lab
from trivium.cli.tokenizer_report import report
from trivium.cli.vectors import vectors

app = typer.Typer(help="Train and try tokenizers and word vectors.", no_args_is_help=True, rich_markup_mode=None)
app.command("import")(import_)
app.command()(extend)
app.command()(report)
app.command()(lab)
app.command()(vectors)

KindOption = Annotated[
    Literal["bpe", "wordpiece", "unigram", "char-bpe", "word", "char", "byte"],
    typer.Option(
        help="bpe: frequent runs of bytes. wordpiece: BERT's. unigram, char-bpe: SentencePiece's two. word: whole "
        "words. char: the characters of the documents. byte: the 256 bytes."
    ),
]
SpecialOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Further special tokens: mask (for mlm), sentinels (denoise), middle (clm), modes (UL2), or a token "
        "as it is written; can be given several times. Not for word, char and byte."
    ),
]


@app.command()
def train(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or built-in sources (pydocs).")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    kind: KindOption = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Number of tokens; default 8192. Not for char and byte.")
    ] = None,
    split: Annotated[
        Literal["gpt4", "gpt2"] | None,
        typer.Option(help="How text is cut before bpe tokens are learnt; default gpt4."),
    ] = None,
    special: SpecialOption = None,
    normalise: Annotated[
        Literal["none", "nfc", "nfd", "nfkc", "nfkd", "nmt_nfkc"] | None,
        typer.Option(
            help="Unicode form of texts, for unigram (default nmt_nfkc, as SentencePiece), char-bpe, char and byte."
        ),
    ] = None,
    lowercase: Annotated[
        bool | None,
        typer.Option(
            "--lowercase/--cased", help="Small letters, for wordpiece (the default), unigram, char-bpe, word."
        ),
    ] = None,
    prefix_space: Annotated[
        bool | None,
        typer.Option(
            "--prefix-space/--no-prefix-space", help="A space in front of each text, for unigram and char-bpe."
        ),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(min=1, help="Rarer words and pairs get no token; default 2. Not for unigram, char and byte."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a tokenizer.")] = False,
    as_json: Json = False,
) -> None:
    """Make a vocabulary from documents."""
    from trivium.artifacts.record import parent_of
    from trivium.artifacts.writer import check_target
    from trivium.tokenizers.kinds import check_options, train_kind

    options = {
        "vocab_size": vocab_size,
        "split": split,
        "special": special,
        "normalise": normalise,
        "lowercase": lowercase,
        "prefix_space": prefix_space,
        "min_count": min_count,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    check_options(kind, given)
    check_target(output, kind="tokenizer", replace=replace)
    tokenizer = train_kind(kind, _texts(sources), **given)
    settings = {"sources": sources, "kind": kind, **options}
    parents = [parent_of(Path(name), role="documents") for name in sources if Path(name).exists()]
    write_tokenizer(tokenizer, output, as_json=as_json, parents=parents, config=settings, replace=replace)


def _texts(sources: list[str]) -> Iterator[str]:
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source

    intake = Intake()
    for name in sources:
        for document in read_documents(Source.model_validate({"path": name}), intake):
            yield document.text


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
