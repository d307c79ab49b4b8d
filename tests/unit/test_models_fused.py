"""Fused blocks compute what plain ones do, and are made anew when the weights change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trivium.data.batch import Layout
from trivium.inference.engine import generate_ids, generating
from trivium.inference.request import Sampling
from trivium.models import kernels
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.fused import FusedBlock, fused
from trivium.models.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "llama-1m": {},
    "gpt2-1m": {"num_kv_heads": 4},
    "qwen2-1m": {},
    "qwen3-1m": {"query_key_norm": "head"},
    "mistral-7b": {"sliding_window": 3},
    "smollm3-1m": {"layers_without_rotary": (1,)},
}
PLAIN = {"gemma2-1m": "norms after the branches", "mixtral-1m": "experts", "pythia-1m": "branches side by side"}
needs_onednn = pytest.mark.skipif(not kernels.onednn(), reason="this torch has no oneDNN")


def tiny(kind: str, **changes: Any) -> Transformer:
    shape = {
        "vocab_size": 41,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_positions": 32,
        "init_std": 0.3,
    }
    return build_model(preset(kind, {**shape, **changes}), seed=1).eval()


def logits(model: Transformer) -> torch.Tensor:
    """Of two prompts of different lengths, and of two tokens after each."""
    cache = KVCache(model.config, rows=2, max_length=9)
    ids = torch.arange(3, 3 + 11)
    with torch.no_grad():
        parts = [model(ids[:7], Layout((5, 2)), cache=cache)]
        parts += [model(ids[at : at + 2], Layout((1, 1)), cache=cache) for at in (7, 9)]
        parts.append(model(ids[4:].view(1, -1))[0])
    return torch.cat(parts)


@needs_onednn
@pytest.mark.parametrize("kind", KINDS)
def test_the_results_are_those_of_plain_blocks(kind: str) -> None:
    model = tiny(kind, **KINDS[kind])
    expected = logits(model)
    with fused(model, keep=False):
        assert model.fused is not None and all(isinstance(block, FusedBlock) for block in model.fused)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert model.fused is None and model.head.fused is None


@needs_onednn
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("kind", ["llama-1m", "gpt2-1m"])
def test_every_activation(activation: str, kind: str) -> None:
    model = tiny(kind, activation=activation, num_kv_heads=4)
    expected = logits(model)
    with fused(model, keep=False):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PLAIN)
def test_other_blocks_stay_plain(kind: str) -> None:
    model = tiny(kind, num_kv_heads=4)
    expected = logits(model)
    with fused(model, keep=False):
        assert model.fused is None or list(model.fused) == list(model.blocks)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_what_changes_the_weights_changes_the_answer() -> None:
    model = tiny("llama-1m")

    def answer() -> list[int]:
        return generate_ids(model, [[1, 2, 3]], max_new_tokens=12, sampling=Sampling(temperature=0), eos_ids=())[0].ids

    before = answer()
    assert answer() == before
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    stepped = answer()
    assert stepped != before
    model.load_state_dict(tiny("llama-1m").state_dict())
    assert answer() == before
    model.assign(dict(build_model(model.config, seed=5).state_dict()))
    assert answer() not in (before, stepped)


@needs_onednn
def test_a_model_in_training_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    real = FusedBlock.__init__

    def counted(self: FusedBlock, *given: Any) -> None:
        made.append(True)
        real(self, *given)

    monkeypatch.setattr(FusedBlock, "__init__", counted)
    model = tiny("llama-1m")
    for _ in range(2):
        with generating(model):
            assert len(made) == 2
    model = tiny("llama-1m").train()
    for times in (2, 3):
        with generating(model):
            assert len(made) == 2 * times


@needs_onednn
def test_gradients_come_from_the_plain_blocks() -> None:
    model = tiny("llama-1m")
    with fused(model, keep=False):
        model(torch.tensor([[1, 2, 3]]), then=lambda hidden, head: head(hidden)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_without_gradients_is_linear(tokens: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, more = (torch.randn(*shape, generator=draw) for shape in ((tokens, 24), (17, 24), (17,)))
    expected = torch.nn.functional.linear(x, weight, more if bias else None)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight, more if bias else None), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.linear(x, weight, None).dtype == torch.bfloat16
    assert kernels.linear(x, weight.requires_grad_(), None).requires_grad
