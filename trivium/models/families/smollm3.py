"""SmolLM3 (Hugging Face 2025): LLaMA with no positions in every fourth layer.

Layers without positions: Kazemnejad et al. 2023 (arXiv:2305.19466),
among others that have them: Yang et al. 2025 (arXiv:2501.18795).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.models.config import LayerType, ModelConfig
from trivium.models.families import llama
from trivium.models.families.llama import IGNORED as IGNORED
from trivium.models.families.llama import KEYS as KEYS
from trivium.models.families.llama import PREFIX as PREFIX
from trivium.models.families.qwen2 import FIELDS as FIELDS
from trivium.models.huggingface import causal_heads, every, read_layers, write_layers


def _shape(width: int, layers: int, heads: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
    return {
        **llama.shape(width, layers, heads, inner, vocab, positions, num_kv_heads=heads // 4, family="smollm3"),
        "tie_embeddings": True,
        "norm_eps": 1e-6,
        **more,
    }


def _every_nth(count: Any, interval: Any) -> tuple[int, ...]:
    """Layers without positions; what is malformed has none, and validation names it."""
    if not all(isinstance(number, int) and 1 <= number <= 1 << 10 for number in (count, interval)):
        return ()
    return tuple(range(interval - 1, count, interval))


PRESETS: dict[str, dict[str, Any]] = {
    "smollm3-1m": _shape(128, 4, 4, 344, 2048, 512),
    "smollm3-3b": _shape(
        2048, 36, 16, 11008, 128256, 65536, rope={"theta": 5e6}, bos_id=128000, eos_id=128012, pad_id=128004
    ),
}

DERIVED = {"layers_without_rotary": lambda fields: _every_nth(fields["num_layers"], 4)}

HEADS = causal_heads("SmolLM3", span_prefix="transformer.")

HF_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2e6,
    "tie_word_embeddings": True,
    "pad_token_id": 128004,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "sliding_window": None,
}


def from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` from a config.json."""
    filled = {**HF_DEFAULTS, **raw}
    still = _every_nth(filled["num_hidden_layers"], raw.get("no_rope_layer_interval", 4))
    if isinstance(given := raw.get("no_rope_layers"), list):
        still = tuple(layer for layer, turns in enumerate(given) if not turns)
    full = every(filled["num_hidden_layers"], 0, first=1 << 10)
    types: list[LayerType] = ["sliding" if layer in still else kind for layer, kind in enumerate(full)]
    layers = read_layers(raw, filled["sliding_window"] if raw.get("use_sliding_window") else None, types)
    return {**llama.from_hf(filled), **layers, "family": "smollm3", "layers_without_rotary": still}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """A config.json from `ModelConfig`."""
    slides = any(config.slides(layer) for layer in range(config.num_layers))
    return {
        **llama.to_hf(config),
        **write_layers(config),
        "use_sliding_window": slides,
        "no_rope_layers": [int(layer not in config.layers_without_rotary) for layer in range(config.num_layers)],
    }
