"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with several MLPs a block; a token passes two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.errors import ModelError
from trivium.models.config import ModelConfig
from trivium.models.families import llama, mistral
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.huggingface import causal_heads, demand, keys


def _shape(width: int, layers: int, heads: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
    rest = {"experts": 8, "experts_per_token": 2, "balance_loss": 0.02, "rope": {"theta": 1e6}, **more}
    return llama.shape(width, layers, heads, inner, vocab, positions, family="mixtral", bos_id=1, eos_id=2, **rest)


PRESETS: dict[str, dict[str, Any]] = {
    "mixtral-1m": _shape(64, 4, 4, 112, 2048, 512, num_kv_heads=2, rope={}),
    "mixtral-8x7b": _shape(4096, 32, 32, 14336, 32000, 32768, num_kv_heads=8),
    "mixtral-8x22b": _shape(6144, 56, 48, 16384, 32000, 65536, num_kv_heads=8, balance_loss=0.001),
}

HEADS = causal_heads("Mixtral")

_MOE = "model.layers.{}.block_sparse_moe"
_OWN = "blocks.{}.moe"

KEYS = [
    *(key for key in llama.KEYS if ".mlp." not in key.file),
    *keys(f"{_MOE}.gate", f"{_OWN}.router"),
    *keys(f"{_MOE}.experts.{{}}.w1", f"{_OWN}.experts.{{}}.gate"),
    *keys(f"{_MOE}.experts.{{}}.w3", f"{_OWN}.experts.{{}}.up"),
    *keys(f"{_MOE}.experts.{{}}.w2", f"{_OWN}.experts.{{}}.down"),
]

FIELDS = {
    **mistral.FIELDS,
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "balance_loss": "router_aux_loss_coef",
}
HF_DEFAULTS: dict[str, Any] = {
    **mistral.HF_DEFAULTS,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_theta": 1e6,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw}
    demand(raw, router_jitter_noise=0.0)
    if filled["num_local_experts"] == 0:
        raise ModelError("a mixture needs experts", where="num_local_experts", value=0, fix="use the family mistral")
    own = {name: filled[FIELDS[name]] for name in ("experts", "experts_per_token", "balance_loss")}
    return {**mistral.from_hf(filled), "family": "mixtral", **own}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **mistral.to_hf(config),
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.balance_loss,
    }
