"""What a run would need on a machine: memory, time and cost of a recipe, from its shape and a description."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.core.machines import MachineDescription, Range, update_seconds
from trivium.core.plan import MARGIN, Forecast, Held, forecast, setting_that_fits
from trivium.core.progress import readable_count
from trivium.core.scale import Links, Scaled, Work, scaled
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
        held=held(resolved, config),
        frozen_roles=frozen_models(resolved, config),
        frozen_copies=frozen_models(resolved, config, copies=True),
        ranks=ranks,
    )
    update = update_seconds(config, recipe, plan, description, ranks=ranks)
    whole = [
        forecast(config, recipe, steps=steps, machine=description.machine(), seconds_per_update=each).seconds or 0.0
        for each in (update.low, update.typical, update.high)
    ]
    return Plan(description, ranks, plan, update, Range(*whole))


@dataclass(frozen=True)
class ScalePlan:
    """A recipe on many devices.

    grown: as many rows for each copy as on one device.  same: the recipe's rows in all, where they suffice.
    """

    heading: str
    work: Work
    links: Links
    grown: list[Scaled]
    same: list[Scaled]
    remarks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        both = {name: [one.as_dict() for one in getattr(self, name)] for name in ("grown", "same")}
        return {"work": asdict(self.work), "links": asdict(self.links), **both, "remarks": self.remarks}


def plan_scale(
    resolved: ResolvedRecipe,
    description: MachineDescription,
    *,
    gpus: str,
    seconds: float | None = None,
    tensor: int = 1,
    stages: int = 1,
) -> ScalePlan:
    """What the recipe would do on so many devices (`8,64,1000`); the formulas are in `core/scale.py`."""
    engine = resolved.recipe.engine.name
    if engine == "pipeline" and stages == 1:
        raise ConfigError(
            "a pipeline has stages", where="--stages", value=stages, fix="add --stages 4, or another engine.name"
        )
    if engine == "tensor" and tensor == 1:
        raise ConfigError(
            "tensor parallelism divides matrices",
            where="--tensor",
            value=tensor,
            fix="add --tensor 8, or another engine.name",
        )
    if description.devices > 1 and description.network_gb_per_second is None:
        raise ConfigError(
            f"the network between several of {description.name} is not known",
            where="--machine",
            fix="describe it in a YAML file with network_gb_per_second",
        )
    counts = _counts(gpus, tensor * stages)
    work = measured_work(resolved, description, seconds)
    inside = (description.link_gb_per_second or description.network_gb_per_second or 0.0) * 1e9
    if not inside:
        raise ConfigError(
            f"the links of {description.name} are not known",
            where="--machine",
            value=description.name,
            fix="take h100-8 or a100-80g-8, or describe it in a YAML file with network_gb_per_second",
        )
    outside = (description.network_gb_per_second or 0.0) * 1e9 or inside
    links = Links(description.devices, inside, outside, description.latency_us * 1e-6)
    kind = "ddp" if engine in ("single", "ddp", "tensor", "pipeline") else "fsdp2"
    settings: dict[str, Any] = {"engine": kind, "tensor": tensor, "stages": stages}
    grown = [scaled(work, links, count, **settings) for count in counts]
    enough = [count for count in counts if count // (tensor * stages) <= work.rows]
    same = [scaled(work, links, count, rows=work.rows, **settings) for count in enough]
    remarks = [f"computed, not measured: {kind}, one update on one device takes {work.seconds:.3g} s"]
    if tensor > 1 and counts != [tensor]:
        remarks.append("several copies of a model whose matrices are divided are computed only: `tensor` runs one")
    if len(enough) < len(counts):
        remarks.append(f"more copies than the recipe's {work.rows} rows: raise train.batch_size to use them")
    heading = (
        f"{readable_count(work.parameters)} parameters, {work.rows} rows of {work.row_tokens} tokens on one device"
    )
    return ScalePlan(f"{heading} of {description.name}", work, links, grown, same, remarks)


def _counts(text: str, together: int) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or any(count < 1 or count % together for count in counts):
        several = f", multiples of {together}" if together > 1 else ""
        raise ConfigError(
            f"numbers of devices are whole numbers from 1 up{several}",
            where="--gpus",
            value=text,
            fix=f"such as {8 * together},{64 * together},{1000 * together}" if together > 1 else "such as 8,64,1000",
        )
    return counts


def measured_work(resolved: ResolvedRecipe, description: MachineDescription, seconds: float | None) -> Work:
    """What one device does in one update; without a measurement the typical time of `plan time`."""
    recipe, config = resolved.recipe, shape(resolved)
    plan = forecast(config, recipe, steps=1, machine=description.machine(), held=held(resolved, config))
    if seconds is None:
        seconds = update_seconds(config, recipe, plan, description, ranks=1).typical
    return Work(
        seconds=seconds,
        rows=plan.memory.rows,
        micro_rows=plan.memory.micro_rows,
        row_tokens=recipe.data.sequence_length,
        layers=config.num_layers + (config.num_decoder_layers or 0),
        width=config.hidden_size,
        parameters=plan.parameters,
        trainable=plan.trainable_parameters,
        weight_bytes=4 if recipe.train.precision == "fp32" else 2,
    )


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


def frozen_models(resolved: ResolvedRecipe, config: ModelConfig, *, copies: bool = False) -> float:
    """Models that only run forward, in multiples of the trained one; those not there yet count as one each.

    copies: those alone that do not share their weights with the trained one.
    """
    from trivium.models.folder import read_config

    found = 0.0
    shared = bool(resolved.transforms) and resolved.recipe.engine.name in ("single", "ddp")
    for name, role in resolved.method.cls(resolved.method.config).roles().items():
        if role.trainable or (copies and shared and name != "policy" and role.path is None and role.config is None):
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


def held(resolved: ResolvedRecipe, config: ModelConfig) -> Held:
    """What the policy holds; only transforms need torch to be counted."""
    if not resolved.transforms:
        return Held()
    from trivium.drivers.roles import what_is_held
    from trivium.tokenizers.tokenizer import Tokenizer

    folder = Path(resolved.recipe.tokenizer or resolved.recipe.model.path or "")
    there = (folder / "tokenizer.json").is_file()
    return what_is_held(resolved, config, Tokenizer.load(folder) if there else _Words())


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
