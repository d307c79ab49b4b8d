"""Several changes of one tensor as one: weighted sums, TIES and DARE.

A *change* is what training did to a weight (a task vector, Ilharco et al. 2023, arXiv 2212.04089).

    linear       sum_i w_i d_i
    ties         of each change only its largest entries stay; of each entry the sign with the larger sum wins; the
                 weighted changes of that sign are summed and divided by their number (Yadav et al. 2023, 2306.01708)
    dare         entries of each change are dropped at random and the others divided by the share that stays, then
                 summed (Yu et al. 2024, arXiv 2311.03099); dare_ties: then as in ties

density is the share of entries that stays. The results are those of PEFT's merge_utils.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trivium.models.build import parameter_stream

Rule = Literal["linear", "ties", "dare", "dare_ties"]
RULES: tuple[Rule, ...] = ("linear", "ties", "dare", "dare_ties")


def combine(
    changes: Sequence[Tensor],
    weights: Sequence[float],
    rule: Rule,
    *,
    density: float = 1.0,
    seed: int = 0,
    name: str = "",
) -> Tensor:
    """One change from several of the same shape, in float32.

    seed, name: of what `dare` drops, another stream for each change.
    """
    wide = [change.float() for change in changes]
    if rule == "ties":
        wide = [_largest(change, density) for change in wide]
    elif rule != "linear":
        wide = [_dropped(change, density, seed, f"{name}.{number}") for number, change in enumerate(wide)]
    stacked = torch.stack(wide)
    weighted = stacked * torch.tensor(weights, dtype=torch.float32).view(-1, *[1] * wide[0].dim())
    if rule in ("linear", "dare"):
        return weighted.sum(0)
    agrees = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(change: Tensor, density: float) -> Tensor:
    """The change with only its largest entries."""
    if density >= 1:
        return change
    keep = torch.topk(change.abs().flatten(), int(density * change.numel())).indices
    return torch.zeros_like(change).flatten().index_copy(0, keep, change.flatten()[keep]).view_as(change)


def _dropped(change: Tensor, density: float, seed: int, name: str) -> Tensor:
    """The change with entries dropped at random, and the others made larger for it."""
    if density >= 1:
        return change
    stays = torch.rand(change.shape, generator=parameter_stream(seed, name)) < density
    return change * stays / density
