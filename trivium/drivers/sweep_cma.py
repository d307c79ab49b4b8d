"""Covariance matrix adaptation (Hansen 2016, arXiv:1604.00772) over the ranges of a space, from the trials alone.

Optuna's own sampler keeps its state as a pickle in the study. Nothing is unpickled here: the state is a function of
the finished generations, so it is computed again from their values, which costs milliseconds and resumes exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.search_space import Axis

SIGMA = 1 / 6
"""First standard deviation, as a share of each range; the mean begins in the middle."""


@dataclass(frozen=True)
class Member:
    """A finished trial of a generation; less of `value` is better."""

    generation: int
    values: Mapping[str, Any]
    value: float


def propose(
    axes: Sequence[Axis], finished: Sequence[Member], *, seed: int, population: int | None
) -> tuple[dict[str, Any], int]:
    """(values for the axes, the generation they belong to); the same trials and seed give the same values."""
    import cmaes

    size = population or 4 + math.floor(3 * math.log(max(1, len(axes))))
    # One axis needs no covariance, but the library wants two: the second moves nothing.
    width = max(2, len(axes))
    optimizer = cmaes.CMA(
        mean=np.full(width, 0.5), sigma=SIGMA, bounds=np.tile([0.0, 1.0], (width, 1)), seed=seed, population_size=size
    )
    while True:
        members = [one for one in finished if one.generation == optimizer.generation][:size]
        if len(members) < size:
            break
        optimizer.tell([(_places(axes, one.values, width), one.value) for one in members])
    drawn = optimizer.ask()
    values = {axis.key: value_at(axis, float(place)) for axis, place in zip(axes, drawn, strict=False)}
    return values, optimizer.generation


def _places(axes: Sequence[Axis], values: Mapping[str, Any], width: int) -> Any:
    places = [place_of(axis, values[axis.key]) for axis in axes]
    return np.array(places + [0.5] * (width - len(places)))


def value_at(axis: Axis, place: float) -> int | float:
    """The value at a place from 0 to 1 of a range; whole numbers and steps take equal shares."""
    points = axis.points
    if points is not None:
        point: int | float = points[min(len(points) - 1, int(place * len(points)))]
        return point
    low, high = _ends(axis)
    value = low + place * (high - low)
    found = math.exp(value) if axis.dimension.log else value
    inside = min(max(found, float(axis.dimension.low or 0)), float(axis.dimension.high or 0))
    return round(inside) if axis.whole else inside


def place_of(axis: Axis, value: float) -> float:
    """The inverse of `value_at`; of values that share a stretch, the middle of it."""
    points = axis.points
    if points is not None:
        nearest = min(range(len(points)), key=lambda number: abs(points[number] - value))
        return (nearest + 0.5) / len(points)
    low, high = _ends(axis)
    return ((math.log(value) if axis.dimension.log else value) - low) / (high - low)


def _ends(axis: Axis) -> tuple[float, float]:
    low, high = axis.ends
    return (math.log(low), math.log(high)) if axis.dimension.log else (float(low), float(high))
