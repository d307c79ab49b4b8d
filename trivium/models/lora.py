"""The branches of LoRA at linear layers and embeddings, and the values they start from.

Shapes: T tokens, I inputs, O outputs, R rank, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trivium.models import products, remade
from trivium.models.adapted import AdaptedEmbedding, AdaptedLinear, Branch, Rows, at_rows, chosen
from trivium.models.build import parameter_stream


class LoRABranch(Branch):
    """y + scale * up(down(dropout(x))), or with a magnitude m: m / |W + change| * that without its bias, + bias.

    start: what `down` and `up` were at first, where that is not nothing: its change is taken off again, so that the
    model starts as its base (PiSSA).
    """

    start_down: Tensor | None
    start_up: Tensor | None

    def __init__(
        self,
        down: nn.Parameter,
        up: nn.Parameter,
        scale: float,
        rows: Rows,
        *,
        dropout: float = 0.0,
        start: bool = False,
        magnitude: Tensor | None = None,
    ) -> None:
        super().__init__(rows)
        self.scale, self.dropout = scale, dropout
        self.down, self.up = down, up
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.register_buffer("start_down", down.detach().clone() if start else None)
        self.register_buffer("start_up", up.detach().clone() if start else None)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down [R, I], up [O, R]) of the whole change; twice the rank where there is a start to take off."""
        if self.start_down is None or self.start_up is None:
            return self.down, self.up
        return torch.cat([self.down, self.start_down]), torch.cat([self.up, -self.start_up], dim=1)

    def first(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """[T, I] -> [T, O], with the layer in one go where that can be."""
        dropped = self.dropout and self.training
        whole = self.rows.index is None and self.magnitude is None and not dropped
        if whole and type(layer) is AdaptedLinear and _written_out(x, layer.weight, self.down):
            result: Tensor = _Beside.apply(x, layer.weight, layer.bias, *self.factors(), self.scale)  # type: ignore[no-untyped-call]
            return result
        return super().first(x, layer)

    def after(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """[T, O]."""
        inputs = chosen(x, self.rows)
        if self.dropout:
            inputs = F.dropout(inputs, self.dropout, self.training)
        down, up = (factor.to(inputs.dtype) for factor in self.factors())
        added = F.linear(products.linear(inputs, down) * self.scale, up)
        if self.magnitude is None:
            return y.add_(added) if self.rows.index is None else at_rows(y, self.rows, added)
        bias = layer.bias
        plain = chosen(y, self.rows) if bias is None else chosen(y, self.rows) - bias
        stretch = (self.magnitude / self.norms(layer).detach() - 1).to(y.dtype)
        return at_rows(y, self.rows, plain * stretch + added * (stretch + 1))

    def norms(self, layer: AdaptedLinear) -> Tensor:
        """[O] lengths of the rows of the weight with its change, which count as constants (Liu et al. 2024, 4.3)."""
        with torch.no_grad():
            lengths: Tensor = torch.linalg.vector_norm(layer.dense_weight().to(self.down.dtype) + self.change(), dim=1)
        return lengths

    def change(self) -> Tensor:
        """[O, I], what is added to the weight, before a magnitude."""
        down, up = self.factors()
        return up @ down * self.scale

    def merged(self, layer: AdaptedLinear) -> Tensor:
        """[O, I], the weight that does what layer and branch do."""
        weight = layer.dense_weight().to(self.down.dtype) + self.change()
        if self.magnitude is not None:
            weight = weight * (self.magnitude / self.norms(layer))[:, None]
        return weight


class EmbeddingBranch(Branch):
    """y + scale * up(down[token]); down [R, V] is zero at the start, up [D, R] random."""

    def __init__(self, down: nn.Parameter, up: nn.Parameter, scale: float, rows: Rows) -> None:
        super().__init__(rows)
        self.scale, self.down, self.up = scale, down, up

    def looked_up(self, ids: Tensor, y: Tensor, layer: AdaptedEmbedding) -> Tensor:
        """[T, D]."""
        inner = F.embedding(chosen(ids, self.rows), self.down.t().to(y.dtype))
        return at_rows(y, self.rows, F.linear(inner * self.scale, self.up.to(y.dtype)))

    def merged(self, layer: AdaptedEmbedding) -> Tensor:
        """[V, D], the weight that does what embedding and branch do."""
        return layer.weight.to(self.down.dtype) + (self.up @ self.down).t() * self.scale


def random_down(rank: int, inputs: int, like: Tensor, *, seed: int, name: str, gaussian: bool) -> Tensor:
    """[R, I] uniform in +- 1 / sqrt(I), or normal with deviation 1 / R; float32 at least, beside `like`."""
    stream = parameter_stream(seed, name)
    values = torch.empty(rank, inputs)
    if gaussian:
        values.normal_(0.0, 1 / rank, generator=stream)
    else:
        bound = 1 / math.sqrt(inputs)
        values.uniform_(-bound, bound, generator=stream)
    return values.to(device=like.device, dtype=wide(like))


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(down [R, I], up [O, R]) whose change is the best approximation of `weight` [O, I] (Meng et al. 2024)."""
    left, values, right = torch.linalg.svd(weight.to(wide(weight)), full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def orthonormal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(down [R, I], up [O, R]) from the QR decomposition of `weight` [O, I] (Büyükakyüz 2024, arXiv 2406.01775)."""
    directions, rest = torch.linalg.qr(weight.to(wide(weight)))
    return rest[:rank] / math.sqrt(scale), directions[:, :rank] / math.sqrt(scale)


def wide(like: Tensor) -> torch.dtype:
    """The type of the parameters of an adapter: float32 at least."""
    return torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32


def _written_out(x: Tensor, *weights: Tensor) -> bool:
    """Whether the function below can be used: one type, no casting around it, no compiler that fuses better."""
    return (
        all(weight.dtype == x.dtype for weight in weights)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


class _Beside(torch.autograd.Function):
    """W x + b + scale * up (down x): two passes over the outputs fewer than written one after the other.

    Keeps down x, and x or what makes it again, which all layers that read it share; no gradient is computed for what is
    frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        inner = x @ down.t()
        ctx.scale = scale
        ctx.again, sources = remade.kept(x)
        ctx.save_for_backward(inner, weight, down, up, *sources)
        return products.linear(x, weight, bias).addmm_(inner, up.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        inner, weight, down, up, *sources = ctx.saved_tensors
        wants = ctx.needs_input_grad
        x: Tensor = ctx.again(*sources)
        inside = (grad @ up).mul_(ctx.scale)
        return (
            products.product(grad, weight).addmm_(inside, down) if wants[0] else None,
            grad.t() @ x if wants[1] else None,
            grad.sum(0) if wants[2] else None,
            inside.t() @ x if wants[3] else None,
            (grad.t() @ inner).mul_(ctx.scale) if wants[4] else None,
            None,
        )
