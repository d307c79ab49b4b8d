"""Rows of instructions, preferences, prompts, pairs and similar texts as samples: encoded, fitted, accounted for."""

from __future__ import annotations

import importlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.dataset import Dataset, Kind, Part
from trivium.data.intake import Intake
from trivium.data.reading import ROW_SHAPES, read_rows
from trivium.data.samples import Sample, TokenSequence
from trivium.data.table import Ints, TokenTable, narrowest
from trivium.errors import DataError, TokenizerError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Collected:
    """N samples with Q sequences, T tokens in all.

    tokens, trained: [T].  lengths: [Q] tokens of each sequence.  owners: [N + 1] first sequence of each sample.
    weights: [T] how much each token counts as a target; None: each counts 1.
    ids: [N].  fields: [N] each.  rows: [N] the rows as read, for prompts.  ends: samples up to the end of each source.
    """

    tokens: NDArray[np.unsignedinteger]
    trained: NDArray[np.bool_]
    lengths: Ints
    owners: Ints
    ids: Sequence[str]
    fields: Mapping[str, NDArray[np.float32]]
    rows: Sequence[Mapping[str, Any]] | None
    ends: Sequence[int]
    account: Mapping[str, Any]
    weights: NDArray[np.float32] | None = None

    def dataset(self, kind: Kind, *, parts: Sequence[Part], tokenizer: Tokenizer) -> Dataset:
        """The samples as a data set."""
        next_token = _next_token(kind)
        table = TokenTable(
            tokens=[self.tokens],
            trained=[None] if kind == "prompts" else [self.trained],
            shard=np.zeros(len(self.lengths), dtype=np.int64),
            start=np.cumsum(self.lengths) - self.lengths,
            length=self.lengths - next_token,
            next_token=next_token,
            weights=None if self.weights is None else [self.weights],
        )
        return Dataset(
            kind=kind,
            table=table,
            owners=self.owners,
            parts=parts,
            name_of=self.ids.__getitem__,
            tokenizer=tokenizer,
            fields=self.fields,
            rows=self.rows,
            account=self.account,
        )


def collect(sources: Sequence[Source], *, kind: Kind, tokenizer: Tokenizer, settings: DataSection) -> Collected:
    """Read and encode all samples. DataError if too many of them have nothing to learn."""
    intake = Intake(settings.on_error)
    collector = _Collector(kind, tokenizer=tokenizer, settings=settings)
    ends: list[int] = []
    for source in sources:
        for sample in _read(source, intake, kind=kind, tokenizer=tokenizer, settings=settings):
            collector.add(sample)
        ends.append(collector.samples)
    _refuse_untrained(collector, settings, sources)
    return collector.finish(ends, intake)


def _next_token(kind: Kind) -> bool:
    """Whether each token predicts the next: prompts and similar texts predict nothing, and of pairs a method makes its
    own examples."""
    return kind not in ("prompts", "pairs", "similar")


def _read(
    source: Source, intake: Intake, *, kind: Kind, tokenizer: Tokenizer, settings: DataSection
) -> Iterator[Sample]:
    """The samples of a source; `trivium/data/<kind>.py` says what a row means."""
    module = importlib.import_module(f"trivium.data.{kind}")
    encode_row = module.encode_row
    if kind == "pairs":
        encode_row = partial(encode_row, pairs=settings.pairs)
    if kind in ("instructions", "preferences", "prompts"):
        encode_row = partial(encode_row, chat=settings.chat)
    if kind == "similar":
        encode_row = partial(encode_row, settings=settings)
    shape = source.format if source.format in ROW_SHAPES else "auto"
    for row in getattr(module, "read", read_rows)(source, intake):
        try:
            found = encode_row(row, tokenizer=tokenizer, shape=shape, intake=intake)
            yield from found if isinstance(found, list) else [found]
        except DataError as error:
            intake.reject(error)
        except TokenizerError as error:
            problem = f"{error.problem} ({error.where})" if error.where else error.problem
            intake.reject(DataError(problem, where=row.where, fix=error.fix))


class _Collector:
    """Takes in samples one by one, and keeps account of those that do not fit or have nothing to learn."""

    def __init__(self, kind: Kind, *, tokenizer: Tokenizer, settings: DataSection) -> None:
        self._settings = settings
        self._kind = kind
        self._next_token = _next_token(kind)
        self._dtype = narrowest(tokenizer.vocab_size)
        self._tokens = array("H" if self._dtype.itemsize == 2 else "I")
        self._trained = bytearray()
        self._weights: array[float] | None = None
        self._lengths: list[int] = []
        self._owners = [0]
        self._ids: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        self._fields: dict[str, list[float]] = {}
        self._truncated: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    @property
    def samples(self) -> int:
        return len(self._ids)

    def add(self, sample: Sample) -> None:
        """Take in a sample: cut or drop what is too long, drop what has nothing to learn."""
        fitting = self._fitted(sample)
        if fitting is None:
            return
        if self._next_token and not all(any(sequence.trained[1:]) for sequence in fitting.sequences):
            cut = fitting is not sample
            self.dropped["no trained token is left after truncation" if cut else "no trained token"] += 1
            return
        if self._ids and sample.fields.keys() != self._fields.keys():
            raise DataError(
                "the rows do not all carry the same numbers",
                where=sample.id,
                value=f"{sorted(sample.fields)} here, {sorted(self._fields)} before",
                fix="give every row the same fields",
            )
        for sequence in fitting.sequences:
            self._tokens.extend(sequence.ids)
            self._weigh(sequence)
            self._trained.extend(map(bool, sequence.trained))
            self._lengths.append(len(sequence.ids))
        self._owners.append(len(self._lengths))
        self._ids.append(sample.id)
        if sample.row is not None:
            self._rows.append(sample.row)
        for name, value in sample.fields.items():
            self._fields.setdefault(name, []).append(value)

    def finish(self, ends: Sequence[int], intake: Intake) -> Collected:
        """What was taken in."""
        summary = intake.summary()
        left_out = self.dropped.total() + sum(summary["quarantined"].values())
        account = {
            "input": self.samples + left_out,
            "kept": self.samples,
            "dropped": dict(self.dropped),
            **summary,
            "truncated_samples": self._truncated["samples"],
            "truncated_tokens": self._truncated["tokens"],
        }
        return Collected(
            tokens=np.frombuffer(self._tokens, dtype=self._tokens.typecode).astype(self._dtype),
            trained=np.frombuffer(self._trained, dtype=np.bool_),
            lengths=np.array(self._lengths, dtype=np.int64),
            owners=np.array(self._owners, dtype=np.int64),
            ids=self._ids,
            fields={name: np.array(values, dtype=np.float32) for name, values in self._fields.items()},
            rows=self._rows or None,
            ends=ends,
            account=account,
            weights=None if self._weights is None else np.frombuffer(self._weights, dtype=np.float32),
        )

    def _weigh(self, sequence: TokenSequence) -> None:
        """Take in the weights of a sequence; from the first that has any, all have."""
        if self._weights is None and sequence.weights is not None:
            self._weights = array("f", map(float, self._trained))
        if self._weights is not None:
            self._weights.extend(map(float, sequence.trained if sequence.weights is None else sequence.weights))

    def _too_long(self, sample: Sample, length: int, longest: int) -> None:
        """A text that is longer than `data.similar.text_length` and was not cut."""
        if self._settings.truncation == "drop":
            self.dropped["a text longer than data.similar.text_length"] += 1
            return
        raise DataError(
            f"a text has {length} tokens, data.similar.text_length is {longest}",
            where=sample.id,
            fix=f"raise it to {length}, or choose data.truncation: right or drop",
        )

    def _fitted(self, sample: Sample) -> Sample | None:
        """The sample as it fits a row; None if it is dropped."""
        room = self._settings.sequence_length
        lengths = [len(sequence.ids) - self._next_token for sequence in sample.sequences]
        if min(lengths) < 1:
            self.dropped["fewer than two tokens" if self._next_token else "no tokens"] += 1
            return None
        longest = self._settings.similar.text_length if self._kind == "similar" else None
        if longest is not None and max(lengths) > longest:
            self._too_long(sample, max(lengths), longest)
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
        self._truncated.update(samples=1, tokens=sum(lengths) - sum(keep))
        sequences = [
            _first_of(sequence, length + self._next_token)
            for sequence, length in zip(sample.sequences, keep, strict=True)
        ]
        return Sample(sample.id, sequences, sample.fields, sample.row)


def _first_of(sequence: TokenSequence, size: int) -> TokenSequence:
    weights = None if sequence.weights is None else sequence.weights[:size]
    return TokenSequence(sequence.ids[:size], sequence.trained[:size], weights)


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each sequence stays: all of the short ones, equal parts of the rest for the long ones."""
    keep = [0] * len(lengths)
    for done, at in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        keep[at] = min(lengths[at], room // (len(lengths) - done))
        room -= keep[at]
    return keep


def _refuse_untrained(collector: _Collector, settings: DataSection, sources: Sequence[Source]) -> None:
    untrained = sum(count for reason, count in collector.dropped.items() if reason.startswith("no trained token"))
    total = untrained + collector.samples
    if untrained > settings.max_untrained * total:
        raise DataError(
            f"{untrained} of {total} samples have no trained token ({untrained / total:.1%})",
            where=", ".join(source.path for source in sources),
            value=", ".join(f"{reason}: {count}" for reason, count in collector.dropped.items()),
            fix="raise data.sequence_length if truncation removes the answers; check that the rows have answers; "
            f"or accept them with data.max_untrained (now {settings.max_untrained})",
        )
