"""What was sketched of every document, left on the disk and read where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.words import Hashes


class Shelf:
    """Values of all documents, in the files of all parts, by the number of the document in the corpus.

    width:  values of each document, where all have as many.
    counts: else the name of the sketch that says how many each has.
    """

    def __init__(
        self,
        sketches: Sequence[Mapping[str, Path]],
        name: str,
        dtype: str,
        *,
        width: int = 1,
        counts: str | None = None,
    ) -> None:
        self.width = width
        self._parts = [mapped(sketch[name], dtype) for sketch in sketches]
        self._ends = [
            np.cumsum(np.fromfile(sketch[counts], dtype="<i8")) if counts else np.zeros(0, dtype=np.int64)
            for sketch in sketches
        ]
        sizes = [
            len(ends) if counts else len(part) // width for part, ends in zip(self._parts, self._ends, strict=True)
        ]
        self._starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """[k, width] the values of these documents."""
        found = np.empty((len(numbers), self.width), dtype=self._parts[0].dtype if self._parts else np.uint8)
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            wanted = parts == part
            found[wanted] = self._parts[part].reshape(-1, self.width)[numbers[wanted] - self._starts[part]]
        return found

    def __getitem__(self, number: int) -> NDArray[Any]:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        ends = self._ends[part]
        inside = number - int(self._starts[part])
        return self._parts[part][int(ends[inside - 1]) if inside else 0 : int(ends[inside])]


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared elements divided by all, of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    total = len(one) + len(other) - shared
    return shared / total if total else 1.0


def mapped(path: Path, dtype: str) -> NDArray[Any]:
    """A file of numbers, read where it is looked at."""
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
