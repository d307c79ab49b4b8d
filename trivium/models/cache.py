"""Keys and values of the tokens seen so far, so that generation computes each token once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models.config import ModelConfig


class KVCache:
    """Static key and value tensors, one row for each sequence, left-aligned; rows come and go, the memory stays.

    keys, values: one tensor [capacity, K, max_length, C] for each layer; the first `rows` of them are in use.
    lengths:      tokens stored in each row; plain numbers, so that planning never waits for the device.
    owners:       which source each row has.
    angles:       cosine and sine at every position, for layers that see everything (False) or a window (True).
    runs:         neighbouring rows that attention takes together, see `trivium.models.attention`; until rows change.

    For an encoder-decoder also what the decoder sees of the sources, stored by its first forward pass:
    source_keys, source_values: [rows, K, longest source, C] for each layer; source_lengths: tokens of each source.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rows: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        heads: int | None = None,
    ) -> None:
        """heads: key/value heads of this process, if the model is divided."""
        shape = (rows, heads or config.num_kv_heads, max_length, config.head_dim)

        def empty() -> list[Tensor]:
            # Zeros, not uninitialised memory: a masked-out NaN times zero would still be NaN.
            layers = config.num_decoder_layers or config.num_layers
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

        self.keys, self.values = empty(), empty()
        self.lengths = [0] * rows
        self.owners = list(range(rows))
        self.max_length = max_length
        self.angles: dict[bool, tuple[Tensor, Tensor]] = {}
        self.runs: list[tuple[int, int]] = []
        self.source_keys: list[Tensor] = []
        self.source_values: list[Tensor] = []
        self.source_lengths: list[int] = []

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Row r becomes what `rows[r]` was; a row may be named several times (beams) or not at all (finished).

        Only rows that change are copied, and only as far as they go.
        """
        if len(rows) > len(self.keys[0]):
            self._grow(len(rows), self.max_length)
        longest = max((self.lengths[row] for row in rows), default=0)
        moved = [row for row, origin in enumerate(rows) if row != origin]
        _copy_rows((*self.keys, *self.values), moved, [rows[row] for row in moved], longest)
        if self.source_keys:
            if len(rows) > len(self.source_keys[0]):
                self._widen(len(rows), self.source_keys[0].shape[2])
            other = [row for row in moved if row >= self.rows or self.owners[rows[row]] != self.owners[row]]
            _copy_rows((*self.source_keys, *self.source_values), other, [rows[row] for row in other], None)
            self.source_lengths = [self.source_lengths[row] for row in rows]
        self.owners = [self.owners[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self.runs = []

    def join(self, other: KVCache, *, room: int) -> None:
        """Appends the rows of `other`; `room`: most tokens that any row will hold from now on."""
        first, rows = self.rows, self.rows + other.rows
        if rows > len(self.keys[0]) or room > self.max_length:
            self._grow(rows, room)
        longest = max(other.lengths, default=0)
        for mine, theirs in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine[first:rows, :, :longest] = theirs[: other.rows, :, :longest]
        if other.source_keys:
            self._widen(rows, max(self.source_keys[0].shape[2], other.source_keys[0].shape[2]))
            sources = (*self.source_keys, *self.source_values), (*other.source_keys, *other.source_values)
            for mine, theirs in zip(*sources, strict=True):
                mine[first:rows, :, : theirs.shape[2]] = theirs[: other.rows]
            self.source_lengths += other.source_lengths
        fresh = max(self.owners, default=-1) + 1
        self.owners += [fresh + owner for owner in other.owners]
        self.lengths += other.lengths
        self.runs = []

    def move(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Goes on in this memory: one tensor for each layer, with at least the rows and the room that are in use."""
        stored = max(self.lengths, default=0)
        for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True):
            new[: self.rows, :, :stored] = old[: self.rows, :, :stored]
        self.keys, self.values = list(keys), list(values)

    def _grow(self, rows: int, room: int) -> None:
        """New memory of this size, with what is stored."""
        stored = max(self.lengths, default=0)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(rows, old.shape[1], room, old.shape[3])
                new[: self.rows, :, :stored] = old[: self.rows, :, :stored]
                tensors[layer] = new
        if room > self.max_length:
            self.angles = {}
        self.max_length = room

    def _widen(self, rows: int, width: int) -> None:
        """The same for the sources."""
        for tensors in (self.source_keys, self.source_values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(max(rows, len(old)), old.shape[1], width, old.shape[3])
                new[: len(old), :, : old.shape[2]] = old
                tensors[layer] = new

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of `row`."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens, it cannot be cut to {length}")
        self.lengths[row] = length
        self.runs = []

    def advance(self, new: Sequence[int]) -> None:
        """Count the `new` tokens that a forward pass has written into each row."""
        self.lengths = [length + more for length, more in zip(self.lengths, new, strict=True)]
        if len(set(new)) > 1:
            self.runs = []

    def store_source(self, layer: int, key: Tensor, value: Tensor, layout: Layout) -> None:
        """Keep what `layer` sees of the sources: key and value [T_s, K, C], laid out as `layout` says."""
        if layer != len(self.source_keys):
            raise ValueError("the sources of a cache are stored once, layer after layer")
        self.source_lengths = list(layout.lengths)
        longest = max(layout.lengths, default=0)
        for stores, flat in ((self.source_keys, key), (self.source_values, value)):
            rows = flat.new_zeros(layout.sequences, flat.shape[1], longest, flat.shape[2])
            for row, (start, end) in enumerate(layout.spans()):
                rows[row, :, : end - start] = flat[start:end].transpose(0, 1)
            stores.append(rows)


def _copy_rows(tensors: Sequence[Tensor], to: Sequence[int], rows: Sequence[int], length: int | None) -> None:
    """The first `length` tokens of `rows` go to the rows `to`, all at once."""
    if not to or not tensors:
        return
    target, source = (torch.tensor(list(each), device=tensors[0].device) for each in (to, rows))
    for tensor in tensors:
        part = tensor[:, :, :length]
        part[target] = part[source]
