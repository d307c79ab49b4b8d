"""What an objective makes of one piece of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE
from trivium.data.table import Ints


@dataclass(frozen=True)
class Example:
    """One sequence of a batch.

    inputs:  [n] what the model reads (of an encoder-decoder: the decoder).
    targets: [n] the token that each position must give, or IGNORE.
    source:  [m] what the encoder of an encoder-decoder reads.
    prefix:  how many of the first inputs see each other in both directions.
    fields:  [n] further numbers of each position, by name; every example of a method has the same names.
    """

    inputs: Ints
    targets: Ints
    source: Ints | None = None
    prefix: int = 0
    fields: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def tokens(*parts: int | Sequence[int] | Ints) -> Ints:
    """Single tokens and runs of tokens, one after the other."""
    return np.concatenate([np.atleast_1d(np.asarray(part, dtype=np.int64)) for part in parts])


def next_token(ids: Ints) -> Example:
    """n + 1 tokens are n inputs, each of which predicts the next token."""
    return Example(ids[:-1], ids[1:])


def prefix_lm(ids: Ints, random: np.random.Generator) -> Example:
    """The first tokens, uniformly many, are read in both directions, and only what follows is predicted.

    Raffel et al. 2020 (arXiv 1910.10683), section 3.2. n + 1 tokens give n inputs; the prefix has 1 to n of them.
    """
    split = int(random.integers(1, len(ids)))
    targets = ids[1:].copy()
    targets[: split - 1] = IGNORE
    return Example(ids[:-1], targets, prefix=split)


def taught(source: Ints, target: Ints, *, start: int) -> Example:
    """Teacher forcing: the decoder reads `start` and the target but its last token, and predicts the target."""
    return Example(tokens(start, target[:-1]), target, source=source)
