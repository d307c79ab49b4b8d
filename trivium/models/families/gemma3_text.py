"""Gemma 3, the text model (Gemma team 2025, arXiv:2503.19786).

Gemma 2 with norms on the heads of queries and keys instead of bounds, one layer of six that sees everything, and faster
turning rotary positions in the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import gemma2, llama
from trivium.models.families.gemma2 import FIELDS as FIELDS
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import Head, causal_heads, demand, every, keys, read_layers, read_rope, write_rope

_ALWAYS: dict[str, Any] = {**gemma2.ALWAYS, "family": "gemma3_text", "query_key_norm": "head"}


def _shape(width: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, 262208, 131072, num_kv_heads=kv_heads),
        "head_dim": 256,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "tie_embeddings": True,
        "sliding_window": 1024,
        "rope": {"theta": 1e6, "scaling": {"type": "linear", "factor": 8.0}},
        "local_rope": {"theta": 1e4},
        "bos_id": 2,
        "eos_id": 1,
        "pad_id": 0,
        **_ALWAYS,
        **more,
    }


_SMALL: dict[str, Any] = {
    "vocab_size": 262144,
    "max_positions": 32768,
    "sliding_window": 512,
    "rope": {"theta": 1e6},
}
_TINY: dict[str, Any] = {**_SMALL, "vocab_size": 2048, "max_positions": 512, "sliding_window": 128, "head_dim": 32}

PRESETS: dict[str, dict[str, Any]] = {
    "gemma3-1m": _shape(96, 6, 4, 1, 256, **_TINY),
    "gemma3-270m": _shape(640, 18, 4, 1, 2048, **_SMALL),
    "gemma3-1b": _shape(1152, 26, 4, 1, 6912, **_SMALL),
    "gemma3-4b": _shape(2560, 34, 8, 4, 10240),
    "gemma3-12b": _shape(3840, 48, 16, 8, 15360),
    "gemma3-27b": _shape(5376, 62, 32, 16, 21504, head_dim=128, attention_scale=168**-0.5),
}

DERIVED = {**gemma2.DERIVED, "layer_types": lambda fields: gemma2.layer_types(fields, 6)}

HEADS = {
    **causal_heads("Gemma3", without=("token", "span", "none")),
    "sequence": Head("Gemma3TextForSequenceClassification", keys("score", "head.out"), {"pooling": "last"}),
    "none": Head("Gemma3TextModel", []),
}

KEYS = [
    *gemma2.KEYS,
    *keys("model.layers.{}.self_attn.q_norm", "blocks.{}.attention.query_norm"),
    *keys("model.layers.{}.self_attn.k_norm", "blocks.{}.attention.key_norm"),
]

HF_DEFAULTS: dict[str, Any] = {
    **gemma2.HF_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand(raw, attn_logit_softcapping=None)
    filled = {**HF_DEFAULTS, **raw}
    count, pattern, limit = (
        filled[name] for name in ("num_hidden_layers", "sliding_window_pattern", "max_position_embeddings")
    )
    given = raw.get("rope_parameters")
    by_type = given if isinstance(given, dict) else {}
    old = {"rope_theta": filled["rope_theta"], "rope_scaling": raw.get("rope_scaling")}
    return {
        **gemma2.common({**filled, "rope_parameters": None, "rope_scaling": None}),
        **_ALWAYS,
        **read_layers(filled, filled["sliding_window"], every(count, pattern)),
        "rope": read_rope({**old, "rope_parameters": by_type.get("full_attention")}, limit),
        "local_rope": read_rope(
            {"rope_theta": filled["rope_local_base_freq"], "rope_parameters": by_type.get("sliding_attention")}, limit
        ),
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    everywhere = write_rope(config.rope)
    near = write_rope(config.local_rope or config.rope)
    return {
        **gemma2.to_hf(config),
        **everywhere,
        "rope_parameters": {
            "full_attention": everywhere["rope_parameters"],
            "sliding_attention": near["rope_parameters"],
        },
        "rope_local_base_freq": near["rope_theta"],
    }
