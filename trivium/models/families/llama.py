"""LLaMA (Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783).

Pre-norm decoder with RMSNorm, rotary positions, gated SiLU MLP and grouped-query attention; no biases.
"""

from __future__ import annotations

from typing import Any


def _shape(width: int, layers: int, heads: int, inner: int, vocab: int, positions: int, **more: Any) -> dict[str, Any]:
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


def _llama3(factor: float) -> dict[str, Any]:
    scaling = {"type": "llama3", "factor": factor, "original_max_positions": 8192}
    return {"rope": {"theta": 500000.0, "scaling": scaling}, "bos_id": 128000, "eos_id": 128001}


PRESETS: dict[str, dict[str, Any]] = {
    "llama-1m": _shape(128, 4, 4, 344, 2048, 256, tie_embeddings=True),
    "llama-3m": _shape(192, 6, 6, 512, 4096, 512, tie_embeddings=True),
    "llama-10m": _shape(256, 8, 8, 688, 8192, 512),
    "llama-30m": _shape(384, 10, 6, 1024, 16384, 1024),
    "llama-100m": _shape(768, 12, 12, 2048, 16384, 2048, tie_embeddings=True),
    "llama-350m": _shape(1024, 24, 16, 2816, 32000, 2048, tie_embeddings=True),
    "llama-1b": _shape(2048, 16, 32, 8192, 128256, 131072, num_kv_heads=8, tie_embeddings=True, **_llama3(32.0)),
    "llama-3b": _shape(3072, 28, 24, 8192, 128256, 131072, num_kv_heads=8, tie_embeddings=True, **_llama3(32.0)),
    "llama-7b": _shape(4096, 32, 32, 11008, 32000, 4096, bos_id=1, eos_id=2),
    "llama-8b": _shape(4096, 32, 32, 14336, 128256, 131072, num_kv_heads=8, **_llama3(8.0)),
}
