"""What an objective makes of one piece of a document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trivium.data.table import Ints


@dataclass(frozen=True)
class Example:
    """One sequence of a batch.

    inputs:  [n] what the model reads (of an encoder-decoder: the decoder).
    targets: [n] the token that each position must give, or IGNORE.
    source:  [m] what the encoder of an encoder-decoder reads.
    prefix:  how many of the first inputs see each other in both directions.
    """

    inputs: Ints
    targets: Ints
    source: Ints | None = None
    prefix: int = 0


def shifted(ids: Ints) -> Example:
    """Next-token prediction: n + 1 tokens are n inputs, each of which predicts the next token."""
    ids = np.asarray(ids, dtype=np.int64)
    return Example(ids[:-1], ids[1:])
