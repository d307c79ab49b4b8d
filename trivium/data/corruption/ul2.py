"""UL2: a mixture of denoisers, from short holes to a missing end (Tay et al. 2022, arXiv 2205.05131).

R  regular     short spans, 15 %              like T5
X  extreme     long spans, or half of the text
S  sequential  the last quarter of the text   like a prefix language model

Which one it is stands in front of the text as a mode token, if there is one for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from trivium.data.corruption.example import Corrupted, tokens
from trivium.data.corruption.spans import continue_text, corrupt_spans
from trivium.data.table import Ints

Mode = Literal["R", "S", "X"]
MODES: tuple[Mode, ...] = ("R", "S", "X")


class Denoiser(NamedTuple):
    """One part of the mixture; the sequential one has no length of spans."""

    mode: Mode
    rate: float
    mean_length: float | None = None


MIXTURE = (
    Denoiser("R", 0.15, 3),
    Denoiser("R", 0.15, 8),
    Denoiser("S", 0.25),
    Denoiser("X", 0.5, 3),
    Denoiser("X", 0.5, 8),
    Denoiser("X", 0.15, 64),
    Denoiser("X", 0.5, 64),
)
"""The seven denoisers of the paper, each as likely as any other."""


def mixture_of_denoisers(
    ids: Ints,
    random: np.random.Generator,
    *,
    sentinels: Sequence[int],
    modes: Mapping[Mode, int] | None = None,
    denoisers: Sequence[Denoiser] = MIXTURE,
    roll: bool = False,
) -> Corrupted:
    """One of the denoisers, drawn for this text.

    modes: the token that stands in front, by mode. roll: as in `corrupt_spans`.
    """
    denoiser = denoisers[int(random.integers(len(denoisers)))]
    if denoiser.mean_length is None:
        made = continue_text(ids, sentinel=sentinels[0], rate=denoiser.rate)
    else:
        made = corrupt_spans(
            ids, random, sentinels=sentinels, rate=denoiser.rate, mean_length=denoiser.mean_length, roll=roll
        )
    return made if modes is None else Corrupted(tokens(modes[denoiser.mode], made.source), made.target)
