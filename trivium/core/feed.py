"""The training data of a run as the method sees it: the next update, whatever the run has been through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.core.state import Progression
from trivium.data.batch import Batch
from trivium.data.samples import Sample

if TYPE_CHECKING:
    from trivium.data.loader import Loader, Prefetched


class LoaderFeed:
    """Walks a loader from the saved position on; batches are prepared ahead by a thread."""

    def __init__(self, loader: Loader, progression: Progression, prefetch: int) -> None:
        self.loader = loader
        self.progression = progression
        self.prefetch = prefetch
        self._ahead: Prefetched[list[Batch]] | None = None

    def batches(self) -> list[Batch]:
        """This rank's micro-batches of the next update."""
        if self._ahead is None:
            self._ahead = self.loader.prefetched(self.progression.position, self.prefetch)
        self.progression.position += 1
        return next(self._ahead)

    def samples(self) -> list[Sample]:
        """This rank's raw samples of the next update."""
        self.progression.position += 1
        return self.loader.samples(self.progression.position - 1)

    def consumed(self) -> list[str]:
        """Ids of the samples of the latest update, over all ranks; the same for any number of them."""
        return self.loader.sample_ids(self.progression.position - 1)

    def measures(self) -> dict[str, float]:
        """What a curriculum says about the latest update; the same for any number of ranks."""
        return self.loader.measures(self.progression.position - 1)

    def close(self) -> None:
        """Ends the thread."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
