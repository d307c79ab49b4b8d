"""Which models tensor parallelism can divide, and what one process then computes; no torch is needed.

Query, key, value, gate and up projections are divided by columns, output and down projections by rows (Shoeybi et al.
2019, arXiv:1909.08053): a process has whole heads, and a part of the width inside the MLP.
"""

from __future__ import annotations

import math

from trivium.errors import ConfigError
from trivium.models.config import ModelConfig


def refuse_undividable(config: ModelConfig, size: int) -> None:
    """ConfigError if `size` processes cannot divide this model evenly."""
    counts = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
    }
    uneven = {name: count for name, count in counts.items() if count % size}
    if uneven:
        common = math.gcd(*counts.values())
        most = max(number for number in range(1, min(size, common) + 1) if common % number == 0)
        said = ", ".join(f"{name} {count}" for name, count in uneven.items())
        raise ConfigError(
            f"{size} processes cannot divide this model evenly: {said}",
            where="engine.name",
            value="tensor",
            fix=f"start {most} processes, or set engine.name=fsdp2"
            if most > 1
            else "set engine.name=fsdp2 (or ddp, or single)",
        )
    reason = None
    if config.positions in ("alibi", "relative"):
        reason = f"positions '{config.positions}' add a term of their own to the scores of each head"
    elif config.query_key_norm == "projection":
        reason = "query_key_norm 'projection' is a norm over all heads together"
    if reason is not None:
        raise ConfigError(
            f"tensor parallelism does not divide this model: {reason}",
            where="engine.name",
            value="tensor",
            fix="set engine.name=fsdp2 (or ddp, or single)",
        )


def local_shape(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of what one of `size` processes computes in a block, for estimates; the width stays whole."""
    parts = {name: max(1, getattr(config, name) // size) for name in ("num_heads", "num_kv_heads", "intermediate_size")}
    return config.model_copy(update=parts)
