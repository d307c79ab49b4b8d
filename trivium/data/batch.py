"""What a model sees: a flat run of tokens cut into sequences, and nothing that is padding.

Shape legend, used all over the package:
    T  tokens in the micro-batch          S  sequences in the micro-batch (packed documents)
    D  width of the model                 V  vocabulary
    H  query heads, K key/value heads     C  width of one head

A batch is *ragged*: the tokens of its sequences stand one after the other in one vector of length T, and a
`Layout` says where one sequence ends and the next begins. Padded, packed and single sequences are therefore the
same thing to the model, and two sequences can never see each other: attention runs inside a sequence only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Target of a position that is not trained, as in torch's cross-entropy."""


@dataclass(frozen=True)
class Layout:
    """Lengths of the sequences that lie one after the other in a flat token vector; plain Python numbers.

    Kept on the host so that attention can be planned without waiting for the device.

    prefixes: how many of each sequence's first tokens see each other in both directions, S numbers; None: nowhere.
    """

    lengths: tuple[int, ...]
    prefixes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.prefixes is None:
            return
        if len(self.prefixes) != len(self.lengths):
            raise ValueError(f"{len(self.prefixes)} prefixes for {len(self.lengths)} sequences")
        if any(not 0 <= prefix <= length for prefix, length in zip(self.prefixes, self.lengths, strict=True)):
            raise ValueError("a prefix must lie inside of its sequence")

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def uniform(self) -> int | None:
        """The common length if all sequences are equally long, else None."""
        first = self.lengths[0] if self.lengths else 0
        return first if all(length == first for length in self.lengths) else None

    def starts(self) -> list[int]:
        """Index of each sequence's first token; S numbers."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return starts

    def spans(self) -> Iterator[tuple[int, int]]:
        """(first token, one past the last token) of each sequence."""
        for start, length in zip(self.starts(), self.lengths, strict=True):
            yield start, start + length

    def positions(self, device: Any = None) -> Tensor:
        """[T] position of each token inside its own sequence, from 0."""
        lengths = torch.tensor(self.lengths, device=device)
        starts = torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths, output_size=self.tokens)
        return torch.arange(self.tokens, device=device) - starts

    def sequence_ids(self, device: Any = None) -> Tensor:
        """[T] number of the sequence each token belongs to, from 0."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.repeat_interleave(torch.arange(self.sequences, device=device), lengths, output_size=self.tokens)

    def sum(self, values: Tensor) -> Tensor:
        """[T] -> [S]: sum of a per-token quantity inside each sequence; differentiable."""
        return values.new_zeros(self.sequences).index_add(0, self.sequence_ids(values.device), values)


@dataclass(frozen=True)
class Source:
    """What the encoder of an encoder-decoder reads: ids [T_s] int64, cut into as many sequences as the batch has."""

    ids: Tensor
    layout: Layout

    def to(self, device: Any) -> Source:
        """The same source on another device."""
        return Source(self.ids.to(device, non_blocking=True), self.layout)


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    input_ids:  [T] int64; of an encoder-decoder those of the decoder.
    targets:    [T] int64; `targets[t]` is the token that position t must predict, or IGNORE. For a decoder the shift
                by one is already made, for an encoder there is none: hidden state t and target t belong together.
    layout:     where each sequence begins and ends.
    fields:     further tensors a method needs, per token [T, ...] or per sequence [S, ...]
                (labels, rewards, reference log-probabilities), by name.
    sample_ids: which samples of the data set are in here, for the log of consumed samples.
    source:     what the encoder of an encoder-decoder reads; sequence s of the batch answers sequence s of it.
    """

    input_ids: Tensor
    targets: Tensor
    layout: Layout
    fields: dict[str, Tensor] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.source.layout.sequences != self.layout.sequences:
            raise ValueError(f"{self.source.layout.sequences} sources for {self.layout.sequences} sequences")

    @property
    def tokens(self) -> int:
        return self.layout.tokens

    def trained_tokens(self) -> int:
        """How many positions have a target."""
        return int((self.targets != IGNORE).sum())

    def with_fields(self, **fields: Tensor) -> Batch:
        """The same batch with further fields."""
        return replace(self, fields={**self.fields, **fields})

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            targets=move(self.targets),
            fields={name: move(value) for name, value in self.fields.items()},
            source=None if self.source is None else self.source.to(device),
        )


def make_batch(
    sequences: Sequence[Sequence[int]],
    trained: Sequence[Sequence[bool]] | None = None,
    *,
    fields: dict[str, Tensor] | None = None,
    sample_ids: Sequence[str] = (),
) -> Batch:
    """A next-token batch from token ids.

    sequences: S lists of n token ids; each becomes n - 1 inputs with n - 1 targets.
    trained:   S lists of n flags; token i is a target only if its flag is set (default: every token).
    """
    inputs: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for number, ids in enumerate(sequences):
        if len(ids) < 2:
            raise ValueError(f"a sequence needs at least two tokens, number {number} has {len(ids)}")
        flags = [True] * len(ids) if trained is None else trained[number]
        inputs.extend(ids[:-1])
        targets.extend(token if flag else IGNORE for token, flag in zip(ids[1:], flags[1:], strict=True))
        lengths.append(len(ids) - 1)
    return Batch(
        input_ids=torch.tensor(inputs, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        layout=Layout(tuple(lengths)),
        fields=fields or {},
        sample_ids=tuple(sample_ids),
    )
