"""Mistral (Jiang et al. 2023, arXiv:2310.06825): LLaMA whose tokens see a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import KEYS as KEYS
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import causal_heads

HEADS = causal_heads("Mistral")
FIELDS = {**llama.FIELDS, "sliding_window": "sliding_window"}
HF_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def _shape(width: int, layers: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
    rest = {"num_kv_heads": 8, "bos_id": 1, "eos_id": 2, **more}
    return llama.shape(width, layers, rest.pop("num_heads", 32), inner, vocab, positions, family="mistral", **rest)


_MODERN: dict[str, Any] = {"head_dim": 128, "rope": {"theta": 1e6}}

PRESETS: dict[str, dict[str, Any]] = {
    "mistral-1m": _shape(128, 4, 344, 2048, 512, num_heads=4, num_kv_heads=2, sliding_window=128, tie_embeddings=True),
    "mistral-7b": _shape(4096, 32, 14336, 32000, 32768, sliding_window=4096),
    "mistral-7b-v0.3": _shape(4096, 32, 14336, 32768, 32768, **_MODERN),
    "ministral-8b": _shape(4096, 36, 12288, 131072, 32768, sliding_window=32768, head_dim=128, rope={"theta": 1e8}),
    "mistral-nemo-12b": _shape(5120, 40, 14336, 131072, 131072, **_MODERN),
    "mistral-small-24b": _shape(5120, 40, 32768, 131072, 32768, head_dim=128, rope={"theta": 1e8}),
    "mistral-large-123b": _shape(12288, 88, 28672, 32768, 131072, num_heads=96, **_MODERN),
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}
    return {**llama.from_hf(filled), "family": "mistral", "sliding_window": filled["sliding_window"]}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {**llama.to_hf(config), "sliding_window": config.sliding_window}
