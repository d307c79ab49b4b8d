"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373).

Decoder with LayerNorm, attention and MLP side by side, rotary positions on a quarter of each head, and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
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

_ALWAYS: dict[str, Any] = {"family": "gpt_neox", "norm": "layernorm", "mlp": "plain"}


def _shape(width: int, layers: int, heads: int, vocab: int = 50304, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 2048,
        "rotary_fraction": 0.25,
        "parallel": "two_norms",
        "activation": "gelu",
        "biases": ("attention", "mlp"),
        "bos_id": 0,
        "eos_id": 0,
        **_ALWAYS,
        **more,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "pythia-1m": _shape(128, 3, 4, 2048),
    "pythia-14m": _shape(128, 6, 4),
    "pythia-31m": _shape(256, 6, 8),
    "pythia-70m": _shape(512, 6, 8),
    "pythia-160m": _shape(768, 12, 12),
    "pythia-410m": _shape(1024, 24, 16),
    "pythia-1b": _shape(2048, 16, 8),
    "pythia-1.4b": _shape(2048, 24, 16),
    "pythia-2.8b": _shape(2560, 32, 32),
    "pythia-6.9b": _shape(4096, 32, 32, 50432),
    "pythia-12b": _shape(5120, 36, 40, 50688),
    "gpt-neox-20b": _shape(6144, 44, 64, 50432, activation="gelu_tanh"),
}

HEADS = causal_heads("GPTNeoX", language="embed_out", token="classifier")
PREFIX = "gpt_neox."
IGNORED = r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
"""Tensors of old files that hold no parameters: the causal mask and the angles."""

_BLOCK, _ATTENTION = "gpt_neox.layers.{}", "blocks.{}.attention"

KEYS = [
    *keys("gpt_neox.embed_in", "embed"),
    *keys(f"{_BLOCK}.input_layernorm", "blocks.{}.attention_norm"),
    *keys(f"{_BLOCK}.attention.query_key_value", *QUERY_KEY_VALUE, grouped=True),
    *keys(f"{_BLOCK}.attention.dense", f"{_ATTENTION}.output"),
    *keys(f"{_BLOCK}.post_attention_layernorm", "blocks.{}.mlp_norm"),
    *keys(f"{_BLOCK}.mlp.dense_h_to_4h", "blocks.{}.mlp.up"),
    *keys(f"{_BLOCK}.mlp.dense_4h_to_h", "blocks.{}.mlp.down"),
    *keys("gpt_neox.final_layer_norm", "final_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "hidden_dropout",
    "embedding_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    return {
        **fields,
        **_ALWAYS,
        "activation": read_activation(raw, "hidden_act", "gelu"),
        "biases": ("attention", "mlp") if raw.get("attention_bias", True) else ("mlp",),
        "parallel": "two_norms" if raw.get("use_parallel_residual", True) else "none",
        "rope": read_rope({"rope_theta": raw.get("rotary_emb_base"), **raw}, fields["max_positions"]),
        "rotary_fraction": read_fraction(raw, 0.25),
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        **write_rope(config.rope, fraction=config.rotary_fraction),
        "rotary_emb_base": config.rope.theta,
        "rotary_pct": config.rotary_fraction,
        "hidden_act": write_activation(config),
        "attention_bias": "attention_output" in config.biases,
        "use_parallel_residual": config.parallel != "none",
    }
