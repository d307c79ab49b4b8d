"""The branches of IA3: factors on the inputs or on the outputs of a linear layer.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.models.adapted import AdaptedLinear, Branch, Rows, branches_of, chosen
from trivium.models.lora import wide
from trivium.models.quantized import QuantizedLinear

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer


class ScaledOutputs(Branch):
    """y * factors."""

    def __init__(self, layer: nn.Module, rows: Rows) -> None:
        super().__init__(rows)
        assert isinstance(layer, nn.Linear)
        self.factors = nn.Parameter(_ones(layer.out_features, layer.weight))

    def after(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """[T, O]."""
        return _scaled(y, self.factors, self.rows)


class ScaledInputs(Branch):
    """The layer reads x * factors."""

    def __init__(self, factors: nn.Parameter, rows: Rows) -> None:
        super().__init__(rows)
        self.factors = factors

    @staticmethod
    def ones(layer: nn.Module) -> nn.Parameter:
        """[I]."""
        assert isinstance(layer, nn.Linear)
        return nn.Parameter(_ones(layer.in_features, layer.weight))

    def before(self, x: Tensor) -> Tensor:
        """[T, I]."""
        return _scaled(x, self.factors, self.rows)


def _ones(count: int, like: Tensor) -> Tensor:
    return torch.ones(count, device=like.device, dtype=wide(like))


def _scaled(x: Tensor, factors: Tensor, rows: Rows) -> Tensor:
    if rows.index is None:
        return x * factors.to(x.dtype)
    return x.index_copy(0, rows.index, chosen(x, rows) * factors.to(x.dtype))


def merge_factors(model: Transformer, adapter: str) -> None:
    """Multiplies the weights and biases of the base."""
    with torch.no_grad():
        for name, branch in branches_of(model, adapter).items():
            layer = model.get_submodule(name)
            assert isinstance(layer, AdaptedLinear)
            if isinstance(branch, ScaledInputs):
                factors, by_output = branch.factors[None], False
            else:
                assert isinstance(branch, ScaledOutputs)
                factors, by_output = branch.factors[:, None], True
            merged = layer.dense_weight() * factors
            if isinstance(layer, QuantizedLinear):
                layer.make_dense(merged)
            else:
                layer.weight.copy_(merged)
            if by_output and layer.bias is not None:
                layer.bias.copy_(layer.bias * factors[:, 0])
