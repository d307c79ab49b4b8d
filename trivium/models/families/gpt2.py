"""GPT-2 (Radford et al. 2019): pre-norm decoder with LayerNorm, learned positions, plain GELU MLP and biases."""

from __future__ import annotations

from typing import Any


def _shape(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "family": "gpt2",
        "vocab_size": 50257,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 1024,
        "positions": "learned",
        "norm": "layernorm",
        "mlp": "plain",
        "activation": "gelu_tanh",
        "biases": ("attention", "mlp"),
        "tie_embeddings": True,
        **more,
    }


_PUBLISHED: dict[str, Any] = {"bos_id": 50256, "eos_id": 50256}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-1m": _shape(128, 4, 4, vocab_size=2048, max_positions=256),
    "gpt2-10m": _shape(256, 10, 8, vocab_size=8192, max_positions=512),
    "gpt2": _shape(768, 12, 12, **_PUBLISHED),
    "gpt2-medium": _shape(1024, 24, 16, **_PUBLISHED),
    "gpt2-large": _shape(1280, 36, 20, **_PUBLISHED),
    "gpt2-xl": _shape(1600, 48, 25, **_PUBLISHED),
}
