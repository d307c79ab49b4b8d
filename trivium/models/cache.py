"""Keys and values of the tokens seen so far, so that generation computes each token once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trivium.models.config import ModelConfig


class KVCache:
    """Static key and value tensors, one row for each sequence, left-aligned.

    keys, values: one tensor [rows, K, max_length, C] for each layer.
    lengths:      tokens stored in each row; plain numbers, so that planning never waits for the device.
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
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

        self.keys, self.values = empty(), empty()
        self.lengths = [0] * rows
        self.max_length = max_length

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep `rows`, in this order; a row may be named several times (beams) or not at all (finished)."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.keys[0].device)
        self.keys = [tensor.index_select(0, index) for tensor in self.keys]
        self.values = [tensor.index_select(0, index) for tensor in self.values]
        self.lengths = [self.lengths[row] for row in rows]

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of `row`."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens, it cannot be cut to {length}")
        self.lengths[row] = length

    def advance(self, new: Sequence[int]) -> None:
        """Count the `new` tokens that a forward pass has written into each row."""
        self.lengths = [length + more for length, more in zip(self.lengths, new, strict=True)]
