"""What an objective makes of one piece of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE, Batch, Layout, Source
from trivium.data.table import Ints
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


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


class Corrupted(NamedTuple):
    """A damaged text, and what is asked for: what is missing, or the whole."""

    source: Ints
    target: Ints


def collate(
    examples: Sequence[Example], *, fields: Mapping[str, Tensor] | None = None, sample_ids: Sequence[str] = ()
) -> Batch:
    """The examples one after the other as a micro-batch, with `fields` beside their own."""
    prefixes = tuple(example.prefix for example in examples)
    sources = [example.source for example in examples if example.source is not None]
    own = {
        name: torch.from_numpy(np.concatenate([example.fields[name] for example in examples]))
        for name in examples[0].fields
    }
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([example.inputs for example in examples])),
        targets=torch.from_numpy(np.concatenate([example.targets for example in examples])),
        layout=Layout(tuple(len(example.inputs) for example in examples), prefixes if any(prefixes) else None),
        fields={**own, **(fields or {})},
        sample_ids=tuple(sample_ids),
        source=Source(torch.from_numpy(np.concatenate(sources)), Layout(tuple(map(len, sources)))) if sources else None,
    )


def filler(like: Example, *, pad_id: int, inputs: int, source: int) -> Example:
    """An untrained example of so many tokens, with the same parts as `like`."""
    return Example(
        np.full(inputs, pad_id, dtype=np.int64),
        np.full(inputs, IGNORE, dtype=np.int64),
        None if like.source is None else np.full(source, pad_id, dtype=np.int64),
        fields={name: np.zeros(inputs, dtype=values.dtype) for name, values in like.fields.items()},
    )


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
