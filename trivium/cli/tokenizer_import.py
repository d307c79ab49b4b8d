"""`trivium tokenizer import`: a SentencePiece or tiktoken file as a folder of Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.output import Json, show
from trivium.errors import TokenizerError

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def import_(
    file: Annotated[Path, typer.Argument(help="A SentencePiece .model, or a .tiktoken file.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write.")],
    encoding: Annotated[
        str | None,
        typer.Option(help="How a .tiktoken file cuts text: gpt2, p50k_base, cl100k_base, o200k_base, llama3 or qwen2."),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(help="A special token of a .tiktoken file and its id (TOKEN=ID); can be given several times."),
    ] = None,
    end: Annotated[str | None, typer.Option(help="The special token of a .tiktoken file that ends a text.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a tokenizer.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a SentencePiece or tiktoken file: the same ids."""
    from trivium.artifacts.record import parent_of
    from trivium.artifacts.writer import check_target

    check_target(output, kind="tokenizer", replace=replace)
    tokenizer = _read(file, encoding, special or [], end)
    settings = {"file": str(file), "encoding": encoding, "special": special, "end": end}
    parents = [parent_of(file, role="vocabulary")]
    write_tokenizer(tokenizer, output, as_json=as_json, parents=parents, config=settings, replace=replace)


def write_tokenizer(tokenizer: Tokenizer, output: Path, *, as_json: bool, **facts: Any) -> None:
    """Write a new tokenizer and say so; facts: of the artifact."""
    from trivium.artifacts.writer import write_artifact

    with write_artifact(output, kind="tokenizer", **facts) as folder:
        tokenizer.save(folder)
    for message in tokenizer.messages:
        typer.echo(message, err=True)
    result = {"folder": str(output), "vocab_size": tokenizer.vocab_size}
    show(result, as_json=as_json, text=f"{tokenizer.vocab_size} tokens in {output}")


def _read(file: Path, encoding: str | None, special: list[str], end: str | None) -> Tokenizer:
    from trivium.tokenizers.ranks import import_tiktoken
    from trivium.tokenizers.sentencepiece import import_sentencepiece

    if file.suffix == ".model":
        for name, value in (("--encoding", encoding), ("--special", special or None), ("--end", end)):
            if value is not None:
                raise TokenizerError(f"{name} is for .tiktoken files", value=value, fix=f"leave out {name}")
        return import_sentencepiece(file)
    if file.suffix != ".tiktoken":
        raise TokenizerError(
            "only SentencePiece and tiktoken files are converted, told by .model and .tiktoken",
            where=file,
            fix="give the file its usual name",
        )
    if encoding is None:
        raise TokenizerError(
            "a .tiktoken file does not say how text is cut",
            where=file,
            fix="name its encoding: --encoding cl100k_base",
        )
    return import_tiktoken(file, encoding=encoding, special=dict(map(_numbered, special)), end=end)


def _numbered(text: str) -> tuple[str, int]:
    token, _, number = text.rpartition("=")
    if not token or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise TokenizerError("a special token is given with its id", where="--special", value=text, fix="TOKEN=ID")
    return token, int(number)
