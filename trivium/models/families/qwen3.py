"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Qwen2 with norms on the heads of queries and keys instead of biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import llama, qwen2
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.families.qwen2 import FIELDS as FIELDS
from trivium.models.huggingface import causal_heads, keys


def _shape(width: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, 151936, 40960, num_kv_heads=8, family="qwen3"),
        "head_dim": 128,
        "query_key_norm": "head",
        "norm_eps": 1e-6,
        "rope": {"theta": 1e6},
        "bos_id": 151643,
        "eos_id": 151645,
        **more,
    }


_TINY: dict[str, Any] = {
    "num_kv_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_positions": 512,
    "tie_embeddings": True,
    "rope": {},
    "bos_id": None,
    "eos_id": None,
}

PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-1m": _shape(128, 4, 4, 344, **_TINY),
    "qwen3-0.6b": _shape(1024, 28, 16, 3072, tie_embeddings=True),
    "qwen3-1.7b": _shape(2048, 28, 16, 6144, tie_embeddings=True),
    "qwen3-4b": _shape(2560, 36, 32, 9728, tie_embeddings=True),
    "qwen3-8b": _shape(4096, 36, 32, 12288),
    "qwen3-14b": _shape(5120, 40, 40, 17408),
    "qwen3-32b": _shape(5120, 64, 64, 25600),
}

HEADS = causal_heads("Qwen3", span_prefix="transformer.")

KEYS = [
    *llama.KEYS,
    *keys("model.layers.{}.self_attn.q_norm", "blocks.{}.attention.query_norm"),
    *keys("model.layers.{}.self_attn.k_norm", "blocks.{}.attention.key_norm"),
]

HF_DEFAULTS: dict[str, Any] = {**qwen2.HF_DEFAULTS, "head_dim": 128}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw, "mlp_bias": False}
    return {**llama.from_hf(filled), **qwen2.layers(filled), "family": "qwen3", "query_key_norm": "head"}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return qwen2.to_hf(config)
