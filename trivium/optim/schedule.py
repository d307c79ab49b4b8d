"""Learning-rate schedules as pure functions of the update number, so that resuming needs no state.

    cosine            floor + (1 - floor) (1 + cos(pi p)) / 2     p: progress from the end of warm-up to the last update
    cosine_restarts   the same, from the peak again in each cycle (Loshchilov & Hutter 2017, arXiv 1608.03983)
    linear            1 - (1 - floor) p
    polynomial        floor + (1 - floor) (1 - p)^power
    inverse_sqrt      sqrt(w / update), w the length of warm-up (Vaswani et al. 2017, arXiv 1706.03762)
    wsd               warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395); 1 - sqrt(p) is best in
                      Haegele et al. 2024 (arXiv 2405.18392)

One-cycle (Smith & Topin 2018, arXiv 1708.07120) is `cosine` with a long `cosine` warm-up.
"""

from __future__ import annotations

import math

from trivium.recipe import TrainSection

EXPONENTIAL_FLOOR = 1e-3
"""What an exponential decay without a floor ends at: it never reaches zero."""


def warmup_length(settings: TrainSection, total: int) -> int:
    """Updates of warm-up: as set, or 2 % of the run and at most 1000."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, total)
    return min(1000, total // 50)


def learning_rate(step: int, settings: TrainSection, total: int) -> float:
    """Learning rate of update `step` (from 0) in a run of `total` updates.

    Warm-up rises from `warmup_start_ratio` (linearly from lr / warmup, if that is 0) and has reached the peak in its
    last update; the last update of the run reaches `min_lr_ratio` x lr (except `constant` and `inverse_sqrt`).
    """
    warmup = warmup_length(settings, total)
    if step < warmup:
        return settings.lr * _rising((step + 1) / warmup, settings)
    floor = settings.min_lr_ratio
    progress = _progress(step, warmup, total)
    match settings.schedule:
        case "constant":
            return settings.lr
        case "inverse_sqrt":
            return settings.lr * max(floor, math.sqrt(max(warmup, 1) / (step + 1)))
        case "wsd":
            start = max(warmup, total - max(1, round(settings.decay_fraction * total)))
            return settings.lr * _decayed(_progress(step, start, total), settings)
        case "linear":
            return settings.lr * (1 - (1 - floor) * progress)
        case "polynomial":
            return settings.lr * (floor + (1 - floor) * math.pow(1 - progress, settings.schedule_power))
        case "cosine":
            return settings.lr * (floor + (1 - floor) * _cosine(progress))
        case "cosine_restarts":
            within = 1.0 if progress == 1 else settings.schedule_cycles * progress % 1
            return settings.lr * (floor + (1 - floor) * _cosine(within))


def _rising(progress: float, settings: TrainSection) -> float:
    """Share of the peak during warm-up; `progress` is 1 in its last update."""
    start = settings.warmup_start_ratio
    risen = 1 - _cosine(progress) if settings.warmup_shape == "cosine" else progress
    return start + (1 - start) * risen


def _decayed(progress: float, settings: TrainSection) -> float:
    """Share of the peak during the decay of `wsd`."""
    floor = settings.min_lr_ratio
    match settings.decay_shape:
        case "linear":
            return 1 - (1 - floor) * progress
        case "cosine":
            return floor + (1 - floor) * _cosine(progress)
        case "sqrt":
            return floor + (1 - floor) * (1 - math.sqrt(progress))
        case "exponential":
            return math.pow(max(floor, EXPONENTIAL_FLOOR), progress)


def _cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _progress(step: int, start: int, total: int) -> float:
    """0 at `start`, 1 at the last update."""
    if step < start:
        return 0.0
    return min(1.0, (step - start) / max(1, total - 1 - start))
