"""What a run would need on a machine: memory, time and cost of a recipe, from its shape and a description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.core.machines import MachineDescription, Range, update_seconds
from trivium.core.plan import MARGIN, Forecast, forecast, setting_that_fits
from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.config import ResolvedRecipe
    from trivium.models.config import ModelConfig


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine.

    ranks:    processes, one for each device that takes part.
    update:   seconds of one update.
    seconds:  of the whole run, with its checkpoints.
    """

    description: MachineDescription
    ranks: int
    forecast: Forecast
    update: Range
    seconds: Range

    @property
    def allowed(self) -> float:
        """Bytes that a run may plan to use on one device."""
        return MARGIN * self.description.memory_gib * 2**30

    @property
    def fits(self) -> bool:
        """Whether one device has the memory."""
        return self.forecast.memory.peak <= self.allowed

    @property
    def advice(self) -> str:
        """A setting that fits, where this one does not."""
        return "" if self.fits else setting_that_fits(self.forecast.memory, self.allowed)

    @property
    def utilisation(self) -> Range:
        """Share of the matrix peak that the model's own operations would use; the typical time is the middle."""
        return Range(*self.description.shares)

    def cost(self, price_per_hour: float) -> Range:
        """Of the whole machine for the time of the run."""
        return self.seconds.scaled(price_per_hour / 3600)


def plan_recipe(resolved: ResolvedRecipe, description: MachineDescription, *, devices: int | None = None) -> Plan:
    """What the recipe would need there.

    devices: that take part; default: one with `engine: single`, otherwise all of the machine.

    The shape of the model must be known (a preset, or a folder that exists); data is read only where the length of
    the run depends on it. Rows are taken to be full, and frozen models as large as they are.
    """
    recipe = resolved.recipe
    config = shape(resolved)
    ranks = count_ranks(resolved, description, devices)
    steps = count_steps(resolved)
    plan = forecast(
        config,
        recipe,
        steps=steps,
        machine=description.machine(),
        trainable=trainable(resolved, config),
        frozen_roles=frozen_models(resolved, config),
        ranks=ranks,
    )
    update = update_seconds(config, recipe, plan, description, ranks=ranks)
    whole = [
        forecast(config, recipe, steps=steps, machine=description.machine(), seconds_per_update=each).seconds or 0.0
        for each in (update.low, update.typical, update.high)
    ]
    return Plan(description, ranks, plan, update, Range(*whole))


def shape(resolved: ResolvedRecipe) -> ModelConfig:
    """The shape of the model, without its weights."""
    recipe = resolved.recipe
    if recipe.model.path is None:
        from trivium.models.build import preset

        return preset(recipe.model.preset or "", recipe.model.config)
    if not Path(recipe.model.path).exists():
        raise ConfigError(
            "the shape of the model is not known: there is no such folder yet",
            where=resolved.where("model", "path"),
            value=recipe.model.path,
            fix="train that model first, or plan with a shape: model.path=null model.preset=llama-3m",
        )
    from trivium.models.folder import read_config

    return read_config(recipe.model.path)


def frozen_models(resolved: ResolvedRecipe, config: ModelConfig) -> float:
    """Models that only run forward, in multiples of the trained one; those not there yet count as one each."""
    from trivium.models.folder import read_config

    found = 0.0
    for role in resolved.method.cls(resolved.method.config).roles().values():
        if role.trainable:
            continue
        there = role.path is not None and (Path(role.path) / "config.json").is_file()
        found += read_config(role.path).parameters() / config.parameters() if there else 1.0
    return found


def count_ranks(resolved: ResolvedRecipe, description: MachineDescription, devices: int | None) -> int:
    """Processes that take part."""
    engine = resolved.recipe.engine.name
    if devices is not None and devices > description.devices:
        raise ConfigError(
            f"{description.name} has {description.devices} devices",
            where="--devices",
            value=devices,
            fix="give at most that, or describe a larger machine in a YAML file",
        )
    if engine == "single":
        if devices is not None and devices > 1:
            raise ConfigError(
                "the engine 'single' uses one device",
                where="--devices",
                value=devices,
                fix="add engine.name=ddp or engine.name=fsdp2",
            )
        return 1
    return devices or description.devices


def trainable(resolved: ResolvedRecipe, config: ModelConfig) -> int | None:
    """Parameters that train, None for all of them; only transforms need torch to be counted."""
    if not resolved.transforms:
        return None
    from trivium.drivers.session import count_trainable
    from trivium.tokenizers.tokenizer import Tokenizer

    folder = Path(resolved.recipe.tokenizer or resolved.recipe.model.path or "")
    there = (folder / "tokenizer.json").is_file()
    return count_trainable(resolved, config, Tokenizer.load(folder) if there else _Words())[0]


class _Words:
    """Stands in for a tokenizer that is not there yet: a token a word."""

    def encode(self, text: str) -> list[int]:
        return [0] * max(1, len(text.split()))


def count_steps(resolved: ResolvedRecipe) -> int:
    """Updates of the run; reads the data only for `train.epochs`."""
    train, data = resolved.recipe.train, resolved.recipe.data
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return max(1, math.ceil(train.tokens / (train.batch_size * data.sequence_length)))
    from trivium.combinations import missing_things

    missing = [problem for problem in missing_things(resolved) if problem.key.startswith(("data", "tokenizer"))]
    if missing:
        raise ConfigError(
            "the length of the run is given in train.epochs, and the data cannot be read: " + missing[0].text,
            where=missing[0].where,
            fix="plan with a number of updates instead: train.epochs=null train.steps=1000",
        )
    return _steps_of_epochs(resolved)


def _steps_of_epochs(resolved: ResolvedRecipe) -> int:
    from trivium.core.distributed import Processes
    from trivium.drivers.session import make_loader, open_split, run_length
    from trivium.tokenizers.tokenizer import Tokenizer

    recipe = resolved.recipe
    tokenizer = Tokenizer.load(recipe.tokenizer or recipe.model.path or "")
    method = resolved.method.cls(resolved.method.config)
    dataset = open_split(recipe, method, tokenizer, recipe.data.train)
    return run_length(recipe, make_loader(recipe, method, dataset, Processes()))


def as_dict(plan: Plan) -> dict[str, Any]:
    """JSON values of everything the three commands say."""
    forecast_ = plan.forecast.as_dict()
    return {
        "machine": plan.description.model_dump(mode="json"),
        "ranks": plan.ranks,
        "parameters": plan.forecast.parameters,
        "steps": plan.forecast.steps,
        "tokens": plan.forecast.tokens,
        "flops": plan.forecast.flops,
        "memory": forecast_["memory"],
        "peak_memory_bytes": forecast_["peak_memory_bytes"],
        "checkpoint_bytes": plan.forecast.checkpoint_bytes,
        "disk_bytes": plan.forecast.disk_bytes,
        "fits": plan.fits,
        "advice": plan.advice,
        "utilisation": vars(plan.utilisation),
        "seconds_per_update": vars(plan.update),
        "seconds": vars(plan.seconds),
    }
