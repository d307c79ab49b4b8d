"""Stateless loading: `update(index)` is a pure function of the index.

Row number `p = index * rows + i` of a run is row `p mod R` of epoch `p div R`, R being the rows of one epoch. Nothing
is remembered between updates, so a resumed run needs one number, and a run on another number of ranks sees the
same samples in each update: rank r takes the rows r, r + world, ... of the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from trivium.data.batch import IGNORE, Batch, Layout
from trivium.data.mixture import Mixture
from trivium.data.packing import EpochPlan, Ints, Packing
from trivium.data.prefetch import Prefetched
from trivium.data.samples import Sample
from trivium.errors import DataError
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.data.dataset import Dataset

__all__ = ["Loader", "Prefetched"]


class Loader:
    """Batches of a data set, in the order of the seed.

    rows:            rows in one update over all ranks and micro-batches.
    micro_rows:      rows in one micro-batch of one rank.
    sequence_length: tokens in a row.
    packing:         `best_fit`: several samples in one row; `none`: each sample is a row.
    shuffle:         a new order each epoch; otherwise the order of the files in each epoch.
    pad_rows:        fill each micro-batch with untrained sequences up to micro_rows * sequence_length tokens, for
                     compiled models and pipelines that want one shape.

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
        self._mixture = Mixture([part.weight for part in dataset.parts])
        self._walks = [
            _Walk(
                Packing(
                    dataset.lengths[part.first : part.last], capacity=sequence_length, best_fit=packing == "best_fit"
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
        return float(self.dataset.lengths.sum()) / (self.rows_per_epoch * self.sequence_length)

    def progress(self, index: int) -> list[dict[str, float | str]]:
        """For each source after `index` updates: its share of the rows, the rows and the epochs walked."""
        walked = self._mixture.walked(index * self.rows)
        return [
            {"source": part.name, "share": share, "rows": rows, "epochs": rows / walk.rows}
            for part, share, rows, walk in zip(
                self.dataset.parts, self._mixture.shares, walked, self._walks, strict=True
            )
        ]

    def sample_ids(self, index: int) -> list[str]:
        """Every sample of update `index`, over all ranks."""
        return [
            self.dataset.sample_id(sample)
            for position in range(index * self.rows, (index + 1) * self.rows)
            for sample in self._row(position).tolist()
        ]

    def samples(self, index: int) -> list[Sample]:
        """The raw samples of this rank in update `index`."""
        return [self.dataset.sample(sample) for row in self._rows_of(index) for sample in row.tolist()]

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

    def _rows_of(self, index: int) -> list[Ints]:
        """This rank's rows of an update."""
        return [self._row(index * self.rows + at) for at in range(self.rank, self.rows, self.world)]

    def _row(self, position: int) -> Ints:
        part, number = self._mixture.locate(position)
        return self._walks[part].row(number)

    def _batch(self, rows: Sequence[Ints], micro_rows: int) -> Batch:
        """Rows as one micro-batch, with padding where it is asked for or where there is nothing else."""
        dataset = self.dataset
        samples = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        sequences, owners = dataset.sequences_of(samples)
        inputs, targets = dataset.table.gather(sequences)
        lengths = dataset.table.length[sequences].tolist()
        fill = self._padding(len(inputs), micro_rows)
        if fill:
            inputs = np.concatenate([inputs, np.full(sum(fill), dataset.pad_id, dtype=np.int64)])
            targets = np.concatenate([targets, np.full(sum(fill), IGNORE, dtype=np.int64)])
            lengths += fill
        fields: dict[str, Tensor] = {"target_bytes": torch.from_numpy(dataset.target_bytes(targets))}
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

    def _padding(self, tokens: int, micro_rows: int) -> list[int]:
        """Lengths of the untrained sequences that fill up a micro-batch of `tokens` tokens."""
        if not self.pad_rows:
            return [] if tokens else [1]
        whole, rest = divmod(micro_rows * self.sequence_length - tokens, self.sequence_length)
        return [self.sequence_length] * whole + [rest] * (rest > 0)


class _Walk:
    """One source, walked epoch after epoch."""

    def __init__(self, packing: Packing, *, first: int, seed: int, shuffle: bool, purpose: int) -> None:
        self._packing = packing
        self._first = first
        self._seed = f"{seed}/{purpose}"
        self._shuffle = shuffle
        self._plans: dict[int, EpochPlan] = {}

    @property
    def rows(self) -> int:
        return self._packing.rows

    def row(self, number: int) -> Ints:
        """Samples of the row walked as number `number` since the beginning of the run."""
        epoch, at = divmod(number, self.rows)
        return self._plan(epoch).row(at) + self._first

    def in_order(self) -> Iterator[Ints]:
        """Every row once, in the order of the samples."""
        plan = self._packing.plan(seed="", epoch=0, shuffle=False)
        for at in range(self.rows):
            yield plan.row(at) + self._first

    def _plan(self, epoch: int) -> EpochPlan:
        plan = self._plans.get(epoch)
        if plan is None:
            plan = self._packing.plan(seed=self._seed, epoch=epoch, shuffle=self._shuffle)
            # Two epochs are kept because an update may reach from one into the next.
            kept = {number: old for number, old in self._plans.items() if abs(number - epoch) == 1}
            self._plans = {**kept, epoch: plan}
        return plan
