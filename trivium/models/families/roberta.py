"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT without segments, whose positions begin after the padding token.

Row `pad_id + 1` of the table of positions belongs to the first token, so a model has two rows more than positions if
its padding token has the number 1. Sequences must not contain the padding token: transformers gives it no position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import ModelConfig
from trivium.models.families import bert
from trivium.models.huggingface import demand, encoder_heads, keys, read_fields, write_fields


def _shape(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "family": "roberta",
        "vocab_size": 50265,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 4 * width,
        "max_positions": 512,
        "token_types": 1,
        "activation": "gelu",
        "tie_embeddings": True,
        "head": "masked",
        "head_bias": True,
        "bos_id": 0,
        "pad_id": 1,
        "eos_id": 2,
        **bert.ALWAYS,
        **bert.DROPOUT,
        **more,
    }


_SMALL: dict[str, Any] = {
    **dict.fromkeys(bert.DROPOUT, 0.0),
    "pad_id": 0,  # the special tokens of a tokenizer made here
    "bos_id": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "roberta-1m": _shape(128, 4, 4, vocab_size=2048, max_positions=256, **_SMALL),
    "roberta-10m": _shape(256, 10, 8, vocab_size=8192, **_SMALL),
    "distilroberta-base": _shape(768, 6, 12),
    "roberta-base": _shape(768, 12, 12),
    "roberta-large": _shape(1024, 24, 16),
}

DERIVED = {"position_offset": lambda fields: fields["pad_id"] + 1}

HEADS = encoder_heads(
    "Roberta",
    masked=[
        *keys("lm_head.dense", "head.dense"),
        *keys("lm_head.layer_norm", "head.norm"),
        *keys("lm_head.decoder", "head", kinds=("weight",)),
        *keys("lm_head", "head", kinds=("bias",)),
    ],
    sequence=[*keys("classifier.dense", "head.dense"), *keys("classifier.out_proj", "head.out")],
)
PREFIX = "roberta."
IGNORED = r"roberta\.(pooler\.dense\.(weight|bias)|embeddings\.position_ids)|lm_head\.decoder\.bias"
"""The pooler, the bias under a second name, and position numbers."""

KEYS = bert.bert_keys(PREFIX)
FIELDS = {name: theirs for name, theirs in bert.FIELDS.items() if name != "max_positions"}
HF_DEFAULTS: dict[str, Any] = {
    **bert.HF_DEFAULTS,
    "vocab_size": 50265,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand(raw, **bert.DEMANDED, hidden_act="gelu")
    filled = {**HF_DEFAULTS, **raw}
    padding, rows = filled["pad_token_id"], filled["max_position_embeddings"]
    if not isinstance(padding, int) or not isinstance(rows, int) or rows <= padding + 1:
        raise ModelError(
            "positions begin after the padding token, which must be a number below max_position_embeddings",
            where="pad_token_id",
            value=padding,
        )
    places = {"position_offset": padding + 1, "max_positions": rows - padding - 1}
    return {**read_fields(filled, FIELDS, {}), **bert.ALWAYS, **places, "family": "roberta", "activation": "gelu"}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        **bert.DEMANDED,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "pad_token_id": max(config.position_offset - 1, 0) if config.pad_id is None else config.pad_id,
        "hidden_act": "gelu",
    }
