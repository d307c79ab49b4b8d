"""Rows of instructions, preferences and prompts as samples in memory."""

from __future__ import annotations

import importlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.intake import Intake
from trivium.data.reading import ROW_SHAPES, read_rows
from trivium.data.samples import Sample, TokenSequence
from trivium.data.table import TokenTable, narrowest
from trivium.errors import DataError, TokenizerError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


def read_samples(source: Source, intake: Intake, *, kind: Kind, tokenizer: Tokenizer) -> Iterator[Sample]:
    """The samples of a source; `trivium/data/<kind>.py` says what a row means."""
    encode_row = importlib.import_module(f"trivium.data.{kind}").encode_row
    shape = source.format if source.format in ROW_SHAPES else "auto"
    for row in read_rows(source, intake):
        try:
            yield encode_row(row, tokenizer=tokenizer, shape=shape, intake=intake)
        except DataError as error:
            intake.reject(error)
        except TokenizerError as error:
            problem = f"{error.problem} ({error.where})" if error.where else error.problem
            intake.reject(DataError(problem, where=row.where, fix=error.fix))


class Collector:
    """Turns samples into a data set, and keeps account of those that do not become part of it."""

    def __init__(self, kind: Kind, *, tokenizer: Tokenizer, settings: DataSection) -> None:
        self.kind = kind
        self._tokenizer = tokenizer
        self._settings = settings
        self._next_token = kind != "prompts"
        self._code = "H" if narrowest(tokenizer.vocab_size).itemsize == 2 else "I"
        self._tokens = array(self._code)
        self._trained = bytearray()
        self._lengths: list[int] = []
        self._owners = [0]
        self._ids: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        self._fields: dict[str, list[float]] = {}
        self.dropped: Counter[str] = Counter()
        self.truncated_tokens = 0
        self.truncated_samples = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, samples: Iterable[Sample]) -> None:
        """Take in samples: cut or drop what is too long, drop what has nothing to learn."""
        for sample in samples:
            fitting = self._fitted(sample)
            if fitting is None:
                continue
            if self._next_token and not any(any(sequence.trained[1:]) for sequence in fitting.sequences):
                cut = fitting is not sample
                self.dropped["no trained token is left after truncation" if cut else "no trained token"] += 1
                continue
            self._append(fitting)

    def dataset(self, parts: Sequence[Part], *, account: Mapping[str, Any]) -> Dataset:
        """What was taken in, as a data set."""
        tokens = np.frombuffer(self._tokens, dtype=np.dtype(self._code)).astype(narrowest(self._tokenizer.vocab_size))
        lengths = np.array(self._lengths, dtype=np.int64)
        table = TokenTable(
            tokens=[tokens],
            trained=[np.frombuffer(self._trained, dtype=np.bool_)] if self._next_token else [None],
            shard=np.zeros(len(lengths), dtype=np.int64),
            start=np.cumsum(lengths) - lengths,
            length=lengths - self._next_token,
            next_token=self._next_token,
        )
        return Dataset(
            kind=self.kind,
            table=table,
            owners=np.array(self._owners, dtype=np.int64),
            parts=parts,
            name_of=self._ids.__getitem__,
            tokenizer=self._tokenizer,
            fields={name: np.array(values, dtype=np.float32) for name, values in self._fields.items()},
            rows=self._rows if any(self._rows) else None,
            account=account,
        )

    def _append(self, sample: Sample) -> None:
        if self._ids and sample.fields.keys() != self._fields.keys():
            raise DataError(
                "the rows do not all carry the same numbers",
                where=sample.id,
                value=f"{sorted(sample.fields)} here, {sorted(self._fields)} before",
                fix="give every row the same fields",
            )
        for sequence in sample.sequences:
            self._tokens.extend(sequence.ids)
            self._trained.extend(map(bool, sequence.trained))
            self._lengths.append(len(sequence.ids))
        self._owners.append(len(self._lengths))
        self._ids.append(sample.id)
        self._rows.append(sample.row or {})
        for name, value in sample.fields.items():
            self._fields.setdefault(name, []).append(value)

    def _fitted(self, sample: Sample) -> Sample | None:
        """The sample as it fits a row; None if it is dropped."""
        room = self._settings.sequence_length
        lengths = [len(sequence.ids) - self._next_token for sequence in sample.sequences]
        if min(lengths) < 1:
            self.dropped["fewer than two tokens" if self._next_token else "no tokens"] += 1
            return None
        if sum(lengths) <= room:
            return sample
        if self._settings.truncation == "error":
            raise DataError(
                f"the sample has {sum(lengths)} tokens, a row holds {room}",
                where=sample.id,
                fix=f"raise data.sequence_length to {sum(lengths)}, or choose data.truncation: right or drop",
            )
        if self._settings.truncation == "drop":
            self.dropped["longer than a row"] += 1
            return None
        keep = _shares(lengths, room)
        self.truncated_samples += 1
        self.truncated_tokens += sum(lengths) - sum(keep)
        sequences = [
            TokenSequence(sequence.ids[: length + self._next_token], sequence.trained[: length + self._next_token])
            for sequence, length in zip(sample.sequences, keep, strict=True)
        ]
        return Sample(sample.id, sequences, sample.fields, sample.row)


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each sequence stays: all of the short ones, equal parts of the rest for the long ones."""
    keep = [0] * len(lengths)
    for done, at in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        keep[at] = min(lengths[at], room // (len(lengths) - done))
        room -= keep[at]
    return keep
