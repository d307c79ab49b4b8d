"""Causal attention over rows of one length on the CPU, a block of queries at a time, with its derivative.

torch's kernel for the CPU multiplies matrices of one head each, which are too small for the library of matrix products
at the usual widths of heads. Here those of all heads of some rows are one call, over a block of queries and the keys it
may see: a quarter to a third less time at widths of 32 and 64 and some rows of about 512 tokens. Shorter rows and a
single one have too little to do in a block, and the scores of longer ones leave the cache: none of these gains. Nothing
but the inputs is kept for the derivative. First derivatives only.

Shapes: T tokens, H heads, C width of one head; B heads of some rows, n queries in a block, N keys up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten

QUERIES = 64
"""Queries in a block: its scores, of all heads, should stay in the processor's cache."""
SHORTEST, LONGEST = 384, 768
"""Lengths of rows for which blocks are the faster way."""


def suits(query: Tensor, key: Tensor, length: int) -> bool:
    """Whether causal attention of rows of `length` is faster by blocks: several, in training, without grouped heads."""
    return (
        SHORTEST <= length <= LONGEST
        and len(query) > length
        and query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)
        and query.shape == key.shape
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    """[T, H, C] from three such tensors, in rows of `length` tokens."""
    if torch.compiler.is_compiling():
        traced: Tensor = _traced(query, key, value, length, scale)
        return traced
    result: Tensor = _Blockwise.apply(query, key, value, length, scale)  # type: ignore[no-untyped-call]
    return result


def _blocks(length: int) -> Iterator[tuple[slice, slice]]:
    """(queries, the keys they may see) of each block of a row."""
    for start in range(0, length, QUERIES):
        end = min(length, start + QUERIES)
        yield slice(start, end), slice(0, end)


def _groups(x: Tensor, length: int, rows: int) -> tuple[Tensor, ...]:
    """[T, H, C] -> copies [rows * H, length, C] of so many rows each."""
    apart = x.view(-1, length, x.shape[1], x.shape[2]).transpose(1, 2).contiguous()
    return torch.split(apart.view(-1, length, x.shape[2]), rows * x.shape[1])


def _together(groups: list[Tensor], like: Tensor, length: int) -> Tensor:
    """The inverse of `_groups`."""
    apart = torch.cat(groups).view(-1, like.shape[1], length, like.shape[2])
    return apart.transpose(1, 2).reshape(like.shape)


def _chances(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """[B, n, N] from scaled queries [B, n, C] and keys [B, N, C]; the last n keys are those of the queries."""
    scores = torch.bmm(query, key.transpose(1, 2))
    size = query.shape[1]
    scores[:, :, -size:] += hidden[:size, :size]
    return torch.softmax(scores, dim=-1, out=scores)


def _hidden(like: Tensor) -> Tensor:
    """[QUERIES, QUERIES] what hides from each query the keys after it."""
    return like.new_full((QUERIES, QUERIES), float("-inf")).triu_(1)


def _forward(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    hidden, rows, made = _hidden(query), torch.get_num_threads(), []
    for q, k, v in zip(*(_groups(x, length, rows) for x in (query * scale, key, value)), strict=True):
        out = torch.empty_like(q)
        for own, seen in _blocks(length):
            out[:, own] = torch.bmm(_chances(q[:, own], k[:, seen], hidden), v[:, seen])
        made.append(out)
    return _together(made, query, length)


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, length: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, rows = _hidden(query), torch.get_num_threads()
    made: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for g, q, k, v in zip(*(_groups(x, length, rows) for x in (grad, query * scale, key, value)), strict=True):
        to_query, to_key, to_value = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for own, seen in _blocks(length):
            chances = _chances(q[:, own], k[:, seen], hidden)
            to_value[:, seen] += torch.bmm(chances.transpose(1, 2), g[:, own])
            slope = torch.bmm(g[:, own], v[:, seen].transpose(1, 2))
            slope = aten._softmax_backward_data(slope, chances, -1, slope.dtype)
            to_query[:, own] = torch.bmm(slope, k[:, seen])
            to_key[:, seen] += torch.bmm(slope.transpose(1, 2), q[:, own])
        for results, result in zip(made, (to_query.mul_(scale), to_key, to_value), strict=True):
            results.append(result)
    to = [_together(results, query, length) for results in made]
    return to[0], to[1], to[2]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.shape = length, scale
        return _forward(query, key, value, length, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(upstream[0], *ctx.saved_tensors, *ctx.shape), None, None


@torch.library.custom_op("trivium::blockwise_attention", mutates_args=())
def _traced(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    """The same as one operator, for torch.compile."""
    return _forward(query, key, value, length, scale)


@torch.library.custom_op("trivium::blockwise_attention_backward", mutates_args=())
def _traced_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, length: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, query, key, value, length, scale)


@_traced.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float) -> Tensor:
    return query.new_empty(query.shape)


@_traced_backward.register_fake
def _(grad: Tensor, query: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.shape = inputs[3:]


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_traced_backward(grad, *ctx.saved_tensors, *ctx.shape), None, None


_traced.register_autograd(_derive, setup_context=_keep)
