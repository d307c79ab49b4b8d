"""The branch of LoRA at a linear layer.

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.adapted import Branch, Rows, at_rows, chosen
from trivium.models.build import parameter_stream
from trivium.models.layers import Linear


class LoRABranch(Branch):
    """y + scale * up(down(dropout(x)))."""

    def __init__(self, layer: nn.Module, down: nn.Parameter, scale: float, dropout: float, rows: Rows) -> None:
        super().__init__(rows)
        assert isinstance(layer, nn.Linear)
        self.scale, self.dropout = scale, dropout
        self.down = down
        self.up = nn.Parameter(down.new_zeros(layer.out_features, down.shape[0]))

    @staticmethod
    def new_down(layer: nn.Module, rank: int, *, seed: int, name: str) -> nn.Parameter:
        """[R, I] uniform in +- 1 / sqrt(I), at least in float32, on the device of the layer."""
        assert isinstance(layer, nn.Linear)
        bound = 1 / math.sqrt(layer.in_features)
        values = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=parameter_stream(seed, name))
        kind = torch.promote_types(layer.weight.dtype, torch.float32)
        return nn.Parameter(values.to(device=layer.weight.device, dtype=kind))

    def after(self, x: Tensor, y: Tensor, layer: Linear) -> Tensor:
        """[T, O]."""
        inputs = F.dropout(chosen(x, self.rows).to(self.down.dtype), self.dropout, self.training)
        return at_rows(y, self.rows, F.linear(F.linear(inputs, self.down), self.up).to(y.dtype) * self.scale)

    def change(self) -> Tensor:
        """[O, I], what merging adds to the weight."""
        return self.up @ self.down * self.scale
