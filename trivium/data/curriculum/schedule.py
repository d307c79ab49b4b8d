"""Competence: which share of the samples, the easiest first, may be drawn in an update.

Competence-based sampling (Platanios et al. 2019, arXiv:1903.09848): an update draws evenly from the samples whose rank
of difficulty is at most c(t). Here c moves in up to a hundred stages. Within a stage its samples are walked as any data
is: packed, shuffled, epoch after epoch. So sample ids stay a function of (seed, position), no sample comes twice before
all of the stage were there, and the last stage, with all samples, is ordinary training.

    linear       c(t) = c0 + (1 - c0) t                 t: 0 at the first update, 1 at `until`
    root         c(t) = (c0^p + (1 - c0^p) t)^(1/p)     p = 2 is the paper's square root
    exponential  c(t) = c0^(1 - t)
    step         c(t) = c0 + (1 - c0) floor(t n) / n    n steps
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivium.data.order import shuffle_keys

if TYPE_CHECKING:
    from trivium.recipe import CurriculumSettings

STAGES = 100
"""How often a competence that grows smoothly moves, at most."""

Ints = NDArray[np.int64]


class Competence:
    """The stages of a run of `updates` updates.

    begins: first update of each stage.  values: competence in it; the last stage has all samples.
    """

    def __init__(self, settings: CurriculumSettings, *, updates: int) -> None:
        end = math.ceil(settings.until * updates)
        count = min(settings.steps if settings.pacing == "step" else STAGES, end)
        times = [number / count for number in range(count)] if settings.start < 1 else []
        self.begins = [*(math.floor(time * end) for time in times), end if times else 0]
        self.values = [*(competence(settings, time) for time in times), 1.0]

    def stage(self, update: int) -> int:
        """The stage of an update."""
        return bisect_right(self.begins, update) - 1


def competence(settings: CurriculumSettings, time: float) -> float:
    """c(t) for 0 <= t <= 1."""
    start = settings.start
    if settings.pacing == "linear":
        return start + (1 - start) * time
    if settings.pacing == "exponential":
        return float(start ** (1 - time))
    if settings.pacing == "step":
        return start + (1 - start) * math.floor(time * settings.steps + 1e-9) / settings.steps
    power = settings.power
    return float((start**power + (1 - start**power) * time) ** (1 / power))


def ranked(difficulty: NDArray[np.float64], *, order: str, seed: int | str) -> Ints:
    """Sample numbers in the order in which they join; samples equally hard join in a random order of the seed."""
    keys = shuffle_keys(len(difficulty), seed=seed, epoch=0, purpose="curriculum")
    if order == "random":
        return np.argsort(keys, kind="stable")
    return np.lexsort((keys, difficulty if order == "easy_first" else -difficulty))


def pool(ranks: Ints, value: float) -> Ints:
    """The samples that may be drawn at a competence, in the order of their numbers; at least one."""
    return np.sort(ranks[: max(1, math.ceil(value * len(ranks) - 1e-9))])
