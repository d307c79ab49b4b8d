"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867), three kinds of it.

7B:  attention and MLP side by side after one norm, one key/value head.
40B: side by side with a norm each, several key/value heads ("new decoder architecture"); the 11B shares the norm.
RW:  one after the other, ALiBi instead of rotary positions, biases (Penedo et al. 2023, arXiv:2306.01116).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    QUERY_KEY_VALUE,
    causal_heads,
    demand,
    keys,
    read_activation,
    read_fields,
    read_rope,
    write_activation,
    write_fields,
    write_rope,
)

_ALWAYS: dict[str, Any] = {"family": "falcon", "norm": "layernorm", "mlp": "plain"}
_RW: dict[str, Any] = {"parallel": "none", "positions": "alibi", "biases": ("attention", "mlp")}


def _shape(width: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 65024,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "intermediate_size": 4 * width,
        "max_positions": 2048,
        "positions": "rotary",
        "activation": "gelu",
        "parallel": "one_norm",
        "tie_embeddings": True,
        "bos_id": 11,
        "eos_id": 11,
        **_ALWAYS,
        **more,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "falcon-1m": _shape(128, 4, 4, 1, vocab_size=2048),
    "falcon-7b": _shape(4544, 32, 71, 1),
    "falcon-11b": _shape(4096, 60, 32, 8, tie_embeddings=False, max_positions=8192, rope={"theta": 500042.0}),
    "falcon-40b": _shape(8192, 60, 128, 8, parallel="two_norms"),
    "falcon-180b": _shape(14848, 80, 232, 8, parallel="two_norms"),
    "falcon-rw-1b": _shape(2048, 24, 32, 32, vocab_size=50304, bos_id=1, eos_id=2, **_RW),
}


def _alibi_scale(fields: Mapping[str, Any]) -> float:
    """The slopes are divided by sqrt(head_dim) like the scores they are added to."""
    width, heads = fields["hidden_size"], fields["num_heads"]
    whole = isinstance(width, int) and isinstance(heads, int) and 0 < heads <= width
    return (width // heads) ** -0.5 if fields["positions"] == "alibi" and whole else 1.0


DERIVED = {"alibi_scale": _alibi_scale}
HEADS = causal_heads("Falcon", token="classifier")
PREFIX = "transformer."
IGNORED = r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq"
"""Tensors of old files that hold no parameters."""

_BLOCK, _ATTENTION = "transformer.h.{}", "blocks.{}.attention"

KEYS = [
    *keys("transformer.word_embeddings", "embed"),
    *keys(f"{_BLOCK}.input_layernorm", "blocks.{}.attention_norm", when=("parallel", "one_norm", "none")),
    *keys(f"{_BLOCK}.post_attention_layernorm", "blocks.{}.mlp_norm", when=("parallel", "none")),
    *keys(f"{_BLOCK}.ln_attn", "blocks.{}.attention_norm", when=("parallel", "two_norms")),
    *keys(f"{_BLOCK}.ln_mlp", "blocks.{}.mlp_norm", when=("parallel", "two_norms")),
    *keys(f"{_BLOCK}.self_attention.query_key_value", *QUERY_KEY_VALUE, grouped=True),
    *keys(f"{_BLOCK}.self_attention.dense", f"{_ATTENTION}.output"),
    *keys(f"{_BLOCK}.mlp.dense_h_to_4h", "blocks.{}.mlp.up"),
    *keys(f"{_BLOCK}.mlp.dense_4h_to_h", "blocks.{}.mlp.down"),
    *keys("transformer.ln_f", "final_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "ffn_hidden_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 11,
    "eos_token_id": 11,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    fields["positions"] = "alibi" if raw.get("alibi") else "rotary"
    if fields["intermediate_size"] is None and isinstance(fields["hidden_size"], int):
        fields["intermediate_size"] = 4 * fields["hidden_size"]
    if raw.get("new_decoder_architecture"):
        demand(raw, parallel_attn=True)
        kv_heads = raw.get("num_kv_heads")
        parallel = "one_norm" if raw.get("num_ln_in_parallel_attn") == 1 else "two_norms"
    else:
        demand(raw, num_ln_in_parallel_attn=1)
        kv_heads = 1 if raw.get("multi_query", True) else None
        parallel = "one_norm" if raw.get("parallel_attn", True) else "none"
    return {
        **fields,
        **_ALWAYS,
        "num_kv_heads": kv_heads,
        "parallel": parallel,
        "activation": read_activation(raw, "activation", "gelu"),
        "biases": ("attention", "mlp") if raw.get("bias") else (),
        "alibi_scale": _alibi_scale(fields),
        "rope": read_rope(raw, fields["max_positions"]),
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    grouped = config.num_kv_heads not in (1, config.num_heads)
    new = config.parallel == "two_norms" or grouped
    return {
        **write_fields(config, FIELDS),
        **write_rope(config.rope),
        "activation": write_activation(config),
        "alibi": config.positions == "alibi",
        "bias": "mlp" in config.biases,
        "new_decoder_architecture": new,
        "num_kv_heads": config.num_kv_heads if new else config.num_heads,
        "multi_query": config.num_kv_heads == 1,
        "parallel_attn": config.parallel != "none",
        "num_ln_in_parallel_attn": (2 if config.parallel == "two_norms" else 1) if new else None,
    }
