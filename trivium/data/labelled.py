"""Data sets whose targets are labels and not tokens: of a whole sequence, of single tokens, or the ends of a span."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE
from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.intake import Intake
from trivium.data.samples import Sample
from trivium.data.table import Ints, TokenTable, narrowest

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Problem = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class LabelSet:
    """Names of the labels in the order of their numbers, and what the labels of a whole sequence mean."""

    names: tuple[str, ...]
    problem: Problem = "single_label"


@dataclass(frozen=True)
class LabelTable(TokenTable):
    """Sequences whose every token is an input.

    targets: for each token the number of its label, or IGNORE; None where labels belong to whole sequences.
    """

    targets: NDArray[np.int32] | None = None

    def gather(self, sequences: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets) of several sequences, one after the other."""
        inputs, targets = super().gather(sequences)
        if self.targets is not None:
            lengths = self.length[sequences]
            shift = np.repeat(self.start[sequences] - (np.cumsum(lengths) - lengths), lengths)
            targets = self.targets[np.arange(len(inputs)) + shift].astype(np.int64)
        return inputs, targets

    def flags(self, sequence: int) -> NDArray[np.bool_]:
        """For each token whether it has a label; all of them where labels belong to sequences."""
        _, start, end = self.span(sequence)
        return np.ones(end - start, dtype=np.bool_) if self.targets is None else self.targets[start:end] != IGNORE

    def trained_counts(self) -> Ints:
        """[Q] how many labelled tokens each sequence has."""
        if self.targets is None:
            return self.length
        total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.targets != IGNORE)])
        counts: Ints = total[self.start + self.length] - total[self.start]
        return counts


@dataclass(frozen=True)
class LabelledDataset(Dataset):
    """Sequences with labels.

    labels:  names of the labels, in the order of their numbers.
    problem: what the labels of whole sequences mean.
    counts:  how often each label occurs.
    Numbers of whole sequences are in `fields`: `label` [N] or [N, labels], `second` [N] (first token of the second
    segment), `start` and `end` [N] of a span.
    """

    labels: tuple[str, ...] = ()
    problem: Problem = "single_label"
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def label_set(self) -> LabelSet:
        """What other data is read by."""
        return LabelSet(self.labels, self.problem)

    def sample(self, number: int) -> Sample:
        """A sample with all its tokens."""
        scalars = {name: values for name, values in self.fields.items() if values.ndim == 1}
        plain = Dataset(
            self.kind, self.table, self.owners, self.parts, self.name_of, self.tokenizer, scalars, self.rows
        )
        return plain.sample(number)

    def target_bytes(self, targets: NDArray[np.int64]) -> NDArray[np.int32]:
        """Labels stand for no bytes of text."""
        return np.zeros(len(targets), dtype=np.int32)

    def fingerprint(self) -> str:
        """SHA-256 over everything a model can see."""
        digest = hashlib.sha256(f"{super().fingerprint()} {self.problem} {self.labels}".encode())
        targets = getattr(self.table, "targets", None)
        digest.update(b"" if targets is None else targets.tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Counts for the report; JSON values only."""
        return {**super().summary(), "problem": self.problem, "labels": dict(self.counts)}


class Gathered:
    """Takes in sequences one by one, and makes the data set of them.

    rows:      the rows they come from, if `keep_rows`.
    ends:      sequences up to the end of each source.
    dropped:   rows left out, by reason.
    notes:     further counts for the report.
    labels, counts: names of the labels, and how often each occurs.
    """

    def __init__(self, kind: Kind, tokenizer: Tokenizer, *, keep_rows: bool = False) -> None:
        self.kind = kind
        self.tokenizer = tokenizer
        self.keep_rows = keep_rows
        self.labels = LabelSet(())
        self.counts: Mapping[str, int] = {}
        self.rows: list[Mapping[str, Any]] = []
        self.ends: list[int] = []
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.taken = 0
        self._tokens: list[NDArray[np.unsignedinteger]] = []
        self._targets: list[NDArray[np.int32]] = []
        self._ids: list[str] = []
        self._fields: dict[str, list[Any]] = {}
        self._dtype = narrowest(tokenizer.vocab_size)

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        name: str,
        ids: Sequence[int],
        *,
        targets: Sequence[int] | None = None,
        row: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """One sequence, with the numbers that belong to it."""
        self._ids.append(name)
        self._tokens.append(np.array(ids, dtype=self._dtype))
        if targets is not None:
            self._targets.append(np.array(targets, dtype=np.int32))
        if self.keep_rows:
            self.rows.append(row or {})
        for key, value in fields.items():
            self._fields.setdefault(key, []).append(value)

    def dataset(self, parts: Sequence[Part], intake: Intake) -> LabelledDataset:
        """Everything taken in."""
        lengths = np.array([len(ids) for ids in self._tokens], dtype=np.int64)
        table = LabelTable(
            tokens=[np.concatenate([np.zeros(0, dtype=self._dtype), *self._tokens])],
            trained=[None],
            shard=np.zeros(len(lengths), dtype=np.int64),
            start=np.cumsum(lengths) - lengths,
            length=lengths,
            next_token=False,
            targets=np.concatenate(self._targets) if self._targets else None,
        )
        summary = intake.summary()
        left_out = self.dropped.total() + sum(summary["quarantined"].values())
        account = {"input": self.taken + left_out, "kept": self.taken, "dropped": dict(self.dropped), **summary}
        return LabelledDataset(
            kind=self.kind,
            table=table,
            owners=np.arange(len(lengths) + 1, dtype=np.int64),
            parts=parts,
            name_of=self._ids.__getitem__,
            tokenizer=self.tokenizer,
            fields={name: np.array(values, dtype=np.float32) for name, values in self._fields.items()},
            rows=self.rows or None,
            account={**account, **self.notes},
            labels=self.labels.names,
            problem=self.labels.problem,
            counts=self.counts,
        )


def in_order(names: set[str]) -> tuple[str, ...]:
    """Labels in a stable order: numbers by value, everything else by its text."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Name of a label -> its number; models without names (LABEL_0, LABEL_1) know their labels by number."""
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        return {**{str(number): number for number in range(len(names))}, **{n: i for i, n in enumerate(names)}}
    return {name: number for number, name in enumerate(names)}
