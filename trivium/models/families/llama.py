"""LLaMA (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783).

Pre-norm decoder with RMSNorm, rotary positions, gated SiLU MLP and grouped-query attention; no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import ModelConfig
from trivium.models.huggingface import (
    causal_heads,
    demand,
    keys,
    read_activation,
    read_fields,
    read_fraction,
    read_rope,
    write_activation,
    write_fields,
    write_rope,
)


def shape(width: int, layers: int, heads: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
    """A preset, of this family or of a relative."""
    return {
        "family": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": inner,
        "max_positions": positions,
        **more,
    }


def _llama3(factor: float | None) -> dict[str, Any]:
    scaling = None if factor is None else {"type": "llama3", "factor": factor, "original_max_positions": 8192}
    return {"num_kv_heads": 8, "rope": {"theta": 500000.0, "scaling": scaling}, "bos_id": 128000, "eos_id": 128001}


def _smollm(width: int, layers: int, heads: int, kv_heads: int, inner: int, theta: float | None) -> dict[str, Any]:
    """SmolLM without, SmolLM2 (Allal et al. 2025, arXiv:2502.02737) with a base of its own."""
    rest = {"num_kv_heads": kv_heads, "tie_embeddings": True, "bos_id": 0, "eos_id": 0}
    rope = {} if theta is None else {"rope": {"theta": theta}}
    return shape(width, layers, heads, inner, 49152, 2048 if theta is None else 8192, **rest, **rope)


_ENDS: dict[str, Any] = {"bos_id": 1, "eos_id": 2}

PRESETS: dict[str, dict[str, Any]] = {
    "llama-1m": shape(128, 4, 4, 344, 2048, 256, tie_embeddings=True),
    "llama-3m": shape(192, 6, 6, 512, 4096, 512, tie_embeddings=True),
    "llama-10m": shape(256, 8, 8, 688, 8192, 512),
    "llama-30m": shape(384, 10, 6, 1024, 16384, 1024),
    "llama-100m": shape(768, 12, 12, 2048, 16384, 2048, tie_embeddings=True),
    "llama-350m": shape(1024, 24, 16, 2816, 32000, 2048, tie_embeddings=True),
    "smollm-135m": _smollm(576, 30, 9, 3, 1536, None),
    "smollm-360m": _smollm(960, 32, 15, 5, 2560, None),
    "smollm-1.7b": _smollm(2048, 24, 32, 32, 8192, None),
    "smollm2-135m": _smollm(576, 30, 9, 3, 1536, 100000.0),
    "smollm2-360m": _smollm(960, 32, 15, 5, 2560, 100000.0),
    "smollm2-1.7b": _smollm(2048, 24, 32, 32, 8192, 130000.0),
    "tinyllama-1.1b": shape(2048, 22, 32, 5632, 32000, 2048, num_kv_heads=4, **_ENDS),
    # Llama 3.2 1B and 3B, Llama 2 7B, Llama 3.1 8B
    "llama-1b": shape(2048, 16, 32, 8192, 128256, 131072, tie_embeddings=True, **_llama3(32.0)),
    "llama-3b": shape(3072, 28, 24, 8192, 128256, 131072, tie_embeddings=True, **_llama3(32.0)),
    "llama-7b": shape(4096, 32, 32, 11008, 32000, 4096, **_ENDS),
    "llama-8b": shape(4096, 32, 32, 14336, 128256, 131072, **_llama3(8.0)),
    "llama2-13b": shape(5120, 40, 40, 13824, 32000, 4096, **_ENDS),
    "llama2-70b": shape(8192, 80, 64, 28672, 32000, 4096, num_kv_heads=8, **_ENDS),
    "llama3-8b": shape(4096, 32, 32, 14336, 128256, 8192, **_llama3(None)),
    "llama3-70b": shape(8192, 80, 64, 28672, 128256, 8192, **_llama3(None)),
    "llama3.1-70b": shape(8192, 80, 64, 28672, 128256, 131072, **_llama3(8.0)),
    "llama3.1-405b": shape(16384, 126, 128, 53248, 128256, 131072, **_llama3(8.0)),
}

HEADS = causal_heads("Llama", span_prefix="transformer.")
PREFIX = "model."
IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""Tensors of old files that hold no parameters."""

KEYS = [
    *keys("model.embed_tokens", "embed"),
    *keys("model.layers.{}.input_layernorm", "blocks.{}.attention_norm"),
    *keys("model.layers.{}.self_attn.q_proj", "blocks.{}.attention.query"),
    *keys("model.layers.{}.self_attn.k_proj", "blocks.{}.attention.key"),
    *keys("model.layers.{}.self_attn.v_proj", "blocks.{}.attention.value"),
    *keys("model.layers.{}.self_attn.o_proj", "blocks.{}.attention.output"),
    *keys("model.layers.{}.post_attention_layernorm", "blocks.{}.mlp_norm"),
    *keys("model.layers.{}.mlp.gate_proj", "blocks.{}.mlp.gate"),
    *keys("model.layers.{}.mlp.up_proj", "blocks.{}.mlp.up"),
    *keys("model.layers.{}.mlp.down_proj", "blocks.{}.mlp.down"),
    *keys("model.norm", "final_norm"),
]

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
}

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    demand({"partial_rotary_factor": read_fraction(raw)}, partial_rotary_factor=1.0)
    fields = read_fields(raw, FIELDS, HF_DEFAULTS)
    biases = [name for name in ("attention", "mlp") if raw.get(f"{name}_bias")]
    return {
        **fields,
        "family": "llama",
        "activation": read_activation(raw, "hidden_act", "silu"),
        "biases": tuple(biases),
        "rope": read_rope(raw, fields["max_positions"]),
    }


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    return {
        **write_fields(config, FIELDS),
        **write_rope(config.rope),
        "hidden_act": write_activation(config),
        "attention_bias": "attention_output" in config.biases,
        "mlp_bias": "mlp" in config.biases,
    }
