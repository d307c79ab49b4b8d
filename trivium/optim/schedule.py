"""Learning-rate schedules as pure functions of the update number, so that resuming needs no state.

`wsd` (warm-up, stable, decay) is the schedule of Hu et al. 2024 (MiniCPM, arXiv 2404.06395), with linear decay.
"""

from __future__ import annotations

import math

from trivium.recipe import TrainSection


def warmup_length(settings: TrainSection, total: int) -> int:
    """Updates of warm-up: as set, or 2 % of the run and at most 1000."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, total)
    return min(1000, total // 50)


def learning_rate(step: int, settings: TrainSection, total: int) -> float:
    """Learning rate of update `step` (from 0) in a run of `total` updates.

    Warm-up rises linearly from lr / warmup; the last update reaches `min_lr_ratio` x lr (except `constant`).
    """
    warmup = warmup_length(settings, total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    floor = settings.min_lr_ratio
    match settings.schedule:
        case "constant":
            return settings.lr
        case "wsd":
            start = max(warmup, total - max(1, round(settings.decay_fraction * total)))
            fraction = _progress(step, start, total)
            return settings.lr * (1 - (1 - floor) * fraction)
        case "linear":
            return settings.lr * (1 - (1 - floor) * _progress(step, warmup, total))
        case "cosine":
            cosine = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))
            return settings.lr * (floor + (1 - floor) * cosine)


def _progress(step: int, start: int, total: int) -> float:
    """0 at `start`, 1 at the last update."""
    if step < start:
        return 0.0
    return min(1.0, (step - start) / max(1, total - 1 - start))
