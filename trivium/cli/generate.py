"""`trivium generate`: text from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show

Model = Annotated[Path, typer.Argument(help="A model folder.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: as the model folder says, else 1.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens only.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the most likely tokens that together have this share.")]
MinP = Annotated[float | None, typer.Option(help="Leave out tokens below this share of the most likely one.")]
Repetition = Annotated[float | None, typer.Option(help="Above 1: tokens that occurred become less likely.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text at which to stop; may be given several times.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue, or - to read it from the input.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a question to a tuned model.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Continue a text, or answer a question."""
    import sys
    from dataclasses import asdict

    from trivium.inference.model import Options, Prompt, load

    text = sys.stdin.read() if prompt == "-" else prompt
    asked: Prompt = [{"role": "user", "content": text}] if chat else text
    options: Options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
    }
    loaded = load(model, device=device)
    if as_json:
        show(asdict(loaded.generate(asked, details=True, **options)), as_json=True, text="")
        return
    for piece in loaded.stream(asked, **options):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
