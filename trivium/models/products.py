"""Matrix products of training in float32 on the CPU, by the library that is fastest on the processor.

torch gives them to MKL. On AMD processors oneDNN, which torch carries too, takes 5 to 10 % less time for the shapes of
a training step, and up to a third less for the logits of a few hundred tokens. So there oneDNN multiplies by weights,
forwards and backwards, and MKL forms the gradients of weights, where it is the faster one. On other processors,
devices and types all of it is torch's own. Results differ by rounding only. First derivatives only.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trivium.models import remade


def _prefers_onednn() -> bool:
    """Whether oneDNN is the faster one here, and can be called."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    information = Path("/proc/cpuinfo")
    return information.exists() and "AuthenticAMD" in information.read_text(errors="replace")


ONEDNN = _prefers_onednn()
"""Decided by the kind of processor, not by a measurement: a resumed run must compute what it would have computed."""
PLAIN = (Tensor, nn.Parameter)
"""Types of weights that are whole, not sharded."""
_LEAST, _MANY, _COMMON = 32, 1024, 64
"""Tokens from which on it pays: fewer are a matter of reading the weights. oneDNN compiles a kernel for each number of
tokens it meets, in about a millisecond; up to _MANY only numbers that are likely to return, multiples of _COMMON, win
that back (the experts of a mixture, each with another number in every step, took twice as long)."""
_KERNELS = "32"
"""Compiled kernels that oneDNN keeps. Runs whose updates differ in length never meet most of them again, and its
default of a thousand is some hundred MiB of them."""


def keep_few_kernels() -> None:
    """For training; heeded where oneDNN has not computed anything yet.

    Both oneDNN and the layer through which torch calls it keep them.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KERNELS)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, I] times weight [O, I], plus bias [O] -> [T, O]."""
    suits = _suits(x, weight)
    if suits and torch.compiler.is_compiling():
        traced: Tensor = _traced(x, weight, bias)
        return traced
    multiply = by_onednn if suits else F.linear
    if torch.is_grad_enabled() and (suits or _saves(x, weight)):
        result: Tensor = _Linear.apply(x, weight, bias, multiply)  # type: ignore[no-untyped-call]
        return result
    return multiply(x, weight, bias)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x [T, I] times matrix [I, O] -> [T, O]; without a derivative of its own."""
    if _suits(x, matrix):
        return by_onednn(x, matrix.t())
    return x @ matrix


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Plain float32 matrices with enough rows, where nothing casts or compiles."""
    return (
        x.dim() == 2
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and (x.shape[0] >= _MANY or (x.shape[0] >= _LEAST and x.shape[0] % _COMMON == 0))
        and type(weight) in PLAIN
        and type(x) is Tensor
        and ONEDNN
        and not torch.is_autocast_enabled("cpu")
    )


def _saves(x: Tensor, weight: Tensor) -> bool:
    """Whether our derivative keeps less than torch's, where both multiply alike."""
    return (
        not torch.compiler.is_compiling()
        and remade.is_marked(x)
        and x.dim() == 2
        and x.dtype == weight.dtype
        and type(weight) in PLAIN
        and not torch.is_autocast_enabled("cpu")
    )


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` by oneDNN, whatever suits; without a derivative."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, multiply: Callable[..., Tensor]) -> Tensor:
        # What a frozen weight does not need is not kept, as torch's own function has it.
        ctx.again, sources = remade.kept(x) if ctx.needs_input_grad[1] else (None, ())
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *sources)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        weight, *sources = ctx.saved_tensors
        wants = ctx.needs_input_grad
        return (
            product(grad, weight) if wants[0] else None,
            grad.t() @ ctx.again(*sources) if wants[1] else None,
            grad.sum(0) if wants[2] else None,
            None,
        )


@torch.library.custom_op("trivium::linear", mutates_args=())
def _traced(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as one operator, for torch.compile."""
    return by_onednn(x, weight, bias)


@_traced.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants = ctx.needs_input_grad
    return (
        _traced(grad, weight.t(), None) if wants[0] else None,
        grad.t() @ x if wants[1] else None,
        grad.sum(0) if wants[2] else None,
    )


_traced.register_autograd(_derive, setup_context=_keep)
