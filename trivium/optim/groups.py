"""Which parameters decay: matrices and embeddings do, biases and norm weights do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups with their names: at least two dimensions (decayed) and fewer (not decayed)."""
    decayed: dict[str, Any] = {"params": [], "names": [], "weight_decay": weight_decay}
    plain: dict[str, Any] = {"params": [], "names": [], "weight_decay": 0.0}
    for name, parameter in named:
        group = decayed if parameter.ndim >= 2 else plain
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in (decayed, plain) if group["params"]]
