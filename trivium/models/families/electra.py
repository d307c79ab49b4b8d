"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT's body, trained to tell replaced tokens from real ones.

The detector is ElectraForPreTraining, the generator ElectraForMaskedLM. Embeddings may be narrower than the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import bert
from trivium.models.families.bert import FIELDS as FIELDS
from trivium.models.huggingface import Head, demand, encoder_heads, keys


def _shape(preset: str, **more: Any) -> dict[str, Any]:
    detector = {"head": "detector", "head_dense": "gelu", "head_bias": True}
    return {**bert.PRESETS[preset], "family": "electra", **detector, **more}


PRESETS: dict[str, dict[str, Any]] = {
    "electra-1m": _shape("bert-1m"),
    "electra-10m": _shape("bert-10m"),
    "electra-small": _shape("bert-mini", num_layers=12, embedding_size=128),
    "electra-base": _shape("bert-base"),
    "electra-large": _shape("bert-large"),
}

HEADS = {
    "detector": Head(
        "ElectraForPreTraining",
        [
            *keys("discriminator_predictions.dense", "head.dense"),
            *keys("discriminator_predictions.dense_prediction", "head.out"),
        ],
        {"head_dense": "gelu", "head_bias": True},
    ),
    **encoder_heads(
        "Electra",
        masked=[
            *keys("generator_predictions.dense", "head.dense"),
            *keys("generator_predictions.LayerNorm", "head.norm"),
            *keys("generator_lm_head", "head"),
        ],
        sequence=[*keys("classifier.dense", "head.dense"), *keys("classifier.out_proj", "head.out")],
        dense="gelu",
    ),
}
PREFIX = "electra."
IGNORED = r"electra\.embeddings\.position_ids"
"""Position numbers."""

KEYS = [*bert.bert_keys(PREFIX), *keys("electra.embeddings_project", "embed_projection")]
HF_DEFAULTS: dict[str, Any] = {
    **bert.HF_DEFAULTS,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw}
    demand(filled, hidden_act="gelu")
    return {**bert.from_hf(filled), "family": "electra", "embedding_size": filled["embedding_size"]}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {**bert.to_hf(config), "hidden_act": "gelu", "embedding_size": config.embedding_width}
