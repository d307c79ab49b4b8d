"""The section `sweep` of a recipe: which settings are searched, how, and for what. Nothing here imports torch.

    sweep:
      trials: 30
      space:
        train.lr: {low: 1e-5, high: 1e-2, log: true}
        train.warmup_steps: {low: 0, high: 100, step: 20}
        train.schedule: [cosine, wsd]
        train.decay_fraction: {low: 0.1, high: 0.5, when: {train.schedule: wsd}}

`read_search` checks every key and every end of the space against the recipe before any work is done.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import ResolvedRecipe, StrictModel, read_tree, recipe_keys, resolve_tree
from trivium.errors import ConfigError
from trivium.problems import Problem, fields_below, locate, problems_of, raise_first
from trivium.recipe import SHORTHAND

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from trivium.marked_yaml import Node

CORNERS = 32
"""Combinations of ends of the space that are checked before any work."""
OF_THE_SWEEP = {"name", "runs", "seed", "schema_version", "trivium_version", "engine.name", "train.tensorboard"}
"""Keys that the sweep itself sets, or that change nothing that could be measured."""

SMALLER = {
    *("loss", "nll", "perplexity", "bits_per_byte", "mean_absolute_error", "rmse", "ece"),
    *("seconds", "memory", "bytes", "parameters", "parameters.trained"),
}
"""Figures, by the last part of their name, of which less is better."""
COSTS = ("seconds", "tokens_per_second", "memory", "bytes", "parameters", "parameters.trained")
"""Figures of a run besides those that were measured on data."""
MEASURED = ("validation", "train", "evaluation")
"""What stands before the dot of a figure that was measured on data."""

PACKAGES = {"cmaes": "cmaes", "gp": "scipy"}
"""Sampler -> the package it needs besides optuna."""


def _named(value: Any) -> Any:
    """`tpe` and `{name: tpe}` mean the same."""
    return {"name": value} if isinstance(value, str) else value


def _goal(value: Any) -> Any:
    return {"metric": value} if isinstance(value, str) else value


def _goals(value: Any) -> Any:
    """One goal or a list of them."""
    return value if isinstance(value, list) else [value]


def _choices(value: Any) -> Any:
    """A list stands for its choices."""
    return {"choices": value} if isinstance(value, list) else value


class Dimension(StrictModel):
    """One setting that is searched: a list of values, or a range."""

    low: int | float | None = None
    """Lower end of a range."""
    high: int | float | None = None
    """Upper end of a range."""
    log: bool = False
    """Whether the range is even in the logarithm, as learning rates want it."""
    step: int | float | None = Field(None, gt=0)
    """Distance of the values of a range; default: any value (numbers), 1 (whole numbers)."""
    choices: list[Any] | None = None
    """Values to choose among, instead of a range; a list alone means the same."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Searched only where another key of the space, written above it, has this value, or one of these."""

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        ranged = self.low is not None and self.high is not None
        if self.choices is not None:
            if (self.low, self.high, self.step) != (None, None, None) or self.log:
                raise ConfigError("choices and a range exclude each other", fix="give choices, or low and high")
            texts = [json.dumps(choice, sort_keys=True, default=str) for choice in self.choices]
            if len(set(texts)) < max(1, len(texts)):
                raise ConfigError("choices must be several different values", fix="delete what stands there twice")
        elif not ranged:
            raise ConfigError("a range needs low and high", fix="{low: 1e-5, high: 1e-2, log: true}, or a list [a, b]")
        elif not self.low < self.high:  # type: ignore[operator]
            raise ConfigError("low must be less than high", fix="exchange them")
        elif self.log and self.low <= 0:  # type: ignore[operator]
            raise ConfigError("a range that is even in the logarithm must begin above 0", fix="raise low, or drop log")
        elif self.log and self.step is not None:
            raise ConfigError("log and step exclude each other", fix="give the values as a list")
        return self

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether this dimension is searched, given the values chosen above it."""
        return all(
            key in values and values[key] in (wanted if isinstance(wanted, list) else [wanted])
            for key, wanted in self.when.items()
        )


class Goal(StrictModel):
    """What a trial is judged by."""

    metric: str
    """`validation.loss` and its like, `evaluation.accuracy`, `train.loss`, `seconds`, `memory`, `parameters`, ..."""
    direction: Literal["minimize", "maximize"] | None = None
    """Whether less or more of it is better; known for losses, errors and costs."""

    @model_validator(mode="after")
    def _known(self) -> Goal:
        kind, dot, name = self.metric.partition(".")
        if self.metric not in COSTS and (kind not in MEASURED or not name or not dot):
            raise ConfigError(
                f"there is no metric {self.metric}",
                fix=f"one of {', '.join(COSTS)}, or validation.NAME, train.NAME, evaluation.NAME (validation.loss)",
            )
        if self.direction is None and not self.smaller and self.metric != "tokens_per_second":
            raise ConfigError(
                f"is more or less of {self.metric} better?", fix="say direction: maximize, or direction: minimize"
            )
        return self

    @property
    def smaller(self) -> bool:
        """Whether less is better, by the name."""
        return bool({self.metric, self.metric.rpartition(".")[2]} & SMALLER)

    @property
    def maximize(self) -> bool:
        """Whether more is better."""
        return self.direction == "maximize" or (self.direction is None and not self.smaller)

    @property
    def intermediate(self) -> bool:
        """Whether it is known in the middle of a run."""
        return self.metric.startswith(("validation.", "train."))


class SamplerSettings(StrictModel):
    """Who proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "random", "grid"] = "tpe"
    """Tree-structured Parzen estimators, a Gaussian process, covariance adaptation, at random, or every combination."""
    startup_trials: int | None = Field(None, ge=1)
    """Of `tpe` and `gp`: trials at random before the sampler learns from them; default 10."""
    population: int | None = Field(None, ge=4)
    """Of `cmaes`: trials in one generation; default 4 + 3 log(dimensions)."""

    @model_validator(mode="after")
    def _without_effect(self) -> SamplerSettings:
        for name, value, of in (
            ("startup_trials", self.startup_trials, ("tpe", "gp")),
            ("population", self.population, ("cmaes",)),
        ):
            if value is not None and self.name not in of:
                raise ConfigError(
                    f"sweep.sampler.{name} has no effect: the sampler is {self.name}",
                    fix=f"set sweep.sampler.name={of[0]}, or delete {name}",
                )
        return self


class PrunerSettings(StrictModel):
    """Who ends trials that do not look well, by the first goal at each validation."""

    name: Literal["none", "median", "percentile", "asha", "hyperband"] = "none"
    """Never, below the median or a percentile of the others, or by successive halving (asynchronous, or Hyperband)."""
    startup_trials: int | None = Field(None, ge=1)
    """Of `median` and `percentile`: trials that go to their end before any is ended; default 5."""
    warmup: int | None = Field(None, ge=0)
    """Of `median` and `percentile`: validations before which no trial is ended; default 0."""
    percentile: float | None = Field(None, gt=0, lt=100)
    """Of `percentile`: share of the trials, in percent, that may go on; default 25."""
    reduction: int | None = Field(None, ge=2)
    """Of `asha` and `hyperband`: one of so many trials goes on to so many times the validations; default 3."""
    least: int | None = Field(None, ge=1)
    """Of `asha` and `hyperband`: validations that every trial gets; default 1."""

    @model_validator(mode="after")
    def _without_effect(self) -> PrunerSettings:
        owners = {
            "startup_trials": ("median", "percentile"),
            "warmup": ("median", "percentile"),
            "percentile": ("percentile",),
            "reduction": ("asha", "hyperband"),
            "least": ("asha", "hyperband"),
        }
        for name, of in owners.items():
            if getattr(self, name) is not None and self.name not in of:
                raise ConfigError(
                    f"sweep.pruner.{name} has no effect: the pruner is {self.name}",
                    fix=f"set sweep.pruner.name={of[0]}, or delete {name}",
                )
        return self


class SweepSettings(StrictModel):
    """How a sweep goes about it."""

    goals: Annotated[list[Annotated[Goal, BeforeValidator(_goal)]], BeforeValidator(_goals)] = Field(
        default_factory=lambda: [Goal(metric="validation.loss")], min_length=1, max_length=4
    )
    """What trials are judged by; with several goals there is a front of trials that none beats in all of them."""
    sampler: Annotated[SamplerSettings, BeforeValidator(_named)] = Field(default_factory=SamplerSettings)
    """Who proposes the next trial."""
    pruner: Annotated[PrunerSettings, BeforeValidator(_named)] = Field(default_factory=PrunerSettings)
    """Who ends trials that do not look well."""
    trials: int | None = Field(None, ge=1, le=100_000)
    """Trials in all; default: 20, or as many as a grid has points."""
    minutes: float | None = Field(None, gt=0)
    """No trial begins after this time, counted over all calls."""
    seeds: int = Field(1, ge=1, le=100)
    """Runs of each trial, with as many seeds; their mean counts. Trials are ended early by the first of them."""
    processes: int = Field(1, ge=1, le=1024)
    """Trials at the same time. With one, the same trials come out each time."""
    seed: int = Field(0, ge=0, lt=1 << 32)
    """Seed of the sampler."""
    keep: Literal["models", "best", "all"] = "models"
    """Keep the final model of each trial, only those of the best, or the checkpoints as well."""

    @model_validator(mode="after")
    def _together(self) -> SweepSettings:
        metrics = [goal.metric for goal in self.goals]
        if len(set(metrics)) < len(metrics):
            raise ConfigError("a goal stands there twice", fix="delete one of them")
        if len(self.goals) > 1 and self.pruner.name != "none":
            raise ConfigError(
                "trials are ended early by one goal, and there are several",
                fix="set sweep.pruner=none, or keep one goal",
            )
        if len(self.goals) > 1 and self.sampler.name == "cmaes":
            raise ConfigError(
                "the sampler cmaes knows one goal, and there are several", fix="set sweep.sampler=tpe, or keep one goal"
            )
        if self.pruner.name != "none" and not self.goals[0].intermediate:
            raise ConfigError(
                f"{metrics[0]} is known at the end of a run only, so no trial can be ended early by it",
                fix="set sweep.pruner=none, or make validation.loss the goal",
            )
        return self


class SweepSection(SweepSettings):
    """A search for settings: `trivium sweep RECIPE`."""

    space: dict[str, Annotated[Dimension, BeforeValidator(_choices)]] = Field(min_length=1)
    """Key of the recipe -> a list of values, or a range {low: ..., high: ..., log: ..., step: ...}."""


_SHORTHAND = {
    **SHORTHAND,
    "sweep.sampler": "name",
    "sweep.pruner": "name",
    "sweep.goals": "[]",
    "sweep.goals.*": "metric",
}


@dataclass(frozen=True)
class Axis:
    """A searched key with its dimension; `whole` for whole numbers."""

    key: str
    dimension: Dimension
    whole: bool = False

    @property
    def ends(self) -> list[Any]:
        """All choices, or both ends of the range."""
        dimension = self.dimension
        if dimension.choices is not None:
            return dimension.choices
        return [self.number(dimension.low), self.number(dimension.high)]

    @property
    def points(self) -> list[Any] | None:
        """All values, if they can be counted."""
        dimension = self.dimension
        if dimension.choices is not None:
            return dimension.choices
        assert dimension.low is not None and dimension.high is not None
        step = dimension.step or (1 if self.whole and not dimension.log else None)
        if step is None:
            return None
        count = math.floor((dimension.high - dimension.low) / step + 1e-9) + 1
        return [self.number(round(dimension.low + number * step, 12)) for number in range(count)]

    def number(self, value: Any) -> int | float:
        """The value in the type of the setting."""
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Search:
    """A recipe with a checked space around it.

    base: the recipe as it stands, without the section `sweep`.
    """

    settings: SweepSettings
    axes: tuple[Axis, ...]
    base: ResolvedRecipe
    source: Path | None

    @property
    def folder(self) -> Path:
        """Where the sweep lies."""
        return Path(self.base.recipe.runs) / f"{self.base.recipe.name}-sweep"

    @property
    def trials(self) -> int:
        """Trials in all."""
        points = len(self.grid()) if self.settings.sampler.name == "grid" else None
        return min(n for n in (self.settings.trials or points or 20, points) if n is not None)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the space, those of the last key side by side."""
        found: list[dict[str, Any]] = [{}]
        for axis in self.axes:
            longer: list[dict[str, Any]] = []
            for values in found:
                points = (axis.points or []) if axis.dimension.holds(values) else None
                longer += [values] if points is None else [{**values, axis.key: point} for point in points]
            found = longer
        return found

    def recipe(self, values: Mapping[str, Any], **top: Any) -> dict[str, Any]:
        """The recipe of a trial, as a mapping in the user's own words; `top` are further keys (name, runs, ...)."""
        from trivium.marked_yaml import apply_overrides

        tree = copy.deepcopy(self.base.tree)
        changes = [f"{key}={json.dumps(value)}" for key, value in {**values, **top}.items()]
        apply_overrides(tree, changes, shorthand=SHORTHAND)
        plain: dict[str, Any] = tree.plain()
        return plain

    def own(self, key: str) -> Any:
        """The value of a key in the recipe itself; None where it has none."""
        value: Any = self.base.dump()
        for part in key.split("."):
            if isinstance(value, list):
                value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
            else:
                value = value.get(part) if isinstance(value, dict) else None
        return value

    def dump(self) -> dict[str, Any]:
        """The complete recipe with its complete section `sweep`; itself a recipe for `trivium sweep`."""
        space = {axis.key: axis.dimension.model_dump(mode="json", exclude_defaults=True) for axis in self.axes}
        return {**self.base.dump(), "sweep": {"space": space, **self.settings.model_dump(mode="json")}}


def read_search(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Search:
    """Reads, overrides and checks a recipe with a section `sweep`; ConfigError with at most five lines."""
    tree = read_tree(recipe, overrides, shorthand=_SHORTHAND)
    section = tree.value.pop("sweep", None)
    source = Path(recipe) if isinstance(recipe, str | Path) else None
    own = [change for change in overrides if not change.startswith("sweep.")]
    base = resolve_tree(tree, own, source=source)
    if section is None or not isinstance(section.value, dict) or not section.value.get("space"):
        raise ConfigError(
            "this recipe has no sweep.space, so there is nothing to search",
            where=section.where if section is not None else tree.where,
            fix="sweep: {space: {train.lr: {low: 1e-5, high: 1e-2, log: true}}}, or the same as an override",
        )
    settings, dimensions, places = _read_section(section)
    _refuse_useless(dimensions, places, own)
    axes = tuple(Axis(key, one, _whole(base, key, one)) for key, one in dimensions.items())
    search = Search(settings, axes, base, source)
    _refuse_goals(search, section)
    _refuse_sampler(search, section)
    _check_values(search, places)
    return search


def _read_section(section: Node) -> tuple[SweepSettings, dict[str, Dimension], dict[str, str]]:
    """(settings, dimension of each key, where each key was written)."""
    from pydantic import ValidationError

    from trivium.marked_yaml import Node

    root = Node({"sweep": section}, section.where, keys={"sweep": section.where})
    space = section.value["space"]
    if not isinstance(space.value, dict):
        raise ConfigError("sweep.space must be a section with keys of its own", where=space.where, value=space.plain())
    flat = dict(_flattened(space, ""))
    rest = {name: node for name, node in section.value.items() if name != "space"}
    known = {f"sweep.{key}": field for key, field in fields_below(SweepSettings)}
    problems: list[Problem] = []
    settings, dimensions = SweepSettings(), dict[str, Dimension]()
    try:
        settings = SweepSettings.model_validate(Node(rest, section.where, keys=section.keys).plain())
    except ValidationError as error:
        problems += problems_of(error, SweepSettings, root, prefix=("sweep",), known=known)
    for key, (node, where) in flat.items():
        if not isinstance(node.value, dict | list):
            fix = f"[a, b] for some values, {{low: a, high: b}} for a range; to set it, write {key} in the recipe"
            problems.append(Problem(f"sweep.space.{key}", f"{key} is one value, not a space", where, node.plain(), fix))
            continue
        top = Node({"sweep": Node({"space": Node({key: node}, where, {key: where})}, where)}, where)
        try:
            dimensions[key] = Dimension.model_validate(_choices(node.plain()))
        except ValidationError as error:
            own = {f"sweep.space.{key}.{name}": field for name, field in fields_below(Dimension)}
            problems += problems_of(error, Dimension, top, prefix=("sweep", "space", key), known=own)
    raise_first(problems)
    return settings, dimensions, {key: where for key, (_, where) in flat.items()}


def _flattened(node: Node, prefix: str) -> Iterator[tuple[str, tuple[Node, str]]]:
    """Keys of the space may be written with dots or nested: (dotted key, (dimension, where it was written))."""
    for key, below in node.value.items():
        nested = isinstance(below.value, dict) and not set(below.value) & set(Dimension.model_fields)
        if nested and below.value:
            yield from _flattened(below, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (below, node.keys.get(key, below.where))


def _whole(base: ResolvedRecipe, key: str, dimension: Dimension) -> bool:
    """Whether the setting takes whole numbers; where that is not known, whether both ends are written as such."""
    from trivium.models.config import ModelConfig

    fields: dict[str, FieldInfo] = dict(recipe_keys())
    fields.update(fields_below(base.method.cls.Config, "method."))
    fields.update(fields_below(base.optimizer.cls.Config, "train.optimizer."))
    fields.update(fields_below(ModelConfig, "model.config."))
    for number, transform in enumerate(base.transforms):
        fields.update(fields_below(transform.cls.Config, f"transforms.{number}."))
    field = fields.get(key)
    parts = () if field is None else get_args(field.annotation) or (field.annotation,)
    if int in parts or float in parts:
        return float not in parts
    return isinstance(dimension.low, int) and isinstance(dimension.high, int)


def _refuse_useless(dimensions: Mapping[str, Dimension], places: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Keys that cannot be searched, conditions on nothing, and overrides that the search overrides."""
    above: set[str] = set()
    for key, dimension in dimensions.items():
        where = places[key]
        if key in OF_THE_SWEEP:
            raise ConfigError(f"{key} cannot be searched", where=where, fix="delete it from sweep.space")
        for other in dimension.when:
            if other not in above:
                fix = f"write {other} above {key} in sweep.space, or delete the condition"
                raise ConfigError(f"{key} depends on {other}, which is not searched above it", where=where, fix=fix)
        above.add(key)
    for override in overrides:
        key = override.partition("=")[0]
        if key in dimensions:
            raise ConfigError(
                f"{key} has no effect: it is searched",
                where=f"override {override}",
                fix=f"leave it out, or change the space: sweep.space.{key}=...",
            )


def _refuse_goals(search: Search, section: Node) -> None:
    """Goals that this recipe does not measure."""
    _, where = locate(section, ("goals",))
    held_out = bool(search.base.recipe.data.validation)
    for goal in search.settings.goals:
        kind = goal.metric.partition(".")[0]
        if kind in ("validation", "evaluation") and not held_out:
            raise ConfigError(
                f"{goal.metric} is measured on data.validation, and there is none",
                where=where,
                fix="name held-out data: data.validation=FILE; or another goal: sweep.goals=train.loss",
            )
        if kind == "evaluation" and search.base.method.cls.data_kind not in ("labels", "tokens", "questions"):
            raise ConfigError(
                f"the method {search.base.method.name} has no evaluation at its end",
                where=where,
                value=goal.metric,
                fix="use validation.loss",
            )


def _refuse_sampler(search: Search, section: Node) -> None:
    """Samplers that cannot work on this space, or whose packages are not there."""
    name = search.settings.sampler.name
    _, where = locate(section, ("sampler",))
    for package in ("optuna", PACKAGES.get(name, "optuna")):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the sampler {name} needs the package {package}", where=where, fix="pip install 'trivium[sweep]'"
            )
    if search.base.recipe.engine.name != "single":
        raise ConfigError(
            "the trials of a sweep run in one process each",
            where=search.base.where("engine", "name"),
            value=search.base.recipe.engine.name,
            fix="set engine.name=single; sweep.processes runs several trials at a time",
        )
    if name == "grid":
        endless = next((axis.key for axis in search.axes if axis.points is None), None)
        if endless is not None:
            fix = "give it a step, or a list of values; or another sampler: sweep.sampler=tpe"
            raise ConfigError(f"a grid cannot count the values of {endless}", where=where, fix=fix)
    numeric = [axis for axis in search.axes if axis.dimension.choices is None and not axis.dimension.when]
    if name == "cmaes" and not numeric:
        raise ConfigError(
            "the sampler cmaes moves numbers, and the space has no range without a condition",
            where=where,
            fix="set sweep.sampler=tpe",
        )


def _check_values(search: Search, places: Mapping[str, str]) -> None:
    """Each end of each dimension alone, then corners of the whole space: all must be recipes that can run."""
    for axis in search.axes:
        needed = _fulfilling(search, axis)
        for end in axis.ends:
            _check_one(search, {**needed, axis.key: end}, places[axis.key], f"{axis.key}={json.dumps(end)}")
    for values in _corners(search):
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        _check_one(search, values, "sweep.space", words, together=True)


def _fulfilling(search: Search, axis: Axis) -> dict[str, Any]:
    """Values with which this dimension is searched."""
    needed: dict[str, Any] = {}
    by_key = {other.key: other for other in search.axes}
    for key, wanted in axis.dimension.when.items():
        needed |= _fulfilling(search, by_key[key])
        needed[key] = wanted[0] if isinstance(wanted, list) and wanted else wanted
    return needed


def _check_one(search: Search, values: Mapping[str, Any], where: str, shown: str, *, together: bool = False) -> None:
    from trivium.combinations import refuse_wrong_combinations
    from trivium.config import resolve

    try:
        refuse_wrong_combinations(resolve(search.recipe(values)))
    except ConfigError as error:
        problem = f"these values do not go together: {error.problem}" if together else error.problem
        fix = f"{error.fix}; or narrow the space, or add a condition (when: ...)" if together else error.fix
        raise ConfigError(problem, where=where, value=shown, fix=fix) from None


def _corners(search: Search) -> list[dict[str, Any]]:
    """Combinations of ends: all of a small space, some of a large one."""
    if math.prod(len(axis.ends) for axis in search.axes) <= CORNERS:
        chosen = list(itertools.product(*(axis.ends for axis in search.axes)))
    else:
        rng = random.Random(0)
        chosen = [tuple(rng.choice(axis.ends) for axis in search.axes) for _ in range(CORNERS)]
    found = []
    for ends in chosen:
        values: dict[str, Any] = {}
        for axis, end in zip(search.axes, ends, strict=True):
            if axis.dimension.holds(values):
                values[axis.key] = end
        found.append(values)
    return found
