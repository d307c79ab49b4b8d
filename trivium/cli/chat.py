"""`trivium chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from trivium.cli.generate import (
    BaseFolder,
    Device,
    Dtype,
    MaxNewTokens,
    MinP,
    Model,
    Repetition,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    Weights,
    open_model,
)


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: Dtype = None,
    weights: Weights = None,
    threads: Threads = None,
    base: BaseFolder = None,
) -> None:
    """Talk to a tuned model, in the terminal or through a pipe (one line is one message).

    /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    from trivium.inference.terminal import converse

    converse(
        open_model(model, device=device, dtype=dtype, threads=threads, base=base, weights=weights),
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
