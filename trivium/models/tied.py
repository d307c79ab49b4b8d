"""One gradient for a weight that is embedding and head at once.

Autograd would form two, each as large as the weight: that of the head, and that of the embedding, which is zero but
for the rows of a few hundred tokens. The second is made at the end of a backward pass, when all other gradients exist,
and would be the peak of memory where the vocabulary is large. Here both uses read the weight through one function, to
which their gradients come back together: the rows are added to the gradient of the head where it lies.

Shapes: T tokens, V vocabulary, D width. First derivatives only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def suits(weight: Tensor) -> bool:
    """Whether it pays: a whole weight on the CPU that trains, where nothing compiles."""
    return (
        type(weight) is nn.Parameter
        and weight.requires_grad
        and weight.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def share(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two views of weight [V, D]: for `look_up`, and for the head."""
    found: tuple[Tensor, Tensor] = _Share.apply(weight)  # type: ignore[no-untyped-call]
    return found


def look_up(ids: Tensor, weight: Tensor) -> Tensor:
    """[T] -> [T, D]: the rows of `ids` of the first view."""
    rows: Tensor = _LookUp.apply(ids, weight)  # type: ignore[no-untyped-call]
    return rows


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> Tensor | None:
        rows, whole = upstream
        if rows is None:
            return whole
        if whole is None:
            return rows.to_dense()
        return whole.index_add_(0, rows._indices()[0], rows._values())


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        return None, torch.sparse_coo_tensor(ids[None], upstream[0], ctx.shape, check_invariants=False)
