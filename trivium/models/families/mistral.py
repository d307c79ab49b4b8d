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

PRESETS: dict[str, dict[str, Any]] = {
    "mistral-7b": {
        "family": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "intermediate_size": 14336,
        "max_positions": 32768,
        "sliding_window": 4096,
        "bos_id": 1,
        "eos_id": 2,
    },
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw, "attention_bias": False, "mlp_bias": False}
    return {**llama.from_hf(filled), "family": "mistral", "sliding_window": filled["sliding_window"]}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {**llama.to_hf(config), "sliding_window": config.sliding_window}
