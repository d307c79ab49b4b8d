"""Attention inside each sequence of a ragged batch.

Everything that depends on where sequences begin and end is decided once per forward pass, from plain numbers, and
kept in a `Plan`; each layer then only runs the planned calls. Two sequences can never see each other because no
call ever holds tokens of two sequences in the same row.

Shapes: T tokens, S sequences; query [T, H, C]; key, value [T, K, C]; result [T, H, C].
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from trivium.data.batch import Layout
from trivium.models.cache import KVCache
from trivium.models.native_attention import NativeAttention, native_suits
from trivium.models.padded import Buckets, worth_padding
from trivium.models.ragged import equal_neighbours, heads_first, ragged_attention, seen_mask

_CALL_BYTES = 200_000
"""How much a CPU reads in the time that one more call of attention takes."""


class Bias(Protocol):
    """What positions add to attention scores."""

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [..., Q] and [N] -> [..., H, Q, N], or [..., 1, Q, N] if the heads agree."""
        ...


@dataclass(frozen=True)
class Pattern:
    """What one kind of layer does beyond softmax(query key^T) value.

    causal:  a token sees itself and those before it; otherwise its whole sequence.
    window:  it sees itself and the window - 1 tokens before it only.
    scale:   of the scores; default 1 / sqrt(C). softcap: bound c on them, c * tanh(score / c).
    bias:    added to the scores, after the bound.
    """

    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    bias: Bias | None = None


class Attend(Protocol):
    """The planned attention of one forward pass; `layer` finds the layer's part of the cache.

    compiles: whether torch.compile can trace it without compiling anew for every layout.
    """

    compiles: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T, K, C]."""
        ...


@dataclass(frozen=True)
class LayerPlan:
    """What layers of one kind share in one forward pass.

    rotary: cosine [T, 1, R] and sine [T, 1, R/2] of the R coordinates that turn, or None for other kinds of positions.
    picked: attention of the wanted tokens alone, for the last layer; None where all of them must look.
    """

    rotary: tuple[Tensor, Tensor] | None
    attend: Attend
    picked: Attend | None = None


@dataclass(frozen=True)
class CrossPlan:
    """What the decoder's blocks see of the other sequences.

    memory: [T_s, D] final hidden states of the encoder; None while decoding, when keys and values are in the cache.
    """

    memory: Tensor | None
    attend: Attend


@dataclass(frozen=True)
class Plan:
    """What all blocks share in one forward pass.

    positions: [T] place of each token in its sequence.
    full, sliding: for the layers that see everything, and for those that see a window; None if there are none.
    routing: what the routers of a mixture of experts chose, layer by layer: (tokens [E], sum of probabilities [E]).
    """

    positions: Tensor
    full: LayerPlan | None
    sliding: LayerPlan | None = None
    cross: CrossPlan | None = None
    routing: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can trace all of it."""
        return all(part is None or part.attend.compiles for part in (self.full, self.sliding, self.cross))


def attend_heads(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, pattern: Pattern, dropout: float, causal: bool
) -> Tensor:
    """Attention of [B, H, Q, C] over [B, K, N, C].

    mask: True where a query may look, or what is added to the scores; broadcast to [B, H, Q, N]. causal: without one.
    """
    grouped = query.shape[1] != key.shape[1]
    if pattern.softcap is None:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=dropout,
            scale=pattern.scale,
            enable_gqa=grouped,
        )
    if grouped:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if pattern.scale is None else pattern.scale
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / pattern.softcap)) * pattern.softcap
    if causal:
        mask = seen_mask(query.shape[2], key.shape[2], device=query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return F.dropout(weights, dropout) @ value


class UniformAttention:
    """All sequences are equally long: one call, no copies."""

    compiles = True

    def __init__(
        self, length: int, *, pattern: Pattern, device: torch.device, bias: Tensor | None = None, prefix: int = 0
    ) -> None:
        """`bias` [H or 1, length, length] is what `pattern.bias` gives, computed once for all lengths."""
        self.length = length
        self.pattern = pattern
        self.mask: Tensor | None = None
        if bias is None and pattern.bias is not None:
            bias = _square_bias(pattern.bias, length, device)
        narrow = pattern.window is not None and length > pattern.window
        if bias is not None or narrow or prefix:
            self.mask = seen_mask(
                length, length, causal=pattern.causal, window=pattern.window, prefix=prefix, device=device
            )
        if bias is not None and self.mask is not None:
            self.mask = bias.masked_fill(~self.mask, float("-inf"))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        out = attend_heads(
            heads_first(query, self.length),
            heads_first(key, self.length),
            heads_first(value, self.length),
            mask=self.mask,
            pattern=self.pattern,
            dropout=dropout,
            causal=self.mask is None and self.pattern.causal,
        )
        return out.transpose(1, 2).reshape(query.shape)


class RaggedAttention:
    """Sequences of several lengths: one call for each run of neighbours of the same length and prefix."""

    def __init__(self, layout: Layout, *, pattern: Pattern, device: torch.device) -> None:
        self.lengths = torch.tensor(layout.lengths)
        self.pattern = pattern
        self.longest = max(layout.lengths, default=0)
        prefixes = layout.prefixes or (0,) * layout.sequences
        self.runs = list(equal_neighbours(zip(layout.lengths, prefixes, strict=True)))
        bias = None if pattern.bias is None else _square_bias(pattern.bias, self.longest, device)
        self.compiles = pattern.bias is None and pattern.softcap is None and not any(prefixes)
        self.buckets: Buckets | None = None
        self.calls: dict[tuple[int, int], UniformAttention] = {}
        if device.type == "cpu" and not any(prefixes) and worth_padding(layout, layout, len(self.runs)):
            self.buckets = Buckets(layout, layout, mask=partial(_self_mask, pattern, bias), device=device)
        else:
            self.calls = {kind: self._call(*kind, bias, device) for _, _, kind in self.runs}
        self.ends: Tensor | None = None
        if self.compiles and not varlen_reason(device):
            starts = torch.tensor([*layout.starts(), layout.tokens], dtype=torch.int32)
            self.ends = starts.to(device, non_blocking=True)

    def _call(self, length: int, prefix: int, bias: Tensor | None, device: torch.device) -> UniformAttention:
        own = None if bias is None else bias[:, :length, :length]
        return UniformAttention(length, pattern=self.pattern, device=device, bias=own, prefix=prefix)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        if not dropout and self.ends is not None and fits_varlen(query):
            return self._flash(query, key, value, self.ends)
        if not dropout and self.compiles and query.device.type == "cpu" and torch.compiler.is_compiling():
            pattern = self.pattern
            attended: tuple[Tensor, Tensor] = ragged_attention(
                query, key, value, self.lengths, pattern.causal, pattern.window, pattern.scale
            )
            return attended[0]
        if self.buckets is not None:
            return _in_buckets(self.buckets, self.pattern, dropout, query, key, value)
        sizes = [end - start for start, end, _ in self.runs]
        parts = zip(*(torch.split(x, sizes) for x in (query, key, value)), self.runs, strict=True)
        results = [self.calls[kind](q, k, v, layer=layer, dropout=dropout) for q, k, v, (_, _, kind) in parts]
        return torch.cat(results) if results else query

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Tensor:
        """All lengths in one kernel."""
        from torch.nn.attention.varlen import varlen_attn

        pattern = self.pattern
        before = -1 if pattern.window is None else pattern.window - 1
        out = varlen_attn(
            query,
            key,
            value,
            ends,
            ends,
            self.longest,
            self.longest,
            scale=pattern.scale,
            window_size=(before, 0 if pattern.causal else -1),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out, Tensor)
        return out


VARLEN_WIDTH = 256
"""Of a head, at most and a multiple of 8: what the kernel for rows of several lengths takes."""


def fits_varlen(query: Tensor) -> bool:
    """Whether the kernel for rows of several lengths takes these numbers [T, H, C]."""
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    return half and width <= VARLEN_WIDTH and width % 8 == 0


@cache
def varlen_reason(device: torch.device) -> str:
    """Why rows of several lengths are not one kernel on this device, but a call for each length; empty if they are."""
    if device.type != "cuda":
        return "only NVIDIA GPUs have it"
    if torch.version.hip is not None:
        return "not tried on AMD GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    found = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return "" if found else f"torch {torch.__version__} does not have it"


class CachedAttention:
    """New tokens look at themselves and at what the cache holds of their row; their keys and values are stored.

    With rotary scaling that depends on the length (dynamic, longrope), a stored key keeps the angle of the length at
    which it was computed, as in transformers; beyond the original context this is not the same as starting anew.
    """

    compiles = False

    def __init__(self, cache: KVCache, layout: Layout, *, pattern: Pattern, device: torch.device) -> None:
        self.cache, self.layout, self.pattern, self.device = cache, layout, pattern, device
        self.past = list(cache.lengths)
        self.totals = [old + new for old, new in zip(self.past, layout.lengths, strict=True)]
        self.longest = max(self.totals, default=0)
        self.decoding = layout.uniform == 1
        self.rows = cache.rows
        self.level = self.past[0] if self.decoding and len(set(self.past)) == 1 else None
        """The place of the new tokens, where it is the same in all rows."""

    # Computed when the first layer asks: kernels that look at the cache by themselves never do.

    @cached_property
    def prompt(self) -> Attend | None:
        """Attention of rows that begin here; None where any has gone on before."""
        if self.decoding or any(self.past):
            return None
        return plan_attention(self.layout, pattern=self.pattern, device=self.device)

    @cached_property
    def masks(self) -> list[Tensor]:
        """Of each row, what its new tokens may look at."""
        sizes = zip(self.layout.lengths, self.totals, strict=True)
        return [self._row_mask(new, total, self.device) for new, total in sizes]

    @cached_property
    def mask(self) -> Tensor | None:
        """Of a decoding step."""
        return self._decode_mask(self.device)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first, one past the last, longest) of rows that a decoding step takes together."""
        if not self.cache.runs:
            self.cache.runs = _runs(self.past, self.cache.keys[0])
        return [(first, last, max(self.totals[first:last])) for first, last in self.cache.runs]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Of the new tokens of a decoding step: rows and columns."""
        return torch.arange(self.rows, device=self.device), torch.tensor(self.past, device=self.device)

    def _decode_mask(self, device: torch.device) -> Tensor | None:
        """[S, H or 1, 1, longest]; None if every row may look at all of it."""
        window, bias = self.pattern.window, self.pattern.bias
        if self.level is not None and bias is None and (window is None or self.longest <= window):
            return None
        keys, last = torch.arange(self.longest, device=device), torch.tensor(self.past, device=device).unsqueeze(1)
        seen = keys <= last
        if window is not None:
            seen &= keys > last - window
        mask = seen[:, None, None, :]
        # As numbers, since each layer would turn truth values into them again.
        unseen = torch.zeros(mask.shape, dtype=self.cache.keys[0].dtype, device=device).masked_fill_(~mask, -torch.inf)
        return unseen if bias is None else bias(last, keys) + unseen

    def _row_mask(self, new: int, total: int, device: torch.device) -> Tensor:
        """[new, total], or with a bias [H or 1, new, total]."""
        mask = seen_mask(new, total, causal=self.pattern.causal, window=self.pattern.window, device=device)
        if self.pattern.bias is None:
            return mask
        at = torch.arange(total, device=device)
        return self.pattern.bias(at[total - new :], at).masked_fill(~mask, float("-inf"))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        stored = self.cache.keys[layer], self.cache.values[layer]
        for store, new in zip(stored, (key, value), strict=True):
            self._write(store, new)
        if self.prompt is not None:
            return self.prompt(query, key, value, layer=layer, dropout=dropout)
        keys, values = (store[: self.rows, :, : self.longest].to(query.dtype) for store in stored)
        if self.decoding:
            return self._decode(query.unsqueeze(2), keys, values).squeeze(2)
        results = torch.empty_like(query)
        for row, ((start, end), mask) in enumerate(zip(self.layout.spans(), self.masks, strict=True)):
            if end > start:
                seen = slice(row, row + 1), slice(None), slice(mask.shape[-1])
                part = query[start:end].transpose(0, 1).unsqueeze(0)
                out = attend_heads(
                    part, keys[seen], values[seen], mask=mask, pattern=self.pattern, dropout=0.0, causal=False
                )
                results[start:end] = out.squeeze(0).transpose(0, 1)
        return results

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[S, H, 1, C]: one token of each row, run after run."""
        results = [
            attend_heads(
                query[first:last],
                keys[first:last, :, :longest],
                values[first:last, :, :longest],
                mask=None if self.mask is None else self.mask[first:last, ..., :longest],
                pattern=self.pattern,
                dropout=0.0,
                causal=False,
            )
            for first, last, longest in self.runs
        ]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _write(self, store: Tensor, new: Tensor) -> None:
        if self.level is not None:
            store[: self.rows, :, self.level] = new
            return
        if self.decoding:
            every, last = self.places
            store[every, :, last] = new.to(store.dtype)
            return
        for row, (start, end) in enumerate(self.layout.spans()):
            store[row, :, self.past[row] : self.past[row] + end - start] = new[start:end].transpose(0, 1)


def _runs(lengths: Sequence[int], keys: Tensor) -> list[tuple[int, int]]:
    """(first, one past the last) of neighbouring rows that one call takes together, filled up to the longest of them.

    On a CPU what is filled up is read like all else, so a run ends where that costs more than another call.
    """
    count = len(lengths)
    if keys.device.type != "cpu" or len(set(lengths)) == 1:
        return [(0, count)]
    call = _CALL_BYTES / (2 * keys.shape[1] * keys.shape[3] * keys.element_size())
    best, begins = [0.0] * (count + 1), [0] * (count + 1)
    for last in range(1, count + 1):
        longest, best[last] = 0, math.inf
        for first in range(last - 1, -1, -1):
            longest = max(longest, lengths[first])
            cost = best[first] + call + longest * (last - first)
            if cost < best[last]:
                best[last], begins[last] = cost, first
    runs, last = [], count
    while last:
        runs.append((begins[last], last))
        last = begins[last]
    return runs[::-1]


class CrossAttention:
    """Each sequence looks at all of its source: one call for each run of equally long neighbours."""

    def __init__(self, layout: Layout, source: Layout, *, pattern: Pattern, device: torch.device) -> None:
        if layout.sequences != source.sequences:
            raise ValueError(f"{layout.sequences} sequences and {source.sequences} sources do not belong together")
        self.pattern = pattern
        pairs = list(zip(layout.lengths, source.lengths, strict=True))
        self.compiles = len(set(pairs)) == 1
        self.runs: list[tuple[slice, slice, int, int]] = []
        at = there = first = 0
        for number, (length, long) in enumerate(pairs):
            if number + 1 < len(pairs) and pairs[number + 1] == (length, long):
                continue
            count = number + 1 - first
            end, until = at + count * length, there + count * long
            self.runs.append((slice(at, end), slice(there, until), length, long))
            at, there, first = end, until, number + 1
        self.buckets: Buckets | None = None
        if device.type == "cpu" and worth_padding(layout, source, len(self.runs)):
            self.buckets = Buckets(layout, source, mask=_cross_mask, device=device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T_s, K, C]."""
        if self.buckets is not None:
            return _in_buckets(self.buckets, self.pattern, dropout, query, key, value)
        parts = []
        for at, there, length, long in self.runs:
            if not length:
                continue
            if not long:  # nothing to look at adds nothing
                parts.append(torch.zeros_like(query[at]))
                continue
            out = attend_heads(
                heads_first(query[at], length),
                heads_first(key[there], long),
                heads_first(value[there], long),
                mask=None,
                pattern=self.pattern,
                dropout=dropout,
                causal=False,
            )
            parts.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else query


def _self_mask(
    pattern: Pattern, bias: Tensor | None, queries: Tensor, keys: Tensor, most: int, widest: int
) -> Tensor | None:
    """The mask of a bucket of sequences that look at themselves; a place that is fill looks at all of its own.

    None where the kernel's own causal order does: what fills up stands behind the sequence, where nothing of it looks.
    """
    if bias is None and (pattern.window or most) >= most and (pattern.causal or int(queries.min()) == most):
        return None
    fill = torch.arange(most, device=keys.device) >= queries[:, None]
    real = torch.arange(widest, device=keys.device) < keys[:, None]
    seen = seen_mask(most, widest, causal=pattern.causal, window=pattern.window, device=keys.device)
    seen = (seen | fill[:, None, :, None]) & real[:, None, None, :]
    return seen if bias is None else bias[:, :most, :widest].masked_fill(~seen, float("-inf"))


def _cross_mask(queries: Tensor, keys: Tensor, most: int, widest: int) -> Tensor | None:
    """The mask of a bucket of sequences that look at all of another one."""
    if int(keys.min()) == widest:
        return None
    return (torch.arange(widest, device=keys.device) < keys[:, None])[:, None, None, :]


def _in_buckets(
    buckets: Buckets, pattern: Pattern, dropout: float, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        causal = mask is None and pattern.causal
        return attend_heads(query, key, value, mask=mask, pattern=pattern, dropout=dropout, causal=causal)

    return buckets.attend(query, key, value, attend)


class PickedAttention:
    """Some tokens of each sequence look at all of it: one call for each run of equally long neighbours.

    A sequence with fewer of them than another one of its run is filled up with any; what those see is dropped.
    """

    compiles = False

    def __init__(self, layout: Layout, wanted: Tensor, *, pattern: Pattern) -> None:
        """wanted: [W] ascending, at least one."""
        self.pattern = pattern
        sequences = layout.sequence_ids(wanted.device)
        counts = torch.bincount(sequences[wanted], minlength=layout.sequences)
        firsts = counts.cumsum(0) - counts
        self.sizes: list[int] = []
        self.runs: list[tuple[int, int]] = []
        filled = []
        for start, end, (length, _) in equal_neighbours((length, 0) for length in layout.lengths):
            own = slice(int(sequences[start]), int(sequences[end - 1]) + 1)
            most = int(counts[own].max())
            at = torch.arange(most, device=wanted.device)
            filled.append(torch.where(at < counts[own, None], firsts[own, None] + at, -1).flatten())
            self.sizes.append(end - start)
            self.runs.append((length, most))
        chosen = torch.cat(filled)
        self.places = (chosen >= 0).nonzero().squeeze(1)
        self.filled = chosen.clamp(min=0)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[W, H, C] from query [W, H, C], key and value [T, K, C]."""
        many = [size // length * most for size, (length, most) in zip(self.sizes, self.runs, strict=True)]
        queries = torch.split(query.index_select(0, self.filled), many)
        parts = zip(queries, torch.split(key, self.sizes), torch.split(value, self.sizes), self.runs, strict=True)
        results = [
            attend_heads(
                heads_first(q, most),
                heads_first(k, length),
                heads_first(v, length),
                mask=None,
                pattern=self.pattern,
                dropout=dropout,
                causal=False,
            )
            for q, k, v, (length, most) in parts
            if most
        ]
        return torch.cat([out.transpose(1, 2).flatten(0, 1) for out in results]).index_select(0, self.places)


class CachedCrossAttention:
    """The same with the keys and values of the sources in the cache: stored by the first forward pass, then read."""

    compiles = False

    def __init__(
        self, cache: KVCache, layout: Layout, source: Layout | None, *, pattern: Pattern, device: torch.device
    ) -> None:
        self.cache, self.pattern, self.source = cache, pattern, source
        self.first = None if source is None else CrossAttention(layout, source, pattern=pattern, device=device)
        self.spans = list(layout.spans())
        self.decoding = all(length == 1 for length in layout.lengths)
        self.mask: Tensor | None = None
        width = cache.source_keys[0].shape[2] if source is None and cache.source_keys else 0
        if any(length < width for length in cache.source_lengths):
            at = torch.arange(width, device=device)
            self.mask = (at < torch.tensor(cache.source_lengths, device=device).unsqueeze(1))[:, None, None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`; `key` and `value` are only read when there is a source."""
        if self.first is not None:
            assert self.source is not None
            self.cache.store_source(layer, key, value, self.source)
            return self.first(query, key, value, layer=layer, dropout=dropout)
        stored = self.cache.source_keys[layer], self.cache.source_values[layer]
        keys, values = (x[: self.cache.rows].to(query.dtype) for x in stored)
        if self.decoding:
            out = attend_heads(
                query.unsqueeze(2), keys, values, mask=self.mask, pattern=self.pattern, dropout=0.0, causal=False
            )
            return out.squeeze(2)
        results = torch.empty_like(query)
        for row, (start, end) in enumerate(self.spans):
            there = slice(row, row + 1), slice(None), slice(self.cache.source_lengths[row])
            part = query[start:end].transpose(0, 1).unsqueeze(0)
            out = attend_heads(
                part, keys[there], values[there], mask=None, pattern=self.pattern, dropout=0.0, causal=False
            )
            results[start:end] = out.squeeze(0).transpose(0, 1)
        return results


def plan_attention(
    layout: Layout, *, pattern: Pattern, device: torch.device, cache: KVCache | None = None, dropout: bool = False
) -> Attend:
    """The cheapest attention that is right for `layout`."""
    if cache is not None:
        return CachedAttention(cache, layout, pattern=pattern, device=device)
    prefixes = layout.prefixes or ()

    def by_torch() -> Attend:
        if layout.uniform and not prefixes:
            return UniformAttention(layout.uniform, pattern=pattern, device=device)
        return RaggedAttention(layout, pattern=pattern, device=device)

    if dropout or not native_suits(device, pattern, layout.lengths):
        return by_torch()
    compiles = not any(prefixes)
    return NativeAttention(
        layout.lengths, None, pattern=pattern, otherwise=by_torch, compiles=compiles, prefixes=prefixes
    )


def plan_picked_attention(
    layout: Layout, wanted: Tensor | None, *, pattern: Pattern, dropout: bool = False
) -> Attend | None:
    """The attention of the tokens `wanted` alone; None where it is not simpler than that of all tokens."""
    plain = not pattern.causal and pattern.window is None and pattern.bias is None
    if wanted is None or not plain or wanted.device.type != "cpu" or not len(wanted):
        return None
    by_torch = partial(PickedAttention, layout, wanted, pattern=pattern)
    if dropout or not native_suits(wanted.device, pattern, layout.lengths):
        return by_torch()
    counts = torch.bincount(layout.sequence_ids(wanted.device)[wanted], minlength=layout.sequences)
    return NativeAttention(counts.tolist(), layout.lengths, pattern=pattern, otherwise=by_torch)


def plan_cross_attention(
    layout: Layout,
    source: Layout | None,
    *,
    pattern: Pattern,
    device: torch.device,
    cache: KVCache | None = None,
    dropout: bool = False,
) -> Attend:
    """The attention of a decoder to its sources; without `source` they are in the cache."""
    if cache is not None:
        return CachedCrossAttention(cache, layout, source, pattern=pattern, device=device)
    if source is None:
        raise ValueError("an encoder-decoder needs a source")
    by_torch = partial(CrossAttention, layout, source, pattern=pattern, device=device)
    if dropout or not native_suits(device, pattern, source.lengths):
        return by_torch()
    return NativeAttention(layout.lengths, source.lengths, pattern=pattern, otherwise=by_torch)


def _square_bias(bias: Bias, length: int, device: torch.device) -> Tensor:
    at = torch.arange(length, device=device)
    return bias(at, at)
