"""Buckets of similar lengths give what one call for each sequence gives."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from trivium.data.batch import Layout, Source
from trivium.models import attention, padded
from trivium.models.build import build_model, preset
from trivium.models.padded import worth_padding

DRAW = random.Random(0)
LENGTHS = (270, *(DRAW.randrange(1, 40) for _ in range(60)), 270)
SOURCES = (3, *(DRAW.randrange(1, 40) for _ in range(60)), 300)
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}


def gradients(model: torch.nn.Module, *inputs: Any, **more: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    logits = model(*inputs, **more)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("t5-1m", {"init_std": 0.5}),
        ("bart-1m", {"max_positions": 300, "init_std": 0.2}),
        ("llama-1m", {"max_positions": 300, "init_std": 0.2}),
        ("mistral-1m", {"max_positions": 300, "init_std": 0.2, "sliding_window": 5}),
        ("bert-1m", {"max_positions": 300, "init_std": 0.2}),
        ("gemma2-1m", {"max_positions": 300, "init_std": 0.2, "sliding_window": 5}),
    ],
)
def test_results_and_gradients(name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset(name, {**SMALL, "num_layers": 2, **changes})
    model = build_model(config, seed=0, dtype=torch.float64)
    ids = torch.randint(0, 64, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    more: dict[str, Any] = {}
    if config.kind == "encoder_decoder":
        source = torch.randint(0, 64, (sum(SOURCES),), generator=torch.Generator().manual_seed(1))
        more = {"source": Source(source, Layout(SOURCES))}
    used: list[int] = []
    real = attention._in_buckets
    monkeypatch.setattr(attention, "_in_buckets", lambda *arguments: used.append(1) or real(*arguments))
    together = gradients(model, ids, Layout(LENGTHS), **more)
    assert used
    monkeypatch.setattr(attention, "worth_padding", lambda *_: False)
    alone = gradients(model, ids, Layout(LENGTHS), **more)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert len(together[1]) == len(list(model.parameters()))


def test_when_it_is_worth_it() -> None:
    def worth(*lengths: int) -> bool:
        return worth_padding(Layout(lengths), Layout(lengths), len(lengths))

    assert worth(*LENGTHS)
    assert not worth(3, 30, 100)
    assert not worth(*range(1000, 1060))
    assert worth(*range(1000, 1010), *LENGTHS)
    assert not worth(*LENGTHS, 0)


def test_lengths_of_a_bucket_are_alike() -> None:
    for numbers in padded._alike(LENGTHS, SOURCES):
        for lengths in (LENGTHS, SOURCES):
            chosen = [lengths[number] for number in numbers]
            assert min(chosen) > padded._LONGEST or max(chosen) <= max(min(chosen) * padded._GROWTH, min(chosen) + 1)
