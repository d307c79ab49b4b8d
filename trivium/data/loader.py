"""Stateless loading: `update(index)` is a pure function of the index.

Row number `p = index * rows + i` of a run is row `p mod R` of epoch `p div R`, R being the rows of one epoch. Nothing
is remembered between updates, so a resumed run needs one number, and a run on another number of ranks sees the
same samples in each update: rank r takes the rows r, r + world, ... of the update.

A method that makes its own examples (`Method.example`) gets each sample when its batch is made, with random numbers
that are a function of (seed, epoch, sample number): another corruption each epoch, and the same one after a resume or
on another number of ranks. Held-out data is corrupted alike in every validation and in every run. Rows are packed by
the length of the uncorrupted sample and what the method adds to it at most, so that neither what the encoder reads nor
what the decoder reads is ever longer than a row.

Token budgets, limits and a curriculum are functions of the length of the run (`Loader.plan`): how many rows a source
has in it, and which of its samples may be drawn at a time. A source is walked in stages then, each with its own
samples, and row number n of it belongs to the stage that n falls into.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from trivium.data.batch import IGNORE, Batch, Layout
from trivium.data.corruption.example import Example, collate, filler
from trivium.data.curriculum.schedule import Competence, pool, ranked
from trivium.data.mixture import Budgeted, Mixture, Supply, planned_rows
from trivium.data.packing import EpochPlan, Ints, Packing
from trivium.data.prefetch import Prefetched
from trivium.data.samples import Sample
from trivium.errors import DataError
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.data.dataset import Dataset, Part
    from trivium.recipe import CurriculumSettings

__all__ = ["Loader", "Prefetched"]

_MANY = 200_000
"""Samples from which on few plans are kept; stages and epochs then last longer than the thread is ahead."""

HELD_OUT = "held out"
"""What stands for the seed when held-out data is corrupted."""


@dataclass(frozen=True)
class Row:
    """Samples that share a row, and the epoch they are walked in; None: held-out data, in every epoch the same."""

    samples: Ints
    epoch: int | None


class Loader:
    """Batches of a data set, in the order of the seed.

    rows:            rows in one update over all ranks and micro-batches.
    micro_rows:      rows in one micro-batch of one rank.
    sequence_length: tokens in a row.
    packing:         `best_fit`: several samples in one row; `none`: each sample is a row.
    alike:           of rows with one sample each, those of an update are of similar length.
    shuffle:         a new order each epoch; otherwise the order of the files in each epoch.
    pad_rows:        fill each micro-batch with untrained sequences up to micro_rows * sequence_length tokens, for
                     compiled models and pipelines that want one shape.
    example:         makes the example of a sample from its token sequences and a generator; None: next-token
                     prediction, as the data set says.
    margin:          how many tokens longer than the sample its example is at most.
    curriculum:      which samples may be drawn when, if the data set says how hard they are.

    A data set with token budgets or limits, or a curriculum, needs `plan` before the first update.

    Each rank gets the same number of micro-batches in each update, as collective operations need. A rank without rows
    for one gets a filler: a single untrained token, no sample ids. Sequences of padding stand last in a
    micro-batch and belong to no sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rows: int,
        micro_rows: int,
        sequence_length: int,
        packing: str,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        pad_rows: bool = False,
        example: Callable[..., Example] | None = None,
        margin: int = 0,
        curriculum: CurriculumSettings | None = None,
        alike: bool = False,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} does not exist among {world} ranks")
        if len(dataset) == 0:
            raise DataError("the data set holds no sample", fix="check the source; its summary says what was dropped")
        self.dataset = dataset
        self.rows = rows
        self.micro_rows = micro_rows
        self.sequence_length = sequence_length
        self.rank = rank
        self.world = world
        self.pad_rows = pad_rows
        self.seed = seed
        self.example = example
        self.lengths = dataset.lengths + margin
        self._curriculum = curriculum if dataset.difficulty is not None else None
        self._competence: Competence | None = None
        self._mixture: Mixture | Budgeted = Mixture([part.weight for part in dataset.parts])
        limited = any(part.tokens is not None or part.max_epochs is not None for part in dataset.parts)
        self._unplanned = limited or self._curriculum is not None
        self._walks = [
            _Walk(
                Packing(
                    self.lengths[part.first : part.last],
                    capacity=sequence_length,
                    best_fit=packing == "best_fit",
                    alike=rows if alike else None,
                ),
                first=part.first,
                seed=seed,
                shuffle=shuffle,
                purpose=number,
            )
            for number, part in enumerate(dataset.parts)
        ]

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold every sample once (with a mixture: as many rows as the sources have together)."""
        return sum(walk.rows for walk in self._walks)

    @property
    def updates_per_epoch(self) -> float:
        """Updates in one pass over the data; the last one of a pass may reach into the next."""
        return self.rows_per_epoch / self.rows

    @property
    def packing_efficiency(self) -> float:
        """Share of the rows' capacity that holds tokens."""
        return float(self.lengths.sum()) / (self.rows_per_epoch * self.sequence_length)

    @property
    def sequences_per_row(self) -> float:
        """How many sequences a row holds, on average."""
        return len(self.dataset.table.length) / self.rows_per_epoch

    def plan(self, updates: int) -> None:
        """Fix what depends on the length of the run; ConfigError if budgets and limits do not fill it exactly."""
        if not self._unplanned:
            return
        parts = self.dataset.parts
        if any(part.tokens is not None or part.max_epochs is not None for part in parts):
            supplies = [
                Supply(part, walk.rows, self._tokens_of(part) / walk.rows)
                for part, walk in zip(parts, self._walks, strict=True)
            ]
            self._mixture = Budgeted(planned_rows(supplies, updates=updates, update_rows=self.rows))
        if self._curriculum is not None:
            self._competence = Competence(self._curriculum, updates=updates)
            begins = [self._mixture.walked(update * self.rows) for update in self._competence.begins]
            for number, (part, walk) in enumerate(zip(parts, self._walks, strict=True)):
                assert self.dataset.difficulty is not None
                hardness = self.dataset.difficulty[part.first : part.last]
                ranks = ranked(hardness, order=self._curriculum.order, seed=f"{self.seed}/{number}")
                walk.stage(ranks, self._competence.values, [rows[number] for rows in begins])
        self._unplanned = False

    def progress(self, index: int) -> list[dict[str, float | str]]:
        """For each source after `index` updates: its share of the rows, and the rows, tokens and epochs walked.

        An epoch is a pass over all rows of the source, and under a curriculum as many tokens as the source has.
        """
        walked = self._mixture.walked(index * self.rows)
        found: list[dict[str, float | str]] = []
        for part, share, rows, walk in zip(self.dataset.parts, self._mixture.shares, walked, self._walks, strict=True):
            tokens = walk.tokens(rows, self.dataset.lengths)
            epochs = rows / walk.rows if self._curriculum is None else tokens / self._tokens_of(part)
            found.append({"source": part.name, "share": share, "rows": rows, "tokens": tokens, "epochs": epochs})
        return found

    def measures(self, index: int) -> dict[str, float]:
        """What a curriculum does in update `index`: the competence, and the mean difficulty of its samples."""
        if self._competence is None:
            return {}
        assert self.dataset.difficulty is not None
        samples = np.concatenate([self._row(index * self.rows + at).samples for at in range(self.rows)])
        value = self._competence.values[self._competence.stage(index)]
        return {"competence": value, "difficulty": float(self.dataset.difficulty[samples].mean())}

    def _tokens_of(self, part: Part) -> int:
        return int(self.dataset.lengths[part.first : part.last].sum())

    def sample_ids(self, index: int) -> list[str]:
        """Every sample of update `index`, over all ranks."""
        return [
            self.dataset.sample_id(sample)
            for position in range(index * self.rows, (index + 1) * self.rows)
            for sample in self._row(position).samples.tolist()
        ]

    def samples(self, index: int) -> list[Sample]:
        """The raw samples of this rank in update `index`."""
        return [self.dataset.sample(sample) for row in self._rows_of(index) for sample in row.samples.tolist()]

    def update(self, index: int) -> list[Batch]:
        """The micro-batches of this rank in update `index`; equally many on each rank."""
        mine = self._rows_of(index)
        most = -(-self.rows // self.world)
        return [
            self._batch(mine[start : start + self.micro_rows], self.micro_rows)
            for start in range(0, most, self.micro_rows)
        ]

    def prefetched(self, start: int, depth: int) -> Prefetched[list[Batch]]:
        """Updates `start`, `start + 1`, ... without end, `depth` of them prepared ahead by a thread. Close it."""
        return Prefetched(self.update, start=start, depth=depth)

    def evaluation(self, micro_rows: int | None = None) -> Iterator[Batch]:
        """Each sample of every source exactly once, in the order of the files, packed like the training rows.

        With several ranks, rank r gets the rows r, r + world, ... and all ranks the same number of batches.
        """
        size = micro_rows or self.micro_rows
        rows = chain.from_iterable(walk.in_order() for walk in self._walks)
        mine = islice(rows, self.rank, None, self.world)
        for _ in range(0, -(-self.rows_per_epoch // self.world), size):
            yield self._batch(list(islice(mine, size)), size)

    def _rows_of(self, index: int) -> list[Row]:
        """This rank's rows of an update."""
        return [self._row(index * self.rows + at) for at in range(self.rank, self.rows, self.world)]

    def _row(self, position: int) -> Row:
        if self._unplanned:
            raise ValueError("a curriculum, token budgets and limits need the length of the run: call plan() first")
        part, number = self._mixture.locate(position)
        return self._walks[part].row(number)

    def _batch(self, rows: Sequence[Row], micro_rows: int) -> Batch:
        """Rows as one micro-batch, with padding where it is asked for or where there is nothing else."""
        if self.example is not None:
            return self._made_batch(rows, micro_rows)
        dataset = self.dataset
        samples = np.concatenate([row.samples for row in rows] or [np.zeros(0, dtype=np.int64)])
        sequences, owners = dataset.sequences_of(samples)
        inputs, targets = dataset.table.gather(sequences)
        lengths = dataset.table.length[sequences].tolist()
        fill = self._padding(len(inputs), micro_rows)
        if fill:
            inputs = np.concatenate([inputs, np.full(sum(fill), dataset.pad_id, dtype=np.int64)])
            targets = np.concatenate([targets, np.full(sum(fill), IGNORE, dtype=np.int64)])
            lengths += fill
        fields: dict[str, Tensor] = {"target_bytes": torch.from_numpy(dataset.target_bytes(targets))}
        if dataset.table.weights is not None:
            weights = np.concatenate([dataset.table.gather_weights(sequences), np.zeros(sum(fill), np.float32)])
            fields["weights"] = torch.from_numpy(weights)
        for name, values in dataset.fields.items():
            column = np.concatenate([values[samples][owners], np.zeros((len(fill), *values.shape[1:]), values.dtype)])
            fields[name] = torch.from_numpy(column)
        return Batch(
            input_ids=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            layout=Layout(tuple(lengths)),
            fields=fields,
            sample_ids=tuple(dataset.sample_id(sample) for sample in samples.tolist()),
        )

    def _made_batch(self, rows: Sequence[Row], micro_rows: int) -> Batch:
        """The same for a method that makes its own examples."""
        dataset = self.dataset
        examples = [self._made(sample, row.epoch) for row in rows for sample in row.samples.tolist()]
        examples += self._fillers(examples, micro_rows)
        targets = np.concatenate([example.targets for example in examples])
        return collate(
            examples,
            fields={"target_bytes": torch.from_numpy(dataset.target_bytes(targets))},
            sample_ids=[dataset.sample_id(sample) for row in rows for sample in row.samples.tolist()],
        )

    def _made(self, sample: int, epoch: int | None) -> Example:
        """The example of a sample in an epoch."""
        assert self.example is not None
        key = (HELD_OUT, 0, sample) if epoch is None else (self.seed, epoch, sample)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        owners = self.dataset.owners
        made = self.example(*map(self.dataset.table.ids, range(owners[sample], owners[sample + 1])), random)
        longest = max(len(made.inputs), 0 if made.source is None else len(made.source))
        if longest > self.lengths[sample]:
            raise ValueError(f"a method made {longest} tokens where it announced at most {self.lengths[sample]}")
        return made

    def _fillers(self, examples: Sequence[Example], micro_rows: int) -> list[Example]:
        """Untrained examples that fill up a micro-batch: on the decoder's side and on the encoder's."""
        if not self.pad_rows and examples:
            return []
        like = examples[0] if examples else self._made(0, None)
        inputs = sum(len(example.inputs) for example in examples)
        if like.source is None:
            fill = self._padding(inputs, micro_rows)
            return [filler(like, pad_id=self.dataset.pad_id, inputs=size, source=0) for size in fill]
        if not self.pad_rows:
            return [filler(like, pad_id=self.dataset.pad_id, inputs=1, source=1)]
        # One row more than there are, so that there is something to fill on both sides, in as many sequences.
        room = (micro_rows + 1) * self.sequence_length
        rooms = room - inputs, room - sum(len(example.source) for example in examples if example.source is not None)
        count = -(-max(rooms) // self.sequence_length)
        sides = [[size // count + (at < size % count) for at in range(count)] for size in rooms]
        return [
            filler(like, pad_id=self.dataset.pad_id, inputs=inputs, source=source)
            for inputs, source in zip(*sides, strict=True)
        ]

    def _padding(self, tokens: int, micro_rows: int) -> list[int]:
        """Lengths of the untrained sequences that fill up a micro-batch of `tokens` tokens."""
        if not self.pad_rows:
            return [] if tokens else [1]
        whole, rest = divmod(micro_rows * self.sequence_length - tokens, self.sequence_length)
        return [self.sequence_length] * whole + [rest] * (rest > 0)


class _Walk:
    """One source, walked epoch after epoch; under a curriculum stage after stage."""

    def __init__(self, packing: Packing, *, first: int, seed: int, shuffle: bool, purpose: int) -> None:
        self._packing = packing
        self._first = first
        self._seed = f"{seed}/{purpose}"
        self._shuffle = shuffle
        self._plans: dict[tuple[int, int], EpochPlan] = {}
        self._stages: dict[int, _Stage] = {}
        self._ranks: Ints | None = None
        self._values: Sequence[float] = [1.0]
        self._begins: Sequence[int] = [0]
        self._kept = 1 if len(packing.lengths) > _MANY else 8

    @property
    def rows(self) -> int:
        return self._packing.rows

    def stage(self, ranks: Ints, values: Sequence[float], begins: Sequence[int]) -> None:
        """Walk in stages: from row `begins[i]` on the share `values[i]` of the samples, in the order of `ranks`."""
        self._ranks, self._values, self._begins = ranks, values, begins

    def row(self, number: int) -> Row:
        """The row walked as number `number` since the beginning of the run."""
        at = bisect_right(self._begins, number) - 1
        stage = self._stage(at)
        epoch, place = divmod(number - self._begins[at], stage.packing.rows)
        samples = self._plan(at, epoch).row(place)
        chosen = samples if stage.samples is None else stage.samples[samples]
        # An epoch of a stage is no other epoch: what a method makes of a sample must not be the same again.
        return Row(chosen + self._first, (at << 32) + epoch)

    def in_order(self) -> Iterator[Row]:
        """Every row once, in the order of the samples."""
        plan = self._packing.plan(seed="", epoch=0, shuffle=False)
        for at in range(self.rows):
            yield Row(plan.row(at) + self._first, None)

    def tokens(self, rows: int, lengths: Ints) -> int:
        """Tokens in the first `rows` rows of the run."""
        total = 0
        for at, begin in enumerate(self._begins):
            end = self._begins[at + 1] if at + 1 < len(self._begins) else rows
            if min(end, rows) <= begin:
                continue
            stage = self._stage(at)
            mine = lengths[self._first : self._first + len(self._packing.lengths)]
            mine = mine if stage.samples is None else mine[stage.samples]
            epochs, rest = divmod(min(end, rows) - begin, stage.packing.rows)
            plan = self._plan(at, epochs)
            partial = [plan.row(place) for place in range(rest)]
            total += epochs * int(mine.sum()) + sum(int(mine[samples].sum()) for samples in partial)
        return total

    def _stage(self, at: int) -> _Stage:
        stage = self._stages.get(at)
        if stage is None:
            stage = _Stage(self._packing, None)
            if self._ranks is not None and self._values[at] < 1:
                stage = _Stage.of(self._packing, pool(self._ranks, self._values[at]))
            self._stages = dict([*list(self._stages.items())[-self._kept :], (at, stage)])
        return stage

    def _plan(self, at: int, epoch: int) -> EpochPlan:
        plan = self._plans.get((at, epoch))
        if plan is None:
            seed = self._seed if self._ranks is None else f"{self._seed}/{at}"
            plan = self._stage(at).packing.plan(seed=seed, epoch=epoch, shuffle=self._shuffle)
            # Others are kept because an update may reach from one into the next, and prefetching is ahead.
            self._plans = dict([*list(self._plans.items())[-self._kept :], ((at, epoch), plan)])
        return plan


@dataclass(frozen=True)
class _Stage:
    """samples: the numbers of the samples of a stage inside their source; None: all of them.  packing: their rows."""

    packing: Packing
    samples: Ints | None

    @staticmethod
    def of(whole: Packing, samples: Ints) -> _Stage:
        lengths = whole.lengths[samples]
        return _Stage(Packing(lengths, capacity=whole.capacity, best_fit=whole.best_fit), samples)
