"""Rotary positions: the angles of every scaling variant.

Each pair of coordinates (i, i + R/2) of the first R of a query or key turns by position * frequency_i.
`attention_factor` scales cosine and sine, which scales the attention logits by its square.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models.config import DynamicScaling, Llama3Scaling, LongRopeScaling, ModelConfig, Rope, YarnScaling

if TYPE_CHECKING:
    from collections.abc import Sequence


def depends_on_length(rope: Rope) -> bool:
    """Whether the angles of a token change when its sequence grows (dynamic NTK, LongRoPE)."""
    return isinstance(rope.scaling, DynamicScaling | LongRopeScaling)


def frequencies(config: ModelConfig, rope: Rope, *, length: int) -> tuple[Tensor, float]:
    """([R/2] float32 angle per position, attention factor) for a sequence of `length` tokens in total."""
    dim, theta, scaling = config.rotary_dim, rope.theta, rope.scaling
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain, 1.0
    if isinstance(scaling, DynamicScaling):
        growth = scaling.factor * max(length, config.max_positions) / config.max_positions - (scaling.factor - 1)
        return 1.0 / (theta * growth ** (dim / (dim - 2))) ** exponents, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(plain, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(plain, scaling, dim, theta)
    if isinstance(scaling, LongRopeScaling):
        long = length > scaling.original_max_positions
        factors = torch.tensor(scaling.long_factor if long else scaling.short_factor, dtype=torch.float32)
        return 1.0 / (factors * theta**exponents), _longrope_attention(scaling, config.max_positions)
    return plain / scaling.factor, 1.0


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_max_positions * plain / (2 * math.pi)  # whole turns within the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain


def _yarn(plain: Tensor, scaling: YarnScaling, dim: int, theta: float) -> tuple[Tensor, float]:
    def border(turns: float) -> float:
        """The coordinate that makes `turns` turns within the original context."""
        return dim * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = border(scaling.beta_fast), border(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    angles = plain / scaling.factor * ramp + plain * (1 - ramp)
    if scaling.attention_factor is not None:
        return angles, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return angles, _sharpen(scaling.factor, scaling.mscale) / _sharpen(scaling.factor, scaling.mscale_all_dim)
    return angles, _sharpen(scaling.factor, 1.0)


def _sharpen(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope_attention(scaling: LongRopeScaling, max_positions: int) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    original = scaling.original_max_positions
    factor = scaling.factor if scaling.factor is not None else max_positions / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def cos_sin(
    config: ModelConfig, rope: Rope, positions: Tensor, *, layout: Layout, totals: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cosine [T, 1, R] and sine [T, 1, R/2] of tokens at `positions` [T] in sequences of `totals` tokens in the end."""
    lengths = totals if depends_on_length(rope) and totals else (0,)
    by_length = {length: frequencies(config, rope, length=length) for length in set(lengths)}
    factor = by_length[lengths[0]][1]
    rows = torch.stack([by_length[length][0] for length in lengths]).to(positions.device)
    per_token = rows if len(rows) == 1 else rows[layout.sequence_ids(positions.device)]
    angles = (positions.unsqueeze(1).to(torch.float32) * per_token).unsqueeze(1)
    cos = angles.cos().mul_(factor)
    return torch.cat((cos, cos), dim=-1), angles.sin().mul_(factor)
