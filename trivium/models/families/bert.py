"""BERT (Devlin et al. 2019, arXiv:1810.04805) and the students of its shape (TinyBERT: Jiao et al. 2020,
arXiv:1909.10351; the small ones: Turc et al. 2019, arXiv:1908.08962).

Post-norm encoder with LayerNorm, learned positions, two kinds of segments, plain GELU MLP and biases. The pooler is the
dense layer of the sequence head; the head for next-sentence prediction is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    Key,
    demand,
    encoder_heads,
    keys,
    read_activation,
    read_fields,
    write_activation,
    write_fields,
)

ALWAYS: dict[str, Any] = {
    "kind": "encoder",
    "positions": "learned",
    "norm": "layernorm",
    "norm_placement": "post",
    "final_norm": False,
    "embedding_norm": True,
    "mlp": "plain",
    "biases": ("query_key_value", "attention_output", "mlp"),
}
"""What all encoders of this kind have in common."""


def _shape(width: int, layers: int, heads: int, inner: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "family": "bert",
        "vocab_size": 30522,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": inner or 4 * width,
        "max_positions": 512,
        "token_types": 2,
        "activation": "gelu",
        "norm_eps": 1e-12,
        "tie_embeddings": True,
        "head": "masked",
        "head_bias": True,
        "pad_id": 0,
        **ALWAYS,
        **DROPOUT,
        **more,
    }


DROPOUT = {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
_NO_DROPOUT: dict[str, Any] = dict.fromkeys(DROPOUT, 0.0)

PRESETS: dict[str, dict[str, Any]] = {
    "bert-1m": _shape(128, 4, 4, vocab_size=2048, max_positions=256, **_NO_DROPOUT),
    "bert-10m": _shape(256, 10, 8, vocab_size=8192, **_NO_DROPOUT),
    "bert-30m": _shape(512, 8, 8, vocab_size=8192, **_NO_DROPOUT),
    "bert-tiny": _shape(128, 2, 2),
    "bert-mini": _shape(256, 4, 4),
    "bert-small": _shape(512, 4, 8),
    "bert-medium": _shape(512, 8, 8),
    "tinybert-4l-312d": _shape(312, 4, 12, 1200),
    "tinybert-6l-768d": _shape(768, 6, 12),
    "bert-base-cased": _shape(768, 12, 12, vocab_size=28996),
    "bert-base": _shape(768, 12, 12),
    "bert-large": _shape(1024, 24, 16),
}

HEADS = encoder_heads(
    "Bert",
    masked=[
        *keys("cls.predictions.transform.dense", "head.dense"),
        *keys("cls.predictions.transform.LayerNorm", "head.norm"),
        *keys("cls.predictions.decoder", "head", kinds=("weight",)),
        *keys("cls.predictions", "head", kinds=("bias",)),
    ],
    sequence=[*keys("bert.pooler.dense", "head.dense"), *keys("classifier", "head.out")],
    aliases=("BertForPreTraining",),
)
PREFIX = "bert."
IGNORED = (
    r"bert\.(pooler\.dense\.(weight|bias)|embeddings\.position_ids)"
    r"|cls\.seq_relationship\.(weight|bias)|cls\.predictions\.decoder\.bias"
)
"""The pooler and the next-sentence head beside other heads, the bias under a second name, and position numbers."""


def bert_keys(prefix: str) -> list[Key]:
    """The tensors of a body that transformers keeps under `prefix`."""
    layer, block = f"{prefix}encoder.layer.{{}}", "blocks.{}"
    return [
        *keys(f"{prefix}embeddings.word_embeddings", "embed"),
        *keys(f"{prefix}embeddings.position_embeddings", "position_embed"),
        *keys(f"{prefix}embeddings.token_type_embeddings", "token_type_embed"),
        *keys(f"{prefix}embeddings.LayerNorm", "embed_norm"),
        *keys(f"{layer}.attention.self.query", f"{block}.attention.query"),
        *keys(f"{layer}.attention.self.key", f"{block}.attention.key"),
        *keys(f"{layer}.attention.self.value", f"{block}.attention.value"),
        *keys(f"{layer}.attention.output.dense", f"{block}.attention.output"),
        *keys(f"{layer}.attention.output.LayerNorm", f"{block}.attention_norm"),
        *keys(f"{layer}.intermediate.dense", f"{block}.mlp.up"),
        *keys(f"{layer}.output.dense", f"{block}.mlp.down"),
        *keys(f"{layer}.output.LayerNorm", f"{block}.mlp_norm"),
    ]


KEYS = bert_keys(PREFIX)

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "hidden_dropout_prob",
    "embedding_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "init_std": "initializer_range",
}

_BASE = {"init_std": 0.02, **PRESETS["bert-base"]}
HF_DEFAULTS = {theirs: _BASE[ours] for ours, theirs in {**FIELDS, "pad_id": "pad_token_id"}.items()}
"""What a config.json leaves out is as in BERT base."""

DEMANDED: dict[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}
"""Settings that have one value here. Without the tie transformers would keep two different biases in the head."""


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand(raw, **DEMANDED)
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    return {**fields, **ALWAYS, "family": "bert", "activation": read_activation(raw, "hidden_act", "gelu")}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        **DEMANDED,
        "hidden_act": write_activation(config),
    }
