"""`trivium chat`: a conversation in the terminal."""

from __future__ import annotations

from trivium.cli.generate import Device, MaxNewTokens, Model, Seed, Temperature, TopP


def chat(
    model: Model,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Talk to a tuned model.

    An empty line or Ctrl-D ends the conversation.
    """
    from trivium.inference.model import load
    from trivium.inference.terminal import converse

    converse(load(model, device=device), max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
