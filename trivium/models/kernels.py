"""Element-wise parts of a block, with derivatives written out.

Eager autograd runs each of these as five to ten passes over memory and keeps the values in between. On a CPU that is
a quarter of a training step; written as one function each, it is a tenth, and a twentieth where our kernels in C suit
(`native_elementwise.py`). Inside torch.compile, which fuses them by itself, the plain formulas are used. First
derivatives only.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trivium.models import native_elementwise as native
from trivium.models import products, remade

aten = torch.ops.aten

_X86 = platform.machine() in ("x86_64", "AMD64") and bool(torch.backends.mkldnn.is_available())  # type: ignore

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}

_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": aten.silu_backward,
    "gelu": aten.gelu_backward,
    "gelu_tanh": partial(aten.gelu_backward, approximate="tanh"),
    "relu": partial(aten.threshold_backward, threshold=0),
    "tanh": lambda grad, x: aten.tanh_backward(grad, torch.tanh(x)),
}
"""(gradient of the output, input) -> gradient of the input."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias; x [T, I], weight [O, I], bias [O].

    Without gradients on a CPU it is oneDNN's, which takes half of the time of MKL's for few tokens, and never more;
    with gradients see `trivium.models.products`.
    """
    if torch.is_grad_enabled():
        return products.linear(x, weight, bias)
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != x.dtype
    if plain or x.dim() != 2 or type(weight) not in products.PLAIN or not onednn():
        return F.linear(x, weight, bias)
    return products.by_onednn(x, weight, bias)


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, where weight [O, I] ~ scale [O] * codes; each row of x [T, I] is rounded to eight bits too.

    The rows of x have a scale each, so no row depends on its company.
    """
    if not len(x):
        return x.new_zeros(0, len(scale))
    largest = x.abs().amax(-1, keepdim=True).clamp_(min=1e-30)
    rounded = (x * (_constant(127.0, x.dtype) / largest)).round_().to(torch.int8)
    product = (torch._int_mm(rounded, codes.t()) * largest).mul_(scale * (1 / 127))
    return product if bias is None else product.add_(bias)


def int8_products() -> bool:
    """Whether the processor multiplies numbers of eight bits, exactly and fast (VNNI)."""
    return onednn() and bool(torch.cpu._is_vnni_supported())


def onednn() -> bool:
    """Whether oneDNN's own operators can and should be called."""
    return (
        _X86
        and bool(torch.backends.mkldnn.enabled)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    if torch.compiler.is_compiling() or not _exact(x, weight):
        return F.rms_norm(x, weight.shape, weight, eps)
    if not torch.is_grad_enabled():
        if native.suits(x, weight):
            return native.rms_norm(x, weight, eps)[0]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(_constant(eps, x.dtype), norm, norm, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)
    again = remade.Again(lambda x, weight: _normalise(x, weight, eps)[0])
    result: Tensor = _RMSNorm.apply(x, weight, eps, again)  # type: ignore[no-untyped-call]
    return _marked(result, again, x, weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias over the last dimension (Ba et al. 2016, 1607.06450)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _exact(x, weight):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    again = remade.Again(lambda x, weight, bias: _layer_norm(x, weight, bias, eps)[0])
    result: Tensor = _LayerNorm.apply(x, weight, bias, eps, again)  # type: ignore[no-untyped-call]
    return _marked(result, again, x, weight, bias)


def _marked(result: Tensor, again: remade.Again, x: Tensor, *parameters: Tensor | None) -> Tensor:
    # Copies: a sharded model holds the parameters of a norm only while its part of the model is at work.
    copies = (None if parameter is None else parameter.detach().clone() for parameter in parameters)
    return remade.mark(result, again, x, *copies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + C/2}) turned by its angle; x [..., C], cos [..., C], sin [..., C/2]."""
    if cos.dtype != x.dtype:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second * sin, first * sin), dim=-1)
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, back=False)
    result: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return result


def gated(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * up, without up activation(gate); keeps only its inputs for the backward pass."""
    if torch.compiler.is_compiling():
        active = ACTIVATIONS[activation](gate)
        return active if up is None else torch.mul(active, up)
    if not torch.is_grad_enabled():
        return _gate(gate, up, activation)
    result: Tensor = _Gated.apply(gate, up, activation)  # type: ignore[no-untyped-call]
    return result


def gated_linear(gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(activation(gate) * up) weight^T + bias; gate, up [T, I], weight [O, I], bias [O]; without up activation(gate).

    What the gradient of the weight needs, [T, I], is made again in the backward pass, where the gradients of gate and
    up pass by anyway: a third of the memory of a gated MLP, half of that of a plain one.
    """
    same = gate.dtype == weight.dtype and type(weight) in products.PLAIN
    casts = torch.is_autocast_enabled(gate.device.type)
    traced = torch.compiler.is_compiling()
    if traced and same and not casts and gate.device.type == "cpu" and torch.is_grad_enabled():
        one: Tensor = _traced_gated(gate, up, activation, weight, bias)
        return one
    if casts or traced or not same or not torch.is_grad_enabled():
        return linear(gated(gate, up, activation), weight, bias)
    result: Tensor = _GatedLinear.apply(gate, up, activation, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _exact(x: Tensor, weight: Tensor) -> bool:
    """Whether both are on the CPU in one type of at least 32 bits."""
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)


@lru_cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of one number on the CPU: with it an operation saves making one."""
    return torch.tensor(value, dtype=dtype)


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result, and 1 / sqrt(mean(x^2) + eps) of each row."""
    if native.suits(x, weight):
        return native.rms_norm(x, weight, eps)
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    inverse: Tensor = squares.mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, again: remade.Again) -> Tensor:
        normed, inverse = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.again = again
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        ctx.again.forget()
        x, weight, inverse = ctx.saved_tensors
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        if wants_x and native.suits(grad, x, weight, inverse):
            return *native.rms_norm_backward(grad, x, weight, inverse, wants_weight=wants_weight), None, None
        # The kernel of LayerNorm with a mean of zero, and then its share of the mean taken back.
        grad_x, grad_weight, _ = aten.native_layer_norm_backward(
            grad, x, weight.shape, torch.zeros_like(inverse), inverse, weight, None, [wants_x, wants_weight, False]
        )
        if wants_x:
            grad_x.addcmul_((grad @ weight).unsqueeze(-1).mul_(1 / x.shape[-1]), inverse)
        return grad_x, grad_weight, None, None


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the mean of each row, and 1 / sqrt(variance + eps)."""
    found: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm(x, weight.shape, weight, bias, eps)
    return found


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, again: remade.Again) -> Tensor:
        normed, mean, inverse = _layer_norm(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.again = again
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.again.forget()
        x, weight, bias, mean, inverse = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:3])
        found = aten.native_layer_norm_backward(upstream[0], x, weight.shape, mean, inverse, weight, bias, wants)
        return *found, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    if native.suits(x, cos) and x.dim() == 3 and cos.shape == (len(x), 1, x.shape[2]):
        return native.turn(x, cos, sin, back=back)
    first, second = x.chunk(2, dim=-1)
    turned = x * cos
    new_first, new_second = turned.chunk(2, dim=-1)
    new_first.addcmul_(second, sin, value=1 if back else -1)
    new_second.addcmul_(first, sin, value=-1 if back else 1)
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _turn(upstream[0], *ctx.saved_tensors, back=True), None, None


def _gate(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    if activation in native.ACTIVATIONS and native.suits(gate, gate if up is None else up):
        return native.gated(gate, up, activation)
    active = ACTIVATIONS[activation](gate)
    return active if up is None else active.mul_(up)


def _gate_back(
    grad: Tensor, gate: Tensor, up: Tensor | None, activation: str, *, remake: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of gate and up; with `remake` the result of `_gate` once more."""
    if activation in native.ACTIVATIONS and native.suits(grad, gate, gate if up is None else up):
        return native.gated_backward(grad, gate, up, activation, remake=remake)
    if up is None:
        return _SLOPES[activation](grad, gate), None, ACTIVATIONS[activation](gate) if remake else None
    active = ACTIVATIONS[activation](gate)
    made = active * up if remake else None
    return _SLOPES[activation](grad * up, gate), active.mul_(grad), made


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gate(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return *_gate_back(upstream[0], gate, up, ctx.activation, remake=False)[:2], None


def _gated_linear(gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.no_grad():
        return products.linear(_gate(gate, up, activation), weight, bias)


def _gated_linear_back(
    grad: Tensor, gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, *, wants_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of gate, up and the weight."""
    to_inner = products.product(grad, weight)
    to_gate, to_up, inner = _gate_back(to_inner, gate, up, activation, remake=wants_weight)
    return to_gate, to_up, None if inner is None else grad.t() @ inner


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        return _gated_linear(gate, up, activation, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        gate, up, weight = ctx.saved_tensors
        *_, wants_weight, wants_bias = ctx.needs_input_grad
        found = _gated_linear_back(grad, gate, up, ctx.activation, weight, wants_weight=wants_weight)
        return *found[:2], None, found[2], grad.sum(0) if wants_bias else None


@torch.library.custom_op("trivium::gated_linear", mutates_args=())
def _traced_gated(gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as one operator, for torch.compile, which would keep the product."""
    return _gated_linear(gate, up, activation, weight, bias)


@torch.library.custom_op("trivium::gated_linear_backward", mutates_args=())
def _traced_gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    found = _gated_linear_back(grad, gate, up, activation, weight, wants_weight=wants_weight)
    return tuple(gate.new_empty(0) if x is None else x for x in found)  # type: ignore[return-value]


@_traced_gated.register_fake
def _(gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    return gate.new_empty(gate.shape[0], weight.shape[0])


@_traced_gated_backward.register_fake
def _(
    grad: Tensor, gate: Tensor, up: Tensor | None, activation: str, weight: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    to_weight = weight.new_empty(weight.shape if wants_weight else 0)
    return gate.new_empty(gate.shape), gate.new_empty(0 if up is None else up.shape), to_weight


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.activation, weight, _ = inputs
    ctx.save_for_backward(gate, up, weight)


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gate, up, weight = ctx.saved_tensors
    *_, wants_weight, wants_bias = ctx.needs_input_grad
    to_gate, to_up, to_weight = _traced_gated_backward(grad, gate, up, ctx.activation, weight, wants_weight)
    to_weight, to_bias = to_weight if wants_weight else None, grad.sum(0) if wants_bias else None
    return to_gate, None if up is None else to_up, None, to_weight, to_bias


_traced_gated.register_autograd(_derive, setup_context=_keep)
