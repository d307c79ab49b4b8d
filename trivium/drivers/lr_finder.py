"""A range test of learning rates (Smith 2017, arXiv:1506.01186): they rise with each update, and the loss says where.

The rate grows by the same factor each time from far too small to too large, on real updates of the recipe. Two places
count: where the smoothed loss falls fastest, and where it has lost half of what it gained. Nothing is written, and the
weights that were changed are thrown away. It is a range, not a proof: a search (`trivium sweep`) is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.combinations import refuse_wrong_combinations
from trivium.config import ResolvedRecipe, resolve
from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.drivers.session import Session

LOW, HIGH = 1e-6, 1.0
UPDATES = 100
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
EDGE = 5
"""Updates at the beginning that say nothing yet."""
SAFE = 10.0
"""The suggestion stays below the rate at which the loss rises by at least this factor."""


@dataclass(frozen=True)
class LearningRates:
    """What a range test found.

    rates, losses, smoothed: of each update.   steepest: where the loss falls fastest.
    diverges:   where half of what was gained is lost again; None if that was not reached.
    suggestion: the smaller of the steepest and a tenth of where it diverges.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    diverges: float | None
    suggestion: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def find_lr(
    recipe: str | Path | Mapping[str, Any] | ResolvedRecipe,
    overrides: Sequence[str] = (),
    *,
    low: float = LOW,
    high: float = HIGH,
    updates: int = UPDATES,
) -> LearningRates:
    """Trains for so many updates with rates from `low` to `high`, and says which would be good.

    Raises ConfigError for methods that make their own data, and where the loss never falls.
    """
    from trivium.drivers.single import opened

    resolved = recipe if isinstance(recipe, ResolvedRecipe) else resolve(recipe, overrides)
    refuse_wrong_combinations(resolved)
    if resolved.method.cls.data_kind == "prompts":
        raise ConfigError(
            "a range test watches the loss, and this method's says nothing about how good the model is",
            where=resolved.where("method"),
            value=resolved.method.name,
            fix="search for train.lr by a reward: 'trivium sweep' with the goal train.reward",
        )
    length = {"steps": updates, "epochs": None, "tokens": None}
    train = resolved.recipe.train.model_copy(update=length)
    resolved = replace(resolved, recipe=resolved.recipe.model_copy(update={"train": train}))
    rates = [low * (high / low) ** (number / (updates - 1)) for number in range(updates)]
    with opened(resolved) as session:
        losses = rising(session, rates)
    return judged(rates[: len(losses)], losses)


def rising(session: Session, rates: Sequence[float]) -> list[float]:
    """The loss of each update, up to one that is not finite or far above the beginning."""
    trainer, losses = session.trainer, list[float]()
    for rate, update in zip(rates, trainer.updates(), strict=False):
        counts = trainer.engine.count(update)
        losses.append(trainer.engine.run(update, counts, step=trainer.progression.step, lr=rate).loss)
        trainer.progression.step += 1
        if not math.isfinite(losses[-1]) or (len(losses) > EDGE and smoothed(losses)[-1] > 2 * smoothed(losses)[0]):
            break
    return losses


def smoothed(losses: Sequence[float]) -> list[float]:
    """The moving average, as if the past before the beginning had been like it."""
    found, mean = list[float](), 0.0
    for number, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


def judged(rates: list[float], losses: list[float]) -> LearningRates:
    """Where the loss falls fastest, and where it is lost again."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    curve = smoothed(finite)
    if len(curve) <= 2 * EDGE or min(curve[EDGE:]) >= curve[EDGE] - 1e-3 * abs(curve[EDGE]):
        raise ConfigError(
            "the loss did not fall at any learning rate",
            where="train.lr",
            value=f"{rates[0]:.2g} to {rates[-1]:.2g}, in {len(losses)} updates",
            fix="check that the data can be learnt: trivium train RECIPE --preflight",
        )
    lowest = min(range(EDGE, len(curve)), key=lambda place: curve[place])
    # The slope over a few updates, for a rate that grows by the same factor each time.
    width = max(1, EDGE // 2)
    places = range(EDGE + width, max(EDGE + width + 1, lowest - width + 1))
    steepest = min(places, key=lambda place: curve[min(place + width, len(curve) - 1)] - curve[place - width])
    level = (curve[lowest] + curve[EDGE]) / 2
    lost = next((place for place in range(lowest, len(curve)) if curve[place] > level), None)
    if lost is None and len(finite) < len(losses):
        lost = len(finite)
    diverges = None if lost is None else rates[lost]
    suggestion = rates[steepest] if diverges is None else min(rates[steepest], diverges / SAFE)
    return LearningRates(rates, losses, curve, rates[steepest], diverges, suggestion)


def drawn(found: LearningRates, *, width: int = 64, height: int = 12) -> str:
    """The smoothed loss over the logarithm of the rate, for a terminal."""
    rates = found.rates[EDGE : len(found.smoothed)]
    curve = found.smoothed[EDGE:]
    top = max(curve[0] + (curve[0] - min(curve)), curve[0])
    low, high = min(curve), min(max(curve), top)
    left, right = math.log(rates[0]), math.log(rates[-1])
    grid = [[" "] * width for _ in range(height)]
    for rate, value in zip(rates, curve, strict=True):
        column = round((math.log(rate) - left) / (right - left) * (width - 1))
        row = round((min(value, high) - low) / ((high - low) or 1.0) * (height - 1))
        grid[height - 1 - row][column] = "*"
    column = round((math.log(found.suggestion) - left) / (right - left) * (width - 1))
    marks = [" "] * width
    marks[min(max(column, 0), width - 1)] = "^"
    labels = [f"{high:8.3f} |"] + ["         |"] * (height - 2) + [f"{low:8.3f} |"]
    lines = [label + "".join(row).rstrip() for label, row in zip(labels, grid, strict=True)]
    ends = f"{rates[0]:.1e}".ljust(width - 7) + f"{rates[-1]:.1e}"
    return "\n".join([*lines, "          " + "".join(marks).rstrip(), f"          {ends}  learning rate"])


def described(found: LearningRates) -> str:
    """The picture and what it says."""
    lost = "nowhere" if found.diverges is None else f"at {found.diverges:.2g}"
    return (
        f"{drawn(found)}\n"
        f"the loss falls fastest at {found.steepest:.2g}; half of what was gained is lost again {lost}\n"
        f"suggestion: train.lr={found.suggestion:.1e}"
    )
