"""OLMo 2 (OLMo team 2024, arXiv:2501.00656): LLaMA with norms on the output of each branch, and on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import FIELDS as FIELDS
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import causal_heads, keys

_ALWAYS: dict[str, Any] = {"family": "olmo2", "norm_placement": "output", "query_key_norm": "projection"}


def _shape(width: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, 100352, 4096),
        "norm_eps": 1e-6,
        "rope": {"theta": 500000.0},
        "eos_id": 100257,
        "pad_id": 100277,
        **_ALWAYS,
        **more,
    }


_TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "max_positions": 512,
    "tie_embeddings": True,
    "eos_id": None,
    "pad_id": None,
}

PRESETS: dict[str, dict[str, Any]] = {
    "olmo2-1m": _shape(128, 4, 4, 344, rope={}, **_TINY),
    "olmo2-1b": _shape(2048, 16, 16, 8192),
    "olmo2-7b": _shape(4096, 32, 32, 11008),
    "olmo2-13b": _shape(5120, 40, 40, 13824),
    "olmo2-32b": _shape(5120, 64, 40, 27648, num_kv_heads=8),
}

HEADS = causal_heads("Olmo2", without=("token", "span"))

KEYS = [
    *(key for key in llama.KEYS if "layernorm" not in key.file),
    *keys("model.layers.{}.post_attention_layernorm", "blocks.{}.attention_output_norm"),
    *keys("model.layers.{}.post_feedforward_layernorm", "blocks.{}.mlp_output_norm"),
    *keys("model.layers.{}.self_attn.q_norm", "blocks.{}.attention.query_norm"),
    *keys("model.layers.{}.self_attn.k_norm", "blocks.{}.attention.key_norm"),
]

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50304,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 50279,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    return {**llama.from_hf({**HF_DEFAULTS, **raw, "mlp_bias": False}), **_ALWAYS}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return llama.to_hf(config)
