"""Documents as samples: each is cut into sequences that fit a row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.dataset import Dataset, Part
from trivium.data.table import Ints, TokenTable
from trivium.data.tokenise import TokenShard

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def documents_dataset(
    shards: Sequence[TokenShard],
    *,
    tokenizer: Tokenizer,
    sequence_length: int,
    bare: bool = False,
    parts: Sequence[tuple[str, float, int, int]] | None = None,
    account: Mapping[str, Any] | None = None,
) -> Dataset:
    """Documents cut into sequences of `sequence_length` inputs.

    Consecutive pieces overlap by one token, the last target of one being the first input of the next, so that each
    token but a document's first is a target exactly once.
    bare:  pieces without the document's BOS and EOS and without overlap, `sequence_length` tokens each, for methods
           that make their own inputs and targets of them and frame each piece themselves.
    parts: (name, weight, first shard, one past the last shard) of each source; default: all shards are one.
    """
    frame = (int(tokenizer.adds_bos), 1) if bare else None
    found = [_pieces(shard, sequence_length, frame) for shard in shards]
    none = np.zeros(0, dtype=np.int64)
    counts = [len(pieces.start) for pieces in found]
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(counts, dtype=np.int64))])
    table = TokenTable(
        tokens=[shard.tokens for shard in shards],
        trained=[None] * len(shards),
        shard=np.repeat(np.arange(len(shards), dtype=np.int64), counts),
        start=np.concatenate([pieces.start for pieces in found] or [none]),
        length=np.concatenate([pieces.length for pieces in found] or [none]),
        next_token=not bare,
    )

    boundaries = ends.tolist()

    def name_of(sample: int) -> str:
        shard = bisect_right(boundaries, sample) - 1
        at = sample - boundaries[shard]
        pieces = found[shard]
        document = int(pieces.document[at])
        name = shards[shard].ids[document]
        return f"{name}#{pieces.piece[at]}" if pieces.cut[document] else name

    spans = parts or [("documents", 1.0, 0, len(shards))]
    return Dataset(
        kind="documents",
        table=table,
        owners=np.arange(len(table.length) + 1, dtype=np.int64),
        parts=[Part(name, weight, int(ends[first]), int(ends[last])) for name, weight, first, last in spans],
        name_of=name_of,
        tokenizer=tokenizer,
        account={
            "documents": sum(len(shard.lengths) for shard in shards),
            "bytes": int(sum(shard.sizes.sum() for shard in shards)),
            "cut_documents": int(sum(pieces.cut.sum() for pieces in found)),
            **(account or {}),
        },
    )


@dataclass(frozen=True)
class _Pieces:
    """Where the documents of a shard are cut: [pieces] each, but cut: [documents]."""

    start: Ints
    length: Ints
    document: Ints
    piece: Ints
    cut: NDArray[np.bool_]


def _pieces(shard: TokenShard, sequence_length: int, frame: tuple[int, int] | None) -> _Pieces:
    """`frame`: tokens left out at both ends of each document; None: the last token of a piece is only a target."""
    before, after = (0, 1) if frame is None else frame
    inputs = np.maximum(shard.lengths - before - after, 0)
    counts = -(-inputs // sequence_length)
    document = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    piece = np.arange(len(document), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = (np.cumsum(shard.lengths) - shard.lengths)[document] + before
    return _Pieces(
        start=begin + piece * sequence_length,
        length=np.minimum(sequence_length, inputs[document] - piece * sequence_length),
        document=document,
        piece=piece,
        cut=counts > 1,
    )
