"""A ladder of small models for a compute budget: which sizes, how many tokens, which batch and learning rate.

    levels    three of equal compute, C, 3 C and 9 C; on each four sizes from a third to three times
              N = sqrt(C / 120) (20 tokens for each parameter, Hoffmann et al. 2022), or where that is below the
              smallest model, from that to three times it
    held out  one run of 27 C, of the size that the law fitted to the others calls best
    shape     width from 16 on; depth, heads and MLP in the recipe's own proportions
    batch     batch0 (C / C0)^0.327 from the recipe's own at its own compute C0 (the exponent of Bi et al. 2024,
              DeepSeek LLM, arXiv:2401.02954), but never so large that fewer than 1000 updates are left, and one row at
              least. Runs of fewer than 300 updates have not left the plateau of word frequencies, and follow no law
    lr        lr0 sqrt(batch / batch0) width0 / width (Malladi et al. 2022, arXiv:2205.10287; Yang et al. 2022,
              arXiv:2203.03466)

C = 6 N D throughout, with N = `plan.matrix_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivium.core.plan import matrix_parameters
from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.models.config import ModelConfig

LEVELS, FACTOR, SIZES = 3, 3.0, 4
SPAN = 3.0
"""Ratio of the largest size on a level to its middle, and of that to the smallest."""
TOKENS_PER_PARAMETER = 20.0
BATCH_POWER = 0.3271
LEAST_UPDATES, GOOD_UPDATES = 300, 1000
MOST_EPOCHS = 4.0
"""Repeated so often, data is nearly as good as fresh (Muennighoff et al. 2023, arXiv:2305.16264)."""
LEAST_LAYERS = 2
WIDEST = 1 << 14
PARTS = SIZES * sum(FACTOR**level for level in range(LEVELS)) + FACTOR**LEVELS
"""Compute of the whole ladder with the held-out run, in units of C."""


@dataclass(frozen=True)
class Shape:
    """One size of the model: what changes in its configuration, and N."""

    changes: dict[str, Any]
    parameters: int


@dataclass(frozen=True)
class Start:
    """What the recipe itself would do: its compute C0, width, batch in rows, learning rate and tokens in a full row."""

    flops: float
    width: int
    batch_size: int
    lr: float
    row_tokens: float


@dataclass(frozen=True)
class Rung:
    """One run of the ladder."""

    name: str
    level: int
    shape: Shape
    steps: int
    batch_size: int
    lr: float
    tokens: float

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6 * self.shape.parameters * self.tokens


def shapes(config: ModelConfig) -> list[Shape]:
    """All sizes from narrow to wide, the recipe's own proportions kept."""
    from trivium.models.config import ModelConfig

    found: list[Shape] = []
    width = 16
    while width <= WIDEST:
        changes = proportioned(config, width)
        fields = {**config.model_dump(exclude={"family"}), **changes}
        shape = ModelConfig.model_construct(**{**config.__dict__, **fields})
        parameters = matrix_parameters(shape)
        if not found or parameters > found[-1].parameters:
            found.append(Shape(changes, parameters))
        width += 8 if width < 64 else 16 if width < 1024 else 128
    return found


def proportioned(config: ModelConfig, width: int) -> dict[str, Any]:
    """Fields of a model of this width, with depth, heads and MLP in the proportions of `config`."""
    grown = width / config.hidden_size
    layers = max(LEAST_LAYERS, round(config.num_layers * grown))
    if config.head_dim * config.num_heads == config.hidden_size:
        wanted = width / config.head_dim
        # Rotary positions need an even width of each head, and of the part of it that turns.
        even = [h for h in range(1, width + 1) if width % (4 * h) == 0 or (width % (2 * h) == 0 and width // h <= 8)]
        heads = min(even, key=lambda h: abs(math.log(h / wanted)))
        head_dim = width // heads
    else:
        heads, head_dim = max(1, round(config.num_heads * grown)), config.head_dim
    most = max(1, round(heads * config.num_kv_heads / config.num_heads))
    changes: dict[str, Any] = {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": max(k for k in range(1, most + 1) if heads % k == 0),
        "head_dim": head_dim,
        "intermediate_size": max(8, round(config.intermediate_size * grown / 8) * 8),
    }
    if config.num_decoder_layers is not None:
        changes["num_decoder_layers"] = max(LEAST_LAYERS, round(config.num_decoder_layers * grown))
    if config.layer_types is not None:
        changes["layer_types"] = [config.layer_types[n % len(config.layer_types)] for n in range(layers)]
    return changes


def nearest_shape(sizes: Sequence[Shape], parameters: float) -> Shape:
    """The size nearest to so many parameters, by ratio."""
    return min(sizes, key=lambda shape: abs(math.log(shape.parameters / parameters)))


def make_rung(name: str, level: int, shape: Shape, flops: float, start: Start) -> Rung:
    """The run of this size with so much compute, its batch and learning rate by the rules of the file docstring."""
    rows = flops / 6 / shape.parameters / start.row_tokens
    wanted = round(start.batch_size * (flops / start.flops) ** BATCH_POWER)
    batch = max(1, min(wanted, int(rows / GOOD_UPDATES)))
    lr = start.lr * math.sqrt(batch / start.batch_size) * start.width / shape.changes["hidden_size"]
    per_update = batch * start.row_tokens
    steps = max(1, round(rows / batch))
    return Rung(name, level, shape, steps, batch, float(f"{lr:.3g}"), steps * per_update)


def ladder(sizes: Sequence[Shape], flops: float, start: Start) -> list[Rung]:
    """The runs for a budget, without the held-out one; ConfigError if it is too small for them."""
    rungs = []
    unit = flops / PARTS
    for level in range(LEVELS):
        compute = unit * FACTOR**level
        middle = math.sqrt(compute / 6 / TOKENS_PER_PARAMETER)
        lowest = max(sizes[0].parameters, middle / SPAN)
        apart = (max(middle, lowest) * SPAN / lowest) ** (1 / (SIZES - 1))
        place = -1
        for number in range(SIZES):
            wanted = lowest * apart**number
            near = min(range(place + 1, len(sizes)), key=lambda at: abs(math.log(sizes[at].parameters / wanted)))
            place = near
            width = sizes[near].changes["hidden_size"]
            rungs.append(make_rung(f"level{level + 1}-w{width:03d}", level, sizes[near], compute, start))
    short = [rung for rung in rungs if rung.steps < LEAST_UPDATES]
    if short:
        raise TooSmall(flops, short[0])
    return rungs


class TooSmall(ConfigError):
    """The budget does not suffice for the smallest ladder."""

    def __init__(self, flops: float, short: Rung) -> None:
        super().__init__(
            f"the budget of {flops:.1e} operations is too small for a ladder: {short.name} would make {short.steps} "
            f"updates, {LEAST_UPDATES} are the least",
            where="--flops",
            value=f"{flops:.3g}",
            fix="give a larger budget, a tokenizer with fewer tokens, or a smaller data.sequence_length or "
            "train.batch_size",
        )


def least_flops(sizes: Sequence[Shape], start: Start) -> float:
    """The smallest budget that suffices, by bisection to one percent."""
    low, high = 1.0, 1e30
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        try:
            ladder(sizes, middle, start)
            high = middle
        except TooSmall:
            low = middle
    return high
