"""BART (Lewis et al. 2019, arXiv:1910.13461).

Post-norm encoder-decoder with LayerNorm, a norm on the embeddings, learned positions and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    Head,
    Key,
    demand,
    keys,
    read_activation,
    read_fields,
    write_activation,
    write_fields,
)

_ALWAYS: dict[str, Any] = {
    "family": "bart",
    "kind": "encoder_decoder",
    "positions": "learned",
    "position_offset": 2,
    "norm": "layernorm",
    "norm_placement": "post",
    "final_norm": False,
    "embedding_norm": True,
    "mlp": "plain",
    "biases": ("query_key_value", "attention_output", "mlp"),
}


def _shape(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 50265,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 1024,
        "activation": "gelu",
        "tie_embeddings": True,
        "bos_id": 0,
        "pad_id": 1,
        "eos_id": 2,
        "start_id": 2,
        **_ALWAYS,
        **more,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "bart-1m": _shape(128, 2, 4, vocab_size=2048, max_positions=256),
    "bart-10m": _shape(256, 4, 8, vocab_size=8192, max_positions=512),
    "bart-30m": _shape(384, 6, 6, vocab_size=16384, max_positions=512),
    "bart-base": _shape(768, 6, 12),
    "bart-large": _shape(1024, 12, 16),
}

_DENSE = keys("classification_head.dense", "head.dense") + keys("classification_head.out_proj", "head.out")
HEADS = {
    "language": Head("BartForConditionalGeneration", keys("lm_head", "head")),
    "sequence": Head(
        "BartForSequenceClassification", _DENSE, {"pooling": "last", "head_dense": "tanh", "head_bias": True}
    ),
    "span": Head("BartForQuestionAnswering", keys("qa_outputs", "head.out"), {"head_bias": True}),
    "none": Head("BartModel", []),
}
PREFIX = "model."
IGNORED = r"(model\.)?(en|de)coder\.(embed_tokens\.weight|version)|final_logits_bias"
"""The shared embedding under its other names, a number of old files, and a bias that is zero (`ZERO`)."""
ZERO = r"final_logits_bias"
"""Tensors that are ignored only because they are zero."""


def _attention(file: str, own: str) -> list[Key]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return [key for theirs, ours in names.items() for key in keys(f"{file}.{theirs}", f"{own}.{ours}")]


def _stack(file: str, own: str) -> list[Key]:
    """The keys of the encoder or the decoder."""
    layer, block = f"model.{file}.layers.{{}}", f"{own}blocks.{{}}"
    return [
        *keys(f"model.{file}.embed_positions", f"{own}position_embed"),
        *keys(f"model.{file}.layernorm_embedding", f"{own}embed_norm"),
        *_attention(f"{layer}.self_attn", f"{block}.attention"),
        *keys(f"{layer}.self_attn_layer_norm", f"{block}.attention_norm"),
        *keys(f"{layer}.fc1", f"{block}.mlp.up"),
        *keys(f"{layer}.fc2", f"{block}.mlp.down"),
        *keys(f"{layer}.final_layer_norm", f"{block}.mlp_norm"),
    ]


KEYS = [
    *keys("model.shared", "embed"),
    *_stack("encoder", "encoder."),
    *_stack("decoder", ""),
    *_attention("model.decoder.layers.{}.encoder_attn", "blocks.{}.cross"),
    *keys("model.decoder.layers.{}.encoder_attn_layer_norm", "blocks.{}.cross_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "dropout",
    "embedding_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "init_std": "init_std",
    "start_id": "decoder_start_token_id",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand(raw, tie_word_embeddings=True, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
    demand(raw, normalize_before=False, add_final_layer_norm=False)
    for name, default in (("attention_heads", 16), ("ffn_dim", 4096)):
        first, second = (raw.get(f"{stack}_{name}", default) for stack in ("encoder", "decoder"))
        if first != second:
            raise ModelError(
                "encoder and decoder must be alike in this", where=f"decoder_{name}", value=second, fix=f"use {first}"
            )
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    width = fields["hidden_size"]
    scaled = bool(raw.get("scale_embedding")) and isinstance(width, int)
    return {
        **fields,
        **_ALWAYS,
        "activation": read_activation(raw, "activation_function", "gelu"),
        "embedding_scale": width**0.5 if scaled else 1.0,
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.intermediate_size,
        "activation_function": write_activation(config),
        "scale_embedding": config.embedding_scale != 1.0,
        "is_encoder_decoder": True,
    }
