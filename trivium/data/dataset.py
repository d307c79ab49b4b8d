"""A data set: samples with stable ids, their tokens, and an honest account of what was read, cut and dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE
from trivium.data.samples import Sample, TokenSequence
from trivium.data.table import Ints, TokenTable
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

__all__ = ["Dataset", "Kind", "Part", "Sample", "TokenSequence", "open_dataset"]

Kind = Literal[
    "documents", "instructions", "preferences", "prompts", "labels", "tokens", "questions", "pairs", "similar"
]


@dataclass(frozen=True)
class Part:
    """The samples first..last-1 come from one source of a mixture; its budget and limit as in `Source`."""

    name: str
    weight: float
    first: int
    last: int
    tokens: int | None = None
    max_epochs: float | None = None


@dataclass(frozen=True)
class Dataset:
    """Samples in the order of their sources.

    table:    the token sequences.  owners: [N + 1] sample i has the sequences owners[i] .. owners[i + 1] - 1.
    name_of:  the id of a sample.
    fields:   [N] numbers that come with each sample, by name.
    rows:     the rows as read, where samples keep them.
    account:  what `summary()` says beyond what the tokens themselves say.
    difficulty: [N] how hard each sample is, where a curriculum asks for it.
    """

    kind: Kind
    table: TokenTable
    owners: Ints
    parts: Sequence[Part]
    name_of: Callable[[int], str]
    tokenizer: Tokenizer
    fields: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] | None = None
    account: Mapping[str, Any] = field(default_factory=dict)
    difficulty: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.table.length)])[self.owners]
        object.__setattr__(self, "lengths", np.diff(ends))
        object.__setattr__(self, "_one_each", len(self.owners) == len(self.table.length) + 1)
        object.__setattr__(self, "_byte_lengths", np.asarray(self.tokenizer.byte_lengths(), dtype=np.int32))

    lengths: Ints = field(init=False)
    """[N] tokens a sample takes up in a row: the inputs of its sequences."""
    _one_each: bool = field(init=False)
    _byte_lengths: NDArray[np.int32] = field(init=False)

    def __len__(self) -> int:
        return len(self.owners) - 1

    @property
    def pad_id(self) -> int:
        """The token that fills up a shape; never a target."""
        return self.tokenizer.eos_id if self.tokenizer.pad_id is None else self.tokenizer.pad_id

    def sample_id(self, number: int) -> str:
        """The lasting name of a sample."""
        return self.name_of(number)

    def sample(self, number: int) -> Sample:
        """A sample with all its tokens and which of them are trained."""
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        sequences = [
            TokenSequence(self.table.ids(at).tolist(), self.table.flags(at).tolist(), self.table.weights_of(at))
            for at in range(int(self.owners[number]), int(self.owners[number + 1]))
        ]
        return Sample(
            id=self.sample_id(number),
            sequences=sequences,
            fields={name: float(values[number]) for name, values in self.fields.items()},
            row=None if self.rows is None else self.rows[number],
        )

    def sequences_of(self, samples: Ints) -> tuple[Ints, Ints]:
        """(the sequences of these samples in order, for each the position of its sample in `samples`)."""
        if self._one_each:
            return samples, np.arange(len(samples), dtype=np.int64)
        first = self.owners[samples]
        counts = self.owners[samples + 1] - first
        owners = np.repeat(np.arange(len(samples), dtype=np.int64), counts)
        inside = np.arange(len(owners), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[owners] + inside, owners

    def target_bytes(self, targets: NDArray[np.int64]) -> NDArray[np.int32]:
        """[T] bytes of text behind each target; 0 for special tokens and where nothing is trained."""
        return np.where(targets == IGNORE, np.int32(0), self._byte_lengths[np.maximum(targets, 0)])

    def fingerprint(self) -> str:
        """SHA-256 over everything a model can see: tokens, targets, order and fields."""
        digest = hashlib.sha256(f"{self.kind} {self.table.next_token}".encode())
        for array in (self.table.shard, self.table.start, self.table.length, self.owners):
            digest.update(np.ascontiguousarray(array).data)
        for tokens, trained in zip(self.table.tokens, self.table.trained, strict=True):
            digest.update(np.ascontiguousarray(tokens, dtype="<u4").data)
            digest.update(b"all" if trained is None else np.packbits(trained).tobytes())
        for weights in self.table.weights or ():
            digest.update(weights.tobytes())
        for name, values in sorted(self.fields.items()):
            digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Counts for the report; JSON values only."""
        # What a method makes its own examples of has other targets each epoch.
        open_targets = self.kind == "documents" and not self.table.next_token
        trained = {} if open_targets else {"trained_tokens": int(self.table.trained_counts().sum())}
        return {
            "kind": self.kind,
            "samples": len(self),
            "tokens": int(self.lengths.sum()),
            **trained,
            "length_histogram": _histogram(self.lengths),
            **self.account,
            **({} if self.difficulty is None else {"difficulty": _quantiles(self.difficulty)}),
            "first_row": self._first_row(),
        }

    def _first_row(self) -> dict[str, Any] | None:
        if not len(self):
            return None
        sample = self.sample(0)
        shown = [
            {
                "text": self.tokenizer.decode(list(sequence.ids[:128]), skip_special=False),
                "trained_text": self.tokenizer.decode(
                    [token for token, flag in zip(sequence.ids[:128], sequence.trained, strict=False) if flag],
                    skip_special=False,
                ),
                "tokens": len(sequence.ids),
            }
            for sequence in sample.sequences
        ]
        return {"id": sample.id, "sequences": shown}


def _histogram(lengths: Ints) -> dict[str, int]:
    """Samples by length, in powers of two: {"1": ..., "2-3": ..., "4-7": ...}."""
    if not len(lengths):
        return {}
    counts = np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64))
    names = ["1", *(f"{1 << power}-{(2 << power) - 1}" for power in range(1, len(counts)))]
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Least, quartiles and largest."""
    names = ("least", "quarter", "median", "three quarters", "most")
    return {
        name: round(float(value), 4)
        for name, value in zip(names, np.quantile(values, np.linspace(0, 1, 5)), strict=True)
    }


def open_dataset(
    sources: Sequence[Source],
    *,
    kind: Kind,
    tokenizer: Tokenizer,
    settings: DataSection,
    cache: Path | None = None,
    like: Dataset | None = None,
    bare: bool = False,
) -> Dataset:
    """Read, tokenise and check the sources.

    Sources are a mixture if any of them has a `weight` other than 1, a budget or a limit, or if there is a temperature;
    otherwise they are simply one after the other, each row once an epoch. Training data gets its difficulty where
    `settings.curriculum` asks for one.
    like:  the training data, whose labels held-out data of the kinds labels and tokens is read by.
    bare:  cut documents for a method that makes its own examples (`Method.bare`).
    cache: folder in which tokenised documents are kept for the next start; None: everything stays in memory.

    Raises DataError for what cannot be read or must not be trained on.
    """
    from trivium.data import opening

    dataset: Dataset
    if kind in ("labels", "tokens", "questions"):
        labels = getattr(like, "label_set", None)
        dataset = opening.open_labelled(sources, kind=kind, tokenizer=tokenizer, settings=settings, like=labels)
    elif kind == "documents":
        dataset = opening.open_documents(sources, tokenizer=tokenizer, settings=settings, cache=cache, bare=bare)
    else:
        dataset = opening.open_samples(sources, kind=kind, tokenizer=tokenizer, settings=settings, cache=cache)
    if settings.curriculum is None or like is not None or list(sources) != settings.train:
        return dataset
    from trivium.data.curriculum.scores import difficulty

    return replace(dataset, difficulty=difficulty(dataset, sources, settings=settings.curriculum, cache=cache))
