"""mT5 (Xue et al. 2021, arXiv:2010.11934): T5 v1.1 with a vocabulary for 101 languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.families import t5
from trivium.models.families.t5 import FIELDS as FIELDS
from trivium.models.families.t5 import HEAD_MAY_BE_UNTIED as HEAD_MAY_BE_UNTIED
from trivium.models.families.t5 import IGNORED as IGNORED
from trivium.models.families.t5 import KEYS as KEYS
from trivium.models.families.t5 import PREFIX as PREFIX
from trivium.models.families.t5 import body_keys as body_keys

HEADS = t5.heads("MT5")
PRESETS: dict[str, dict[str, Any]] = {
    name: {**fields, "family": "mt5"} for name, fields in t5.sizes_of_v1_1("mt5", vocab=250112).items()
}
HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


DERIVED = {"head_scale": lambda fields: 1.0}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json; their class never scales before the head, whatever the file says."""
    return {**t5.from_hf({**HF_DEFAULTS, **raw, "scale_decoder_outputs": False}), "family": "mt5"}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {name: value for name, value in t5.to_hf(config).items() if name != "scale_decoder_outputs"}
