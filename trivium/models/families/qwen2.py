"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671 and 2412.15115): LLaMA with query, key and value biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import KEYS as KEYS
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import causal_heads, every, read_layers, write_layers


def _shape(width: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, 152064, 131072, num_kv_heads=kv_heads, family="qwen2"),
        "biases": ("query_key_value",),
        "norm_eps": 1e-6,
        "rope": {"theta": 1e6},
        "bos_id": 151643,
        "eos_id": 151643,
        **more,
    }


_SMALL: dict[str, Any] = {"vocab_size": 151936, "max_positions": 32768, "tie_embeddings": True}

PRESETS: dict[str, dict[str, Any]] = {
    "qwen2-1m": _shape(
        128, 4, 4, 2, 344, vocab_size=2048, max_positions=512, tie_embeddings=True, rope={}, bos_id=None, eos_id=None
    ),
    "qwen2.5-0.5b": _shape(896, 24, 14, 2, 4864, **_SMALL),
    "qwen2.5-1.5b": _shape(1536, 28, 12, 2, 8960, **{**_SMALL, "max_positions": 131072}),
    "qwen2.5-3b": _shape(2048, 36, 16, 2, 11008, **_SMALL),
    "qwen2.5-7b": _shape(3584, 28, 28, 4, 18944),
    "qwen2.5-14b": _shape(5120, 48, 40, 8, 13824, norm_eps=1e-5),
    "qwen2.5-32b": _shape(5120, 64, 40, 8, 27648, norm_eps=1e-5),
    "qwen2.5-72b": _shape(8192, 80, 64, 8, 29568, norm_eps=1e-5),
}

HEADS = causal_heads("Qwen2", span_prefix="transformer.")
FIELDS = {**llama.FIELDS, "sliding_window": "sliding_window"}
HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}
    return {**llama.from_hf(filled), **layers(filled), "family": "qwen2", "biases": ("query_key_value",)}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    slides = [config.slides(layer) for layer in range(config.num_layers)]
    return {
        **llama.to_hf(config),
        **write_layers(config),
        "use_sliding_window": any(slides),
        "max_window_layers": slides.index(True) if any(slides) else config.num_layers,
    }


def layers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Window and types of layers: only if `use_sliding_window` says so, and then from layer `max_window_layers` on."""
    types = every(raw.get("num_hidden_layers", 32), 0, first=raw["max_window_layers"])
    return read_layers(raw, raw["sliding_window"] if raw.get("use_sliding_window") else None, types)
