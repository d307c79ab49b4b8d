"""Ragged attention as one operator with its own derivative, for torch.compile on the CPU.

Traced as it is, attention over sequences of several lengths would be compiled anew for every layout. As an operator
it is one opaque call: the lengths are a tensor, read when it runs. Eager code does not need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def equal_neighbours(kinds: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(first token, one past the last, kind) of each run of sequences of the same kind: (length, anything)."""
    at = 0
    for kind, run in itertools.groupby(kinds):
        end = at + kind[0] * len(list(run))
        if end > at:
            yield at, end, kind
        at = end


def seen_mask(
    queries: int,
    keys: int,
    *,
    device: torch.device,
    causal: bool = True,
    window: int | None = None,
    prefix: int = 0,
) -> Tensor:
    """[queries, keys] True where the query may look; the last query stands at the last key.

    prefix: this many first tokens are seen by all.
    """
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    other = torch.arange(keys, device=device)
    seen = (other <= at) | (other < prefix) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen if window is None else seen & (other > at - window)


def heads_first(x: Tensor, length: int) -> Tensor:
    """[n * length, heads, C] -> [n, heads, length, C], without a copy."""
    return x.view(-1, length, x.shape[1], x.shape[2]).transpose(1, 2)


def _bias(length: int, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
    """[length, length] what to add to the scores, or None if plain attention does."""
    if window is None or length <= window:
        return None
    seen = seen_mask(length, length, causal=causal, window=window, device=like.device)
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, float("-inf"))


def _whole(lengths: Tensor) -> Iterator[tuple[int, int, int]]:
    for start, end, (length, _) in equal_neighbours((length, 0) for length in lengths.tolist()):
        yield start, end, length


@torch.library.custom_op("trivium::ragged_attention", mutates_args=())
def ragged_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, causal: bool, window: int | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """([T, H, C] attention inside each sequence, [T * H] log-sums for the derivative)."""
    heads = query.shape[1]
    out, logsums = _results(query)
    for start, end, length in _whole(lengths):
        bias = _bias(length, causal, window, query)
        parts = (heads_first(x[start:end], length) for x in (query, key, value))
        result, sums = aten._scaled_dot_product_flash_attention_for_cpu(
            *parts, 0.0, causal and bias is None, attn_mask=bias, scale=scale
        )
        heads_first(out[start:end], length).copy_(result)
        logsums[start * heads : end * heads] = sums.reshape(-1)
    return out, logsums


@torch.library.custom_op("trivium::ragged_attention_backward", mutates_args=())
def ragged_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsums: Tensor,
    lengths: Tensor,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    heads = query.shape[1]
    results = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for start, end, length in _whole(lengths):
        bias = _bias(length, causal, window, query)
        parts = (heads_first(x[start:end], length) for x in (grad, query, key, value, out))
        sums = logsums[start * heads : end * heads].view(-1, heads, length)
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *parts, sums, 0.0, causal and bias is None, attn_mask=bias, scale=scale
        )
        for result, gradient in zip(results, gradients, strict=True):
            heads_first(result[start:end], length).copy_(gradient)
    return results


def _results(query: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(query), query.new_empty(query.shape[0] * query.shape[1], dtype=wide)


@ragged_attention.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _results(query)


@ragged_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, lengths, *ctx.pattern = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, lengths)


def _derive(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *ragged_attention_backward(grad, *ctx.saved_tensors, *ctx.pattern), None, None, None, None


ragged_attention.register_autograd(_derive, setup_context=_keep)
