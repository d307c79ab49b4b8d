"""Attention inside each sequence of a ragged batch.

Everything that depends on where sequences begin and end is decided once per forward pass, from plain numbers, and
kept in a `Plan`; each layer then only runs the planned calls. Two sequences can never see each other because no
call ever holds tokens of two sequences in the same row.

Shapes: query [T, H, C]; key, value [T, K, C]; result [T, H, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trivium.data.batch import Layout
from trivium.models.cache import KVCache
from trivium.models.ragged import causal_mask, equal_neighbours, heads_first, ragged_attention


class Attend(Protocol):
    """The planned attention of one forward pass; `layer` finds the layer's part of the cache.

    compiles: whether torch.compile can trace it without compiling anew for every layout.
    """

    compiles: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T, K, C]."""
        ...


@dataclass(frozen=True)
class Plan:
    """What all blocks share in one forward pass.

    positions: [T] place of each token in its sequence.
    rotary:    cosine [T, 1, C] and sine [T, 1, C/2], or None for other kinds of positions.
    attend:    the attention calls.
    """

    positions: Tensor
    rotary: tuple[Tensor, Tensor] | None
    attend: Attend


class UniformAttention:
    """All sequences are equally long: one call, no copies."""

    compiles = True

    def __init__(self, length: int, *, window: int | None, device: torch.device) -> None:
        self.length = length
        self.mask: Tensor | None = None
        if window is not None and length > window:
            self.mask = causal_mask(length, length, window=window, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        out = scaled_dot_product_attention(
            heads_first(query, self.length),
            heads_first(key, self.length),
            heads_first(value, self.length),
            attn_mask=self.mask,
            is_causal=self.mask is None,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).reshape(query.shape)


class RaggedAttention:
    """Sequences of several lengths: one call for each run of neighbours of the same length."""

    compiles = True

    def __init__(self, layout: Layout, *, window: int | None, device: torch.device) -> None:
        self.lengths = torch.tensor(layout.lengths)
        self.runs = list(equal_neighbours(layout.lengths))
        self.window = window
        self.longest = max(layout.lengths, default=0)
        self.calls = {n: UniformAttention(n, window=window, device=device) for _, _, n in self.runs}
        self.ends: Tensor | None = None
        if device.type == "cuda":
            starts = torch.tensor([*layout.starts(), layout.tokens], dtype=torch.int32)
            self.ends = starts.to(device, non_blocking=True)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        if not dropout and self.ends is not None and query.dtype in (torch.float16, torch.bfloat16):
            return self._flash(query, key, value, self.ends)
        if not dropout and query.device.type == "cpu" and torch.compiler.is_compiling():
            attended: tuple[Tensor, Tensor] = ragged_attention(query, key, value, self.lengths, self.window)
            return attended[0]
        sizes = [end - start for start, end, _ in self.runs]
        parts = zip(*(torch.split(x, sizes) for x in (query, key, value)), self.runs, strict=True)
        results = [self.calls[length](q, k, v, layer=layer, dropout=dropout) for q, k, v, (_, _, length) in parts]
        return torch.cat(results) if results else query

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Tensor:
        """All lengths in one kernel."""
        from torch.nn.attention.varlen import varlen_attn

        before = -1 if self.window is None else self.window - 1
        grouped = query.shape[1] != key.shape[1]
        out = varlen_attn(
            query, key, value, ends, ends, self.longest, self.longest, window_size=(before, 0), enable_gqa=grouped
        )
        assert isinstance(out, Tensor)
        return out


class CachedAttention:
    """New tokens look at themselves and at what the cache holds of their row; their keys and values are stored.

    With rotary scaling that depends on the length (dynamic, longrope), a stored key keeps the angle of the length at
    which it was computed, as in transformers; beyond the original context this is not the same as starting anew.
    """

    compiles = False

    def __init__(self, cache: KVCache, layout: Layout, *, window: int | None, device: torch.device) -> None:
        self.cache = cache
        self.new, self.past = list(layout.lengths), list(cache.lengths)
        self.spans = list(layout.spans())
        totals = [old + new for old, new in zip(self.past, self.new, strict=True)]
        self.longest = max(totals, default=0)
        self.prompt: Attend | None = None
        self.decoding = all(n == 1 for n in self.new)
        if self.decoding:
            self.rows = torch.arange(cache.rows, device=device)
            self.last = torch.tensor(self.past, device=device)
            self.mask = self._decode_mask(window, device)
        elif not any(self.past):
            self.prompt = plan_attention(layout, window=window, device=device)
        else:
            self.masks = [
                causal_mask(new, total, window=window, device=device)
                for new, total in zip(self.new, totals, strict=True)
            ]

    def _decode_mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """[S, 1, 1, longest]; None if every row may look at all of it."""
        if window is None and len(set(self.past)) == 1:
            return None
        keys, last = torch.arange(self.longest, device=device), self.last.unsqueeze(1)
        seen = keys <= last
        if window is not None:
            seen &= keys > last - window
        return seen[:, None, None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        stored = self.cache.keys[layer], self.cache.values[layer]
        for store, new in zip(stored, (key, value), strict=True):
            self._write(store, new)
        if self.prompt is not None:
            return self.prompt(query, key, value, layer=layer, dropout=dropout)
        keys, values = (store[:, :, : self.longest].to(query.dtype) for store in stored)
        grouped = query.shape[1] != key.shape[1]
        if self.decoding:
            out = scaled_dot_product_attention(
                query.unsqueeze(2), keys, values, attn_mask=self.mask, enable_gqa=grouped
            )
            return out.squeeze(2)
        results = torch.empty_like(query)
        for row, ((start, end), mask) in enumerate(zip(self.spans, self.masks, strict=True)):
            if end > start:
                seen = slice(row, row + 1), slice(None), slice(mask.shape[1])
                part = query[start:end].transpose(0, 1).unsqueeze(0)
                out = scaled_dot_product_attention(part, keys[seen], values[seen], attn_mask=mask, enable_gqa=grouped)
                results[start:end] = out.squeeze(0).transpose(0, 1)
        return results

    def _write(self, store: Tensor, new: Tensor) -> None:
        if self.decoding and len(set(self.past)) == 1:
            store[:, :, self.past[0]] = new
            return
        if self.decoding:
            store[self.rows, :, self.last] = new.to(store.dtype)
            return
        for row, (start, end) in enumerate(self.spans):
            store[row, :, self.past[row] : self.past[row] + end - start] = new[start:end].transpose(0, 1)


def plan_attention(layout: Layout, *, window: int | None, device: torch.device, cache: KVCache | None = None) -> Attend:
    """The cheapest attention that is right for `layout`."""
    if cache is not None:
        return CachedAttention(cache, layout, window=window, device=device)
    if layout.uniform:
        return UniformAttention(layout.uniform, window=window, device=device)
    return RaggedAttention(layout, window=window, device=device)
