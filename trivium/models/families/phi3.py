"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219 and 2412.08905): LLaMA with joined matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import LongRopeScaling, ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import (
    QUERY_KEY_VALUE,
    causal_heads,
    keys,
    read_activation,
    read_fields,
    read_fraction,
    read_rope,
    write_activation,
    write_fields,
    write_rope,
)


def _shape(width: int, layers: int, heads: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
    tokens = {"bos_id": 1, "eos_id": 32000, "pad_id": 32000}
    return llama.shape(width, layers, heads, inner, vocab, positions, family="phi3", **{**tokens, **more})


_NONE: dict[str, Any] = {"bos_id": None, "eos_id": None, "pad_id": None}
_PHI4: dict[str, Any] = {"rope": {"theta": 250000.0}, "bos_id": 100257, "eos_id": 100257, "pad_id": 100257}

PRESETS: dict[str, dict[str, Any]] = {
    "phi3-1m": _shape(128, 4, 4, 344, 2048, 512, num_kv_heads=2, tie_embeddings=True, **_NONE),
    "phi3-mini": _shape(3072, 32, 32, 8192, 32064, 4096, sliding_window=2047),
    "phi3-medium": _shape(5120, 40, 40, 17920, 32064, 4096, num_kv_heads=10, sliding_window=2047),
    "phi4": _shape(5120, 40, 40, 17920, 100352, 16384, num_kv_heads=10, **_PHI4),
}

HEADS = causal_heads("Phi3", without=("span",))

_ATTENTION, _MLP = "blocks.{}.attention", "blocks.{}.mlp"

KEYS = [
    *(key for key in llama.KEYS if not any(part in key.file for part in (".q_", ".k_", ".v_", ".gate_", ".up_"))),
    *keys("model.layers.{}.self_attn.qkv_proj", *QUERY_KEY_VALUE),
    *keys("model.layers.{}.mlp.gate_up_proj", f"{_MLP}.gate", f"{_MLP}.up"),
]

FIELDS = {
    **{ours: theirs for ours, theirs in llama.FIELDS.items() if ours != "head_dim"},
    "sliding_window": "sliding_window",
    "dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
}

HF_DEFAULTS: dict[str, Any] = {
    **llama.HF_DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    return {
        **fields,
        "family": "phi3",
        "activation": read_activation(raw, "hidden_act", "silu"),
        "rope": _rope(raw, fields["max_positions"]),
        "rotary_fraction": read_fraction(raw),
    }


def _rope(raw: Mapping[str, Any], max_positions: Any) -> dict[str, Any]:
    """Rotary settings; the scaling has had several names here, and its original context stands outside of it."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters")
    if isinstance(given, dict) and given.get("rope_type", given.get("type", "default")) != "default":
        original = raw.get("original_max_position_embeddings", 4096)
        given = {**given, "rope_type": "longrope", "original_max_position_embeddings": original}
    return read_rope({"rope_theta": raw.get("rope_theta"), "rope_parameters": given}, max_positions)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    scaling = config.rope.scaling
    original = scaling.original_max_positions if isinstance(scaling, LongRopeScaling) else config.max_positions
    return {
        **write_fields(config, FIELDS),
        **write_rope(config.rope, fraction=config.rotary_fraction),
        "original_max_position_embeddings": original,
        "hidden_act": write_activation(config),
    }
