"""The shape of a comparison: everything `trivium compare` reads.

A comparison is one base model (or several), one labelled data set with a frozen test part, and *contenders*: ways to
make the base do the task, all with the same budget. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.recipe import LabelSettings, Sources


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(value: Any) -> Any:
    """Names alone mean the contenders as they are built in."""
    if not isinstance(value, list):
        return value
    return {entry: {} if isinstance(entry, str) else entry for entry in value if isinstance(entry, str)} or value


class PromptSettings(StrictModel):
    """How the task is put to a model that is only prompted."""

    template: str = "{text}\nLabel:"
    """What stands before the answer; `{text}` is the text."""
    answers: dict[str, str] = Field(default_factory=dict)
    """The words that stand for each label; default: a space and the label itself."""
    separator: str = "\n\n"
    """Between examples, and before the question."""
    shots: int = Field(8, ge=1)
    """Examples of a prompt with examples, as many of each label as possible, drawn by the seed."""
    empty: list[str] = Field(default=["", "N/A", "[MASK]"])
    """Texts without content whose answers say what the prompt alone prefers (contextual calibration)."""

    @model_validator(mode="after")
    def _has_the_text(self) -> PromptSettings:
        if "{text}" not in self.template:
            problem = "the template does not hold the text"
            raise ConfigError(problem, value=self.template, fix="write {text} where it goes")
        return self


class Contender(StrictModel):
    """One way to make the base do the task; what is not given is as in the built-in contender of this name."""

    like: str | None = None
    """A built-in contender that this one differs from."""
    prompt: Literal["generate", "likelihood"] | None = None
    """Not trained: the model writes the label, or the likelihoods of the labels are compared."""
    examples: bool | None = None
    """Whether the prompt holds examples (`prompt.shots`)."""
    calibrate: bool | None = None
    """Whether likelihoods are divided by those after texts without content (Zhao et al. 2021)."""
    transforms: list[dict[str, Any]] | None = None
    """Changes to the model before it is trained, as in a recipe."""
    train: dict[str, Any] | None = None
    """Settings of the training, as in a recipe."""
    method: dict[str, Any] | None = None
    """Settings of the method `classification`."""
    lrs: list[float] | None = Field(None, min_length=1)
    """Learning rates that are tried with the first seed; the best on the validation part is taken for all."""
    pretrain: float | None = Field(None, gt=0, lt=1)
    """Share of the budget that first goes into more pretraining on the texts of the training part."""

    @model_validator(mode="after")
    def _prompted_or_trained(self) -> Contender:
        trained = [
            name for name in ("transforms", "train", "method", "lrs", "pretrain") if getattr(self, name) is not None
        ]
        if self.prompt is not None and trained:
            raise ConfigError(
                f"a contender that is only prompted has no {trained[0]}", fix=f"delete prompt, or {trained[0]}"
            )
        return self


BUILT_IN: dict[str, dict[str, Any]] = {
    "zero_shot": {"prompt": "generate", "examples": False},
    "few_shot": {"prompt": "generate", "examples": True},
    "likelihood": {"prompt": "likelihood", "examples": False, "calibrate": True},
    "few_shot_likelihood": {"prompt": "likelihood", "examples": True, "calibrate": True},
    "head": {"transforms": [{"name": "trainable", "head": True}], "lrs": [1e-2, 3e-2]},
    "last_layers": {"transforms": [{"name": "trainable", "head": True, "last_layers": 2}], "lrs": [5e-4, 2e-3]},
    "full": {"lrs": [3e-4, 1e-3]},
    "lora": {"transforms": [{"name": "lora", "rank": 8, "alpha": 16}], "lrs": [1e-3, 4e-3]},
    "sequential": {
        "transforms": [{"name": "bottleneck", "reduction": 8, "places": ["attention", "mlp"]}],
        "lrs": [1e-3, 4e-3],
    },
    "parallel": {
        "transforms": [{"name": "bottleneck", "reduction": 8, "parallel": True, "scale": 4.0}],
        "lrs": [1e-3, 4e-3],
    },
    "prefix": {"transforms": [{"name": "prefix_tuning", "tokens": 16}], "lrs": [3e-3, 1e-2]},
    "soft_prompt": {"transforms": [{"name": "prompt_tuning", "tokens": 16}], "lrs": [1e-2, 3e-2]},
    "pretrained_full": {"pretrain": 0.5, "lrs": [3e-4, 1e-3]},
}
"""The contenders that `contenders` may name, with learning rates that suit small models."""


class ComparisonData(StrictModel):
    """The labelled data."""

    train: Sources
    """Rows to learn from."""
    validation: Sources = Field(default_factory=list)
    """Rows that learning rates are chosen by; default: a tenth of the training rows."""
    test: Sources = Field(default_factory=list)
    """Rows that all are measured on, once; default: a fifth of the training rows."""
    labels: LabelSettings = Field(default_factory=LabelSettings)
    """How the rows are read, as in a recipe."""
    sequence_length: int = Field(128, ge=8)
    """Tokens of the longest text; longer ones are cut."""


class Budget(StrictModel):
    """What every contender may spend; a try of a learning rate costs it once more."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows."""
    steps: int | None = Field(None, ge=1)
    """Updates."""
    batch_size: int = Field(32, ge=1)
    """Rows in one update."""

    @model_validator(mode="after")
    def _one_length(self) -> Budget:
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError("give exactly one of budget.epochs and budget.steps", fix="budget.epochs=3")
        return self


class Comparison(StrictModel):
    """A whole comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the comparison; its folder is `<runs>/<name>`."""
    runs: str = "runs"
    """Folder that holds it."""
    base: Annotated[list[str], BeforeValidator(_several)] = Field(min_length=1)
    """Folder of the base model, or several."""
    data: ComparisonData
    """The task."""
    budget: Budget
    """What each contender may spend."""
    contenders: Annotated[dict[str, Contender], BeforeValidator(_named)] = Field(
        default_factory=lambda: {name: Contender() for name in BUILT_IN}
    )
    """Names of built-in contenders, or own ones by name; default: all that are built in."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Seeds of every contender: of its first values, its order of rows and the examples in its prompt."""
    probe: Sources = Field(default_factory=list)
    """General text that forgetting is measured on: bits per byte before and after; default: not measured."""
    probe_rows: int = Field(200, ge=1)
    """Most documents of the probe."""
    max_forgetting: float | None = Field(None, ge=0)
    """Contenders that forget more (increase of bits per byte on the probe) are not recommended."""
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    """How the task is put to contenders that are only prompted."""
    jobs: int = Field(1, ge=1)
    """Runs at the same time, which share the cores."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Of the confidence intervals; 1 - level is where a difference counts as significant."""

    def resolved(self) -> dict[str, Contender]:
        """Every contender with what it takes from the built-in one; ConfigError for an unknown name."""
        from trivium.nearest import nearest

        found = {}
        for name, own in self.contenders.items():
            base = own.like or name
            given = own.model_dump(exclude_unset=True, exclude={"like"})
            if base not in BUILT_IN and (own.like is not None or not given):
                near = nearest(base, BUILT_IN)
                raise ConfigError(
                    "there is no built-in contender of this name",
                    where=f"contenders.{name}",
                    value=base,
                    fix=f"did you mean {near}?" if near else f"known: {', '.join(BUILT_IN)}",
                )
            found[name] = Contender.model_validate({**BUILT_IN.get(base, {}), **given})
        return found


def resolve_comparison(given: Any, overrides: Any = ()) -> Comparison:
    """Reads, overrides and checks a comparison: a YAML file, or the same tree in Python; or a ConfigError."""
    from trivium.config import Chooser, read_tree
    from trivium.problems import fields_below, raise_first
    from trivium.recipe import SHORTHAND

    plain = given.model_dump(exclude_unset=True) if isinstance(given, Comparison) else given
    shorthand = {**SHORTHAND, "data.test": "[]", "data.test.*": "path", "probe": "[]", "probe.*": "path"}
    tree = read_tree(plain, overrides, shorthand=shorthand, what="comparison")
    choose = Chooser(tree, dict(fields_below(Comparison)))
    checked = choose.rest(Comparison)
    raise_first(choose.problems)
    assert isinstance(checked, Comparison)
    return checked
