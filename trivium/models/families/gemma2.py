"""Gemma 2 (Gemma team 2024, arXiv:2408.00118).

Norms before and after each branch, layers that see a window and layers that see everything in turn, bounds on scores
and logits, gated GELU MLP, scaled embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import LayerType, ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import causal_heads, demand, every, keys, read_layers, write_layers

ALWAYS: dict[str, Any] = {"family": "gemma2", "norm_placement": "both", "norm_offset": 1.0}


def _shape(width: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, 256000, 8192, num_kv_heads=kv_heads),
        "head_dim": 256,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "tie_embeddings": True,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "sliding_window": 4096,
        "bos_id": 2,
        "eos_id": 1,
        "pad_id": 0,
        **ALWAYS,
        **more,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "gemma2-1m": _shape(128, 4, 4, 2, 344, head_dim=32, vocab_size=2048, max_positions=512, sliding_window=128),
    "gemma2-2b": _shape(2304, 26, 8, 4, 9216),
    "gemma2-9b": _shape(3584, 42, 16, 8, 14336),
    "gemma2-27b": _shape(4608, 46, 32, 16, 36864, head_dim=128, attention_scale=144**-0.5),
}

DERIVED = {
    "embedding_scale": lambda fields: fields["hidden_size"] ** 0.5,
    "layer_types": lambda fields: layer_types(fields, 2),
}

HEADS = causal_heads("Gemma2", without=("span",))

KEYS = [
    *(key for key in llama.KEYS if "post_attention_layernorm" not in key.file),
    *keys("model.layers.{}.post_attention_layernorm", "blocks.{}.attention_output_norm"),
    *keys("model.layers.{}.pre_feedforward_layernorm", "blocks.{}.mlp_norm"),
    *keys("model.layers.{}.post_feedforward_layernorm", "blocks.{}.mlp_output_norm"),
]

FIELDS = {
    **llama.FIELDS,
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw}
    types = every(filled["num_hidden_layers"], 2)
    return {**common(filled), **ALWAYS, **read_layers(filled, filled["sliding_window"], types)}


def common(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the generations of Gemma share; `raw` has all settings."""
    demand(raw, use_bidirectional_attention=False)
    fields = llama.from_hf({**raw, "hidden_act": raw["hidden_activation"], "mlp_bias": False})
    width, scalar = raw["hidden_size"], raw["query_pre_attn_scalar"]
    if scalar != raw["head_dim"]:
        fields["attention_scale"] = scalar**-0.5 if isinstance(scalar, int | float) and scalar > 0 else scalar
    if isinstance(width, int) and width > 0:
        fields["embedding_scale"] = width**0.5
    softcaps = {name: raw[FIELDS[name]] for name in ("attention_softcap", "logit_softcap")}
    return {**fields, **softcaps}


def layer_types(fields: Mapping[str, Any], full: int) -> tuple[LayerType, ...] | None:
    """Types of the layers of a preset: each `full`-th sees everything."""
    types = every(fields["num_layers"], full)
    return types if fields["sliding_window"] is not None and "full" in types else None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    scale = config.attention_scale
    window = {} if config.sliding_window else {"sliding_window": 4096}  # nothing slides, but a number must be there
    return {
        **llama.to_hf(config),
        **write_layers(config),
        **window,
        "hidden_activation": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation,
        "query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "use_bidirectional_attention": False,
    }
