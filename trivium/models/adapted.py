"""Linear layers and embeddings that adapters act on: the base keeps its names, what is added stands beside it.

An adapter turns the layers it acts on into `AdaptedLinear` in place, so `blocks.0.attention.query.weight` is still
the weight of the base; its own parameters lie below `blocks.0.attention.query.branches.<adapter>`.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trivium.models import kernels
from trivium.models.layers import Embedding, Linear

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer


class Rows:
    """On which tokens an adapter acts, shared by all of its branches; set anew for each forward pass.

    index: [N] numbers of the tokens, None for all of them. active: False switches the adapter off.
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None
        self.active = True


class Branch(nn.Module):
    """What one adapter does at one linear layer or embedding."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def before(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, I], what the layer reads instead of `x`."""
        return x

    def after(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """Input [T, I] and output [T, O] of the layer -> [T, O]."""
        return y

    def first(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """[T, I] -> [T, O], the layer and this branch, for the first of its branches; a chance to do both at once."""
        return self.after(x, layer.base(x), layer)

    def looked_up(self, ids: Tensor, y: Tensor, layer: AdaptedEmbedding) -> Tensor:
        """Tokens [T] and what the embedding says of them [T, D] -> [T, D]."""
        return y


def _active(branches: nn.ModuleDict) -> list[Branch]:
    return [branch for branch in branches.values() if isinstance(branch, Branch) and branch.rows.active]


class AdaptedLinear(Linear):
    """A linear layer with branches, in the order in which their adapters were applied."""

    branches: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        branches = _active(self.branches)
        if not branches:
            return self.base(x)
        for branch in branches:
            x = branch.before(x)
        y = branches[0].first(x, self)
        for branch in branches[1:]:
            y = branch.after(x, y, self)
        return y

    def base(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O] by the weights of the base alone."""
        return kernels.linear(x, self.weight, self.bias)

    def dense_weight(self) -> Tensor:
        """[O, I] weight of the base in floating point."""
        return self.weight


class AdaptedEmbedding(Embedding):
    """An embedding with branches."""

    branches: nn.ModuleDict

    def forward(self, ids: Tensor) -> Tensor:
        """[T] -> [T, D]."""
        y = super().forward(ids)
        for branch in _active(self.branches):
            y = branch.looked_up(ids, y, self)
        return y


_ADAPTED: dict[type[nn.Module], type[AdaptedLinear | AdaptedEmbedding]] = {
    Linear: AdaptedLinear,
    Embedding: AdaptedEmbedding,
}


def can_adapt(module: nn.Module) -> bool:
    """Whether a branch can act there: not at the output layer of a language model, which losses read by themselves."""
    return type(module) in _ADAPTED or isinstance(module, (AdaptedLinear, AdaptedEmbedding))


def adapt(model: Transformer, layer: str, adapter: str, branch: Branch) -> None:
    """Let `branch` act at the linear layer or embedding of the model that is called `layer`."""
    module = model.get_submodule(layer)
    if not isinstance(module, (AdaptedLinear, AdaptedEmbedding)):
        assert can_adapt(module), f"{layer} is no linear layer"
        module.__class__ = _ADAPTED[type(module)]
        module.branches = nn.ModuleDict()
    assert isinstance(module, (AdaptedLinear, AdaptedEmbedding))
    assert adapter not in module.branches, f"{layer} has a branch {adapter} already"
    module.branches[adapter] = branch.train(module.training)


def release(model: Transformer, adapter: str) -> None:
    """Remove the branches of `adapter`; layers without any are plain again."""
    plain: dict[type[nn.Module], Any] = {adapted: own for own, adapted in _ADAPTED.items()}
    for module in model.modules():
        if isinstance(module, (AdaptedLinear, AdaptedEmbedding)) and adapter in module.branches:
            del module.branches[adapter]
            if not module.branches and type(module) in plain:
                del module.branches
                module.__class__ = plain[type(module)]


def branches_of(model: Transformer, adapter: str) -> dict[str, Branch]:
    """The branches of `adapter` by the name of their layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (AdaptedLinear, AdaptedEmbedding)) and adapter in module.branches:
            branch = module.branches[adapter]
            assert isinstance(branch, Branch)
            found[name] = branch
    return found


def at_rows(y: Tensor, rows: Rows, delta: Tensor) -> Tensor:
    """[T, O] plus what an adapter adds, which is [T, O], or [N, O] where it acts on N tokens only."""
    return y + delta if rows.index is None else torch.index_add(y, 0, rows.index, delta.to(y.dtype))


def chosen(x: Tensor, rows: Rows) -> Tensor:
    """[T, I] -> [N, I], the tokens that an adapter acts on."""
    return x if rows.index is None else x.index_select(0, rows.index)
