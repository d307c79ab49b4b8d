"""Keys and values of the tokens seen so far, so that generation computes each token once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models.config import ModelConfig


class KVCache:
    """Static key and value tensors, one row for each sequence, left-aligned.

    keys, values: one tensor [rows, K, max_length, C] for each layer.
    lengths:      tokens stored in each row; plain numbers, so that planning never waits for the device.

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
    ) -> None:
        shape = (rows, config.num_kv_heads, max_length, config.head_dim)

        def empty() -> list[Tensor]:
            # Zeros, not uninitialised memory: a masked-out NaN times zero would still be NaN.
            layers = config.num_decoder_layers or config.num_layers
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

        self.keys, self.values = empty(), empty()
        self.lengths = [0] * rows
        self.max_length = max_length
        self.angles: dict[bool, tuple[Tensor, Tensor]] = {}
        """Cosine and sine at every position, for layers that see everything (False) or a window (True)."""
        self.source_keys: list[Tensor] = []
        self.source_values: list[Tensor] = []
        self.source_lengths: list[int] = []

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep `rows`, in this order; a row may be named several times (beams) or not at all (finished)."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.keys[0].device)
        for tensors in (self.keys, self.values, self.source_keys, self.source_values):
            tensors[:] = [tensor.index_select(0, index) for tensor in tensors]
        self.lengths = [self.lengths[row] for row in rows]
        self.source_lengths = [self.source_lengths[row] for row in rows] if self.source_lengths else []

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of `row`."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens, it cannot be cut to {length}")
        self.lengths[row] = length

    def advance(self, new: Sequence[int]) -> None:
        """Count the `new` tokens that a forward pass has written into each row."""
        self.lengths = [length + more for length, more in zip(self.lengths, new, strict=True)]

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
