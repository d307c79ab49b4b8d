"""Positions that add to attention scores: ALiBi and T5's relative positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trivium.models.config import ModelConfig


class Alibi:
    """- slope * distance, with a fixed slope for each head (Press et al. 2022, arXiv:2108.12409).

    The products of slopes and positions are rounded to bfloat16, as Falcon was trained and as transformers runs it.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.slopes = torch.tensor(alibi_slopes(config.num_heads)).to(torch.bfloat16)
        self.scale = config.alibi_scale

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [..., Q] and [N] -> [..., H, Q, N]."""
        return self.terms(keys).unsqueeze(-2) - self.terms(queries).unsqueeze(-1)

    def terms(self, positions: Tensor) -> Tensor:
        """Positions [..., N] -> [..., H, N]."""
        return (self.slopes.to(positions.device)[:, None] * positions.unsqueeze(-2)).float() * self.scale


def alibi_slopes(heads: int) -> list[float]:
    """A geometric series for each power of two; other numbers of heads take every second one of the next."""
    whole = 1 << int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / whole) for head in range(whole)]
    between = [2.0 ** (-4.0 * (head + 1) / whole) for head in range(0, 2 * (heads - whole), 2)]
    return slopes + between


class RelativeBias(nn.Embedding):
    """A learned term for each head and each bucket of distances (Raffel et al. 2020, arXiv:1910.10683).

    Half of the buckets hold one distance each; the others grow logarithmically up to `relative_max_distance`. Where
    tokens see both ways, each direction has half of the buckets.
    """

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config.relative_buckets, config.num_heads)
        self.causal = causal
        self.max_distance = config.relative_max_distance

    def reset_parameters(self) -> None:
        """Nothing: torch's own would draw from the global random state."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        """Positions [..., Q] and [N] -> [..., H, Q, N]."""
        bias: Tensor = super().forward(self.buckets(keys - queries.unsqueeze(-1)))
        return bias.movedim(-1, -3)

    def buckets(self, distance: Tensor) -> Tensor:
        """Bucket of each key position minus query position."""
        count, first = self.num_embeddings, torch.zeros_like(distance)
        if self.causal:
            distance = (-distance).clamp(min=0)
        else:
            count //= 2
            first = (distance > 0).to(distance.dtype) * count
            distance = distance.abs()
        exact = count // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (count - exact)).to(distance.dtype)).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)
