"""Attention inside each sequence of a ragged batch.

Everything that depends on where sequences begin and end is decided once per forward pass, from plain numbers, and
kept in a `Plan`; each layer then only runs the planned calls. Two sequences can never see each other because no
call ever holds tokens of two sequences in the same row.

Shapes: query [T, H, C]; key, value [T, K, C]; result [T, H, C].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trivium.data.batch import Layout
from trivium.models.cache import KVCache


class Attend(Protocol):
    """The planned attention of one forward pass; `layer` finds the layer's part of the cache."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T, K, C]."""
        ...


@dataclass(frozen=True)
class Plan:
    """What all blocks share in one forward pass.

    positions: [T] place of each token in its sequence.
    rotary:    cosine and sine [T, 1, C/2], or None for other kinds of positions.
    attend:    the attention calls.
    """

    positions: Tensor
    rotary: tuple[Tensor, Tensor] | None
    attend: Attend


def causal_mask(queries: int, keys: int, *, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] True where the query may look; the last query stands at the last key."""
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    other = torch.arange(keys, device=device)
    seen = other <= at
    return seen if window is None else seen & (other > at - window)


def uniform_attention(
    query: Tensor, key: Tensor, value: Tensor, *, length: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Causal attention over adjacent sequences of one `length`, in a single call."""

    def heads_first(x: Tensor) -> Tensor:
        return x.view(-1, length, x.shape[1], x.shape[2]).transpose(1, 2)

    out = scaled_dot_product_attention(
        heads_first(query),
        heads_first(key),
        heads_first(value),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).reshape(query.shape)


class UniformAttention:
    """All sequences are equally long: one call, no copies."""

    def __init__(self, length: int, *, window: int | None, device: torch.device) -> None:
        self.length = length
        self.mask = None
        if window is not None and length > window:
            self.mask = causal_mask(length, length, window=window, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        return uniform_attention(query, key, value, length=self.length, mask=self.mask, dropout=dropout)


class RaggedAttention:
    """Sequences of several lengths: one call for each length."""

    def __init__(self, lengths: Iterable[int], *, window: int | None, device: torch.device) -> None:
        self.lengths = list(lengths)
        groups: dict[int, list[int]] = defaultdict(list)
        for sequence, length in enumerate(self.lengths):
            if length:
                groups[length].append(sequence)
        self.groups = [(members, UniformAttention(n, window=window, device=device)) for n, members in groups.items()]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        parts = [torch.split(x, self.lengths) for x in (query, key, value)]
        results: list[Tensor] = [query[:0]] * len(self.lengths)
        for members, attend in self.groups:
            q, k, v = (torch.cat([part[i] for i in members]) for part in parts)
            out = attend(q, k, v, layer=layer, dropout=dropout)
            for sequence, piece in zip(members, torch.split(out, attend.length), strict=True):
                results[sequence] = piece
        return torch.cat(results)


class CachedAttention:
    """New tokens look at themselves and at what the cache holds of their row; their keys and values are stored."""

    def __init__(self, cache: KVCache, layout: Layout, *, window: int | None, device: torch.device) -> None:
        self.cache, self.window, self.device = cache, window, device
        self.new, self.past = list(layout.lengths), list(cache.lengths)
        self.decoding = all(n == 1 for n in self.new)
        self.fresh = plan_attention(layout, window=window, device=device) if not any(self.past) else None
        if self.decoding:
            self.rows = torch.arange(cache.rows, device=device)
            self.at = torch.tensor(self.past, device=device)
            self.span = max(self.past) + 1
            keys = torch.arange(self.span, device=device)
            seen = keys <= self.at.unsqueeze(1)
            if window is not None:
                seen &= keys > self.at.unsqueeze(1) - window
            self.mask = None if bool(window is None and min(self.past) == max(self.past)) else seen[:, None, None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if self.decoding:
            keys[self.rows, :, self.at] = key.to(keys.dtype)
            values[self.rows, :, self.at] = value.to(values.dtype)
            return self._decode(query, keys, values)
        starts = Layout(tuple(self.new)).spans()
        for row, (begin, end) in enumerate(starts):
            place = slice(self.past[row], self.past[row] + self.new[row])
            keys[row, :, place] = key[begin:end].transpose(0, 1)
            values[row, :, place] = value[begin:end].transpose(0, 1)
        if self.fresh is not None:
            return self.fresh(query, key, value, layer=layer, dropout=dropout)
        return self._continue(query, keys, values)

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One new token in every row: a single call over the filled part of the cache."""
        out = scaled_dot_product_attention(
            query.unsqueeze(2),
            keys[:, :, : self.span].to(query.dtype),
            values[:, :, : self.span].to(query.dtype),
            attn_mask=self.mask,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return out.squeeze(2)

    def _continue(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Any number of new tokens after any number of old ones: one call for each row."""
        results = []
        for row, part in enumerate(torch.split(query, self.new)):
            if not self.new[row]:
                continue
            total = self.past[row] + self.new[row]
            out = scaled_dot_product_attention(
                part.transpose(0, 1).unsqueeze(0),
                keys[row : row + 1, :, :total].to(query.dtype),
                values[row : row + 1, :, :total].to(query.dtype),
                attn_mask=causal_mask(self.new[row], total, window=self.window, device=self.device),
                enable_gqa=query.shape[1] != keys.shape[1],
            )
            results.append(out.squeeze(0).transpose(0, 1))
        return torch.cat(results) if results else query


def plan_attention(layout: Layout, *, window: int | None, device: torch.device, cache: KVCache | None = None) -> Attend:
    """The cheapest attention that is right for `layout`."""
    if cache is not None:
        return CachedAttention(cache, layout, window=window, device=device)
    if layout.uniform:
        return UniformAttention(layout.uniform, window=window, device=device)
    return RaggedAttention(layout.lengths, window=window, device=device)
