"""What a data set is made of: samples of one or more token sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenSequence:
    """Token ids (with BOS and EOS) and, for each, whether it is learnt as a target.

    The first token has nothing before it and is never a target, whatever its flag says.
    weights: how much each token counts as a target, 0 where it is none; None: all targets count 1.
    """

    ids: Sequence[int]
    trained: Sequence[bool]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Sample:
    """One unit of the data order: its sequences always stay together in one row.

    id:        names the sample for good: `<file>:<line>`, or the document's id and the number of the piece.
    sequences: one for documents, instructions and prompts; two (chosen, rejected) for preferences.
    fields:    numbers a method needs (a label, a margin); in a batch they are [S], repeated for each sequence.
    row:       the row as read, where it is still needed (prompts: the reference answer).
    """

    id: str
    sequences: Sequence[TokenSequence]
    fields: Mapping[str, float] = field(default_factory=dict)
    row: Mapping[str, Any] | None = None
