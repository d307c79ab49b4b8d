"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): every second layer of BERT, without segments and pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import bert
from trivium.models.huggingface import encoder_heads, keys, read_activation, read_fields, write_activation, write_fields

_ALWAYS: dict[str, Any] = {**bert.ALWAYS, "norm_eps": 1e-12}


def _shape(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "family": "distilbert",
        "vocab_size": 30522,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 512,
        "activation": "gelu",
        "tie_embeddings": True,
        "head": "masked",
        "head_bias": True,
        "pad_id": 0,
        **_ALWAYS,
        **bert.DROPOUT,
        **more,
    }


_SMALL = dict.fromkeys(bert.DROPOUT, 0.0)

PRESETS: dict[str, dict[str, Any]] = {
    "distilbert-1m": _shape(128, 2, 4, vocab_size=2048, max_positions=256, **_SMALL),
    "distilbert-5m": _shape(256, 5, 8, vocab_size=8192, **_SMALL),
    "distilbert-base-cased": _shape(768, 6, 12, vocab_size=28996),
    "distilbert-base": _shape(768, 6, 12),
}

HEADS = encoder_heads(
    "DistilBert",
    masked=[
        *keys("vocab_transform", "head.dense"),
        *keys("vocab_layer_norm", "head.norm"),
        *keys("vocab_projector", "head"),
    ],
    sequence=[*keys("pre_classifier", "head.dense"), *keys("classifier", "head.out")],
    dense="relu",
    dropout={"sequence": ("seq_classif_dropout",), "token": ("dropout",), "span": ("qa_dropout",)},
)
PREFIX = "distilbert."
IGNORED = r"distilbert\.embeddings\.position_ids"
"""Position numbers."""

_LAYER, _BLOCK = "distilbert.transformer.layer.{}", "blocks.{}"

KEYS = [
    *keys("distilbert.embeddings.word_embeddings", "embed"),
    *keys("distilbert.embeddings.position_embeddings", "position_embed"),
    *keys("distilbert.embeddings.LayerNorm", "embed_norm"),
    *keys(f"{_LAYER}.attention.q_lin", f"{_BLOCK}.attention.query"),
    *keys(f"{_LAYER}.attention.k_lin", f"{_BLOCK}.attention.key"),
    *keys(f"{_LAYER}.attention.v_lin", f"{_BLOCK}.attention.value"),
    *keys(f"{_LAYER}.attention.out_lin", f"{_BLOCK}.attention.output"),
    *keys(f"{_LAYER}.sa_layer_norm", f"{_BLOCK}.attention_norm"),
    *keys(f"{_LAYER}.ffn.lin1", f"{_BLOCK}.mlp.up"),
    *keys(f"{_LAYER}.ffn.lin2", f"{_BLOCK}.mlp.down"),
    *keys(f"{_LAYER}.output_layer_norm", f"{_BLOCK}.mlp_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "dropout",
    "embedding_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    return {**fields, **_ALWAYS, "family": "distilbert", "activation": read_activation(raw, "activation", "gelu")}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {**write_fields(config, FIELDS), "activation": write_activation(config)}
