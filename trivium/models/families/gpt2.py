"""GPT-2 (Radford et al. 2019): pre-norm decoder with LayerNorm, learned positions, plain GELU MLP and biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    QUERY_KEY_VALUE,
    Head,
    demand,
    keys,
    read_activation,
    read_fields,
    write_activation,
    write_fields,
)

_ALWAYS: dict[str, Any] = {
    "family": "gpt2",
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "plain",
    "biases": ("query_key_value", "attention_output", "mlp"),
}


def _shape(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 1024,
        "activation": "gelu_tanh",
        "tie_embeddings": True,
        **_ALWAYS,
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

HEADS = {
    "language": Head("GPT2LMHeadModel", keys("lm_head", "head")),
    "sequence": Head("GPT2ForSequenceClassification", keys("score", "head.out"), {"pooling": "last"}),
    "token": Head("GPT2ForTokenClassification", keys("classifier", "head.out"), {"head_bias": True}),
    "span": Head("GPT2ForQuestionAnswering", keys("qa_outputs", "head.out"), {"head_bias": True}),
    "none": Head("GPT2Model", []),
}
PREFIX = "transformer."
IGNORED = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"
"""Tensors of old files that hold no parameters: the causal mask."""

_BLOCK, _ATTENTION = "transformer.h.{}", "blocks.{}.attention"

KEYS = [
    *keys("transformer.wte", "embed"),
    *keys("transformer.wpe", "position_embed"),
    *keys(f"{_BLOCK}.ln_1", "blocks.{}.attention_norm"),
    *keys(f"{_BLOCK}.attn.c_attn", *QUERY_KEY_VALUE, transposed=True),
    *keys(f"{_BLOCK}.attn.c_proj", f"{_ATTENTION}.output", transposed=True),
    *keys(f"{_BLOCK}.ln_2", "blocks.{}.mlp_norm"),
    *keys(f"{_BLOCK}.mlp.c_fc", "blocks.{}.mlp.up", transposed=True),
    *keys(f"{_BLOCK}.mlp.c_proj", "blocks.{}.mlp.down", transposed=True),
    *keys("transformer.ln_f", "final_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "init_std": "initializer_range",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "initializer_range": 0.02,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand(raw, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    if fields["intermediate_size"] is None and isinstance(fields["hidden_size"], int):
        fields["intermediate_size"] = 4 * fields["hidden_size"]
    return {**fields, **_ALWAYS, "activation": read_activation(raw, "activation_function", "gelu_new")}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        "activation_function": write_activation(config),
        "scale_attn_weights": True,
    }
