"""Strict configuration: typed, nested, nothing unknown, nothing ignored.

`resolve` is the way from a recipe (a file, or a mapping in Python) and overrides (`train.lr=3e-4`) to everything a
run needs to know. It checks the recipe itself and the settings of the method, transforms and optimiser it names,
and imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from trivium.errors import ConfigError

if TYPE_CHECKING:
    from trivium.marked_yaml import Node
    from trivium.problems import Keys, Problem
    from trivium.recipe import Recipe
    from trivium.registry import Folder

SCHEMA_VERSION = 1
"""Version of the shape of recipes; raised together with an entry in `_MIGRATIONS`."""

DEFAULT_OPTIMIZER = "adamw"

_MIGRATIONS: dict[int, Callable[[Node], None]] = {}
"""Version n -> a function that changes a tree of version n in place into one of version n + 1."""


class StrictModel(BaseModel):
    """Base of every configuration class: unknown keys are errors; a field's docstring is its help text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """`steps: true` must not mean one step, as it would for Python and pydantic."""
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if isinstance(data.get(name), bool) and _only_numbers(field.annotation):
                    data = {**data, name: str(data[name]).lower()}
        return data


@dataclass(frozen=True)
class ChosenComponent:
    """A method, transform or optimiser by name, with its class and its checked settings."""

    name: str
    cls: type[Any]
    config: StrictModel

    def dump(self) -> dict[str, Any]:
        """`{name: ..., <every setting>}`."""
        return {"name": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class ResolvedRecipe:
    """A checked recipe with everything it names, and where each value was written."""

    recipe: Recipe
    method: ChosenComponent
    transforms: tuple[ChosenComponent, ...]
    optimizer: ChosenComponent
    overrides: tuple[str, ...]
    source: Path | None
    tree: Node

    def where(self, *keys: str | int) -> str:
        """`file:line`, or the override, in which the value at `keys` was written."""
        from trivium.problems import locate

        return locate(self.tree, keys)[1]

    def dump(self) -> dict[str, Any]:
        """The whole configuration, defaults included, with schema and code version; itself a recipe."""
        from trivium import __version__

        plain = self.recipe.model_dump(mode="json")
        plain.update(schema_version=SCHEMA_VERSION, trivium_version=__version__)
        plain["method"] = self.method.dump()
        plain["transforms"] = [transform.dump() for transform in self.transforms]
        plain["train"]["optimizer"] = self.optimizer.dump()
        return plain

    def to_yaml(self) -> str:
        """`dump()` as YAML text that `resolve` reads back to the same configuration."""
        from trivium.marked_yaml import dump_yaml

        return dump_yaml(self.dump())

    def differences_from_defaults(self) -> dict[str, tuple[Any, Any]]:
        """Dotted key -> (value, default) of everything that is not the default; default None where none exists."""
        found = _differences(self.recipe, "", skip=("method", "transforms", "optimizer", "trivium_version"))
        found["method"] = (self.method.name, None)
        found.update(_differences(self.method.config, "method."))
        for number, transform in enumerate(self.transforms):
            found[f"transforms.{number}"] = (transform.name, None)
            found.update(_differences(transform.config, f"transforms.{number}."))
        if self.optimizer.name != DEFAULT_OPTIMIZER:
            found["train.optimizer"] = (self.optimizer.name, DEFAULT_OPTIMIZER)
        found.update(_differences(self.optimizer.config, "train.optimizer."))
        return found


def resolve(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Reads, overrides and checks a recipe; raises ConfigError with at most five lines.

    recipe:    path of a YAML file, or the same tree built in Python.
    overrides: `a.b.c=value` and, for items of lists, `a.0.b=value`; the value is read as YAML.
    """
    from trivium.recipe import SHORTHAND, Recipe

    plain = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else recipe
    tree = read_tree(plain, overrides, shorthand=SHORTHAND)
    search = tree.value.pop("sweep", None)
    if search is not None and search.value is not None:
        raise ConfigError(
            "this recipe searches for settings (sweep), which one run cannot do",
            where=search.where,
            fix="'trivium sweep' runs the search and writes the best recipe; sweep=null takes the recipe as it stands",
        )
    return resolve_tree(tree, overrides, source=Path(recipe) if isinstance(recipe, str | Path) else None)


def resolve_tree(tree: Node, overrides: Sequence[str] = (), *, source: Path | None = None) -> ResolvedRecipe:
    """`resolve` for a tree that was read and overridden already."""
    from trivium.problems import raise_first
    from trivium.recipe import Recipe

    _migrate(tree)
    _name_optimizer(tree)

    # The components come first, so that the recipe's own errors can point to their keys.
    choose = Chooser(tree, recipe_keys())
    method = choose.one("methods", ("method",))
    optimizer = choose.one("optim", ("train", "optimizer"), default=DEFAULT_OPTIMIZER)
    transforms = choose.all("transforms", "transforms")
    choose.shape()
    checked = choose.rest(Recipe)
    raise_first(choose.problems)
    assert isinstance(checked, Recipe) and method is not None and optimizer is not None
    return ResolvedRecipe(
        recipe=checked,
        method=method,
        transforms=tuple(transforms),
        optimizer=optimizer,
        overrides=tuple(overrides),
        source=source,
        tree=tree,
    )


def read_tree(
    given: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    *,
    shorthand: Mapping[str, str],
    what: str = "recipe",
) -> Node:
    """The tree of a YAML file, or of the same built in Python, with the overrides; ConfigError unless it has keys."""
    from trivium.marked_yaml import apply_overrides, node_from, read_yaml

    if isinstance(given, str | Path):
        tree = read_yaml(Path(given))
    else:
        tree = node_from(given, where=f"the {what} given in Python")
    if not isinstance(tree.value, dict):
        problem = f"the {what} is empty" if tree.value is None else f"a {what} consists of 'key: value' lines"
        raise ConfigError(problem, where=tree.where, fix="copy one of the files in recipes/ and change it")
    apply_overrides(tree, overrides, shorthand=shorthand)
    return tree


@cache
def recipe_keys() -> dict[str, Any]:
    """Every dotted key of a recipe outside methods, transforms and optimisers, with its pydantic field."""
    from trivium.problems import fields_below
    from trivium.recipe import Recipe

    return dict(fields_below(Recipe))


class Chooser:
    """Finds the components that a recipe names and checks their settings.

    known:    every dotted key that is possible in this recipe, for hints.
    problems: what was wrong.
    """

    def __init__(self, tree: Node, known: Mapping[str, Any]) -> None:
        self.tree = tree
        self.known: dict[str, Any] = dict(known)
        self.problems: list[Problem] = []

    def all(self, folder: Folder, key: str) -> list[ChosenComponent]:
        """The components listed at `key`."""
        listed = self.tree.child(key)
        count = len(listed.value) if listed is not None and isinstance(listed.value, list) else 0
        found = [self.one(folder, (key, number)) for number in range(count)]
        return [component for component in found if component is not None]

    def rest(self, model: type[StrictModel]) -> StrictModel | None:
        """The whole tree as `model`; its problems go before those of the components."""
        checked, problems = _check(model, self.tree, self.tree, (), self.known)
        self.problems = problems + self.problems
        return checked

    def one(self, folder: Folder, keys: Keys, *, default: str | None = None) -> ChosenComponent | None:
        """The component at `keys`, or None if something is wrong with it (then a problem was noted)."""
        from trivium.marked_yaml import Node
        from trivium.problems import dotted, fields_below, from_error, locate
        from trivium.registry import component

        node, where = locate(self.tree, keys)
        if node is None and default is None:
            return None
        node = node or Node(default, where)
        settings = dict(node.value) if isinstance(node.value, dict) else {}
        name_node = settings.pop("name", None) if isinstance(node.value, dict) else node
        try:
            if name_node is None or not isinstance(name_node.value, str):
                raise _nameless(folder, dotted(keys))
            cls = component(folder, name_node.value, outside=True, where=name_node.where)
        except ConfigError as error:
            # A value that is neither text nor a section was reported with the recipe's own shape.
            if isinstance(node.value, str | dict):
                self.problems.append(from_error(error, key=dotted(keys), where=where))
            return None
        self.known.update(fields_below(cls.Config, f"{dotted(keys)}."))
        only_settings = Node(settings, node.where, keys=node.keys)
        config, problems = _check(cls.Config, only_settings, self.tree, keys, self.known)
        self.problems.extend(problems)
        return None if config is None else ChosenComponent(name_node.value, cls, config)

    def shape(self) -> None:
        """Checks `model.preset`, and `model.config` against the shape of that preset."""
        from trivium.models.build import examples, preset_fields, presets
        from trivium.models.config import ModelConfig
        from trivium.nearest import nearest
        from trivium.problems import Problem, fields_below, locate, problems_of

        preset = self.tree.child("model") and self.tree.value["model"].child("preset")
        if preset is None or not isinstance(preset.value, str):
            return
        if preset.value not in presets():
            near = nearest(preset.value, presets())
            fix = f"did you mean {near}?" if near else f"choose one of {examples()}"
            self.problems.append(
                Problem("model.preset", "model.preset: unknown preset", preset.where, preset.value, fix)
            )
            return
        self.known.update(fields_below(ModelConfig, "model.config."))
        changes, _ = locate(self.tree, ("model", "config"))
        if changes is None or not isinstance(changes.value, dict):
            return
        try:
            ModelConfig.model_validate(preset_fields(preset.value, changes.plain()))
        except ValidationError as error:
            keys = ("model", "config")
            self.problems.extend(problems_of(error, ModelConfig, self.tree, prefix=keys, known=self.known))


def _nameless(folder: Folder, key: str) -> ConfigError:
    from trivium.registry import names

    listed = ", ".join(names(folder)) or "none yet"
    return ConfigError(f"{key}.name is missing", fix=f"add 'name: ...', one of {listed}")


def _check(
    model: type[StrictModel], node: Node, tree: Node, prefix: Keys, known: dict[str, Any]
) -> tuple[StrictModel | None, list[Problem]]:
    from trivium.problems import problems_of

    try:
        return model.model_validate(node.plain()), []
    except ValidationError as error:
        return None, problems_of(error, model, tree, prefix=prefix, known=known)


def _migrate(tree: Node) -> None:
    """Brings an older tree to SCHEMA_VERSION; a newer one is refused."""
    node = tree.child("schema_version")
    version = node.value if node is not None else SCHEMA_VERSION
    if node is None or not isinstance(version, int) or isinstance(version, bool):
        return
    if version > SCHEMA_VERSION:
        raise ConfigError(
            "the recipe was written by a newer Trivium",
            where=node.where,
            value=f"schema_version {version}; this Trivium knows {SCHEMA_VERSION}",
            fix="pip install --upgrade trivium",
        )
    while version in _MIGRATIONS:
        _MIGRATIONS[version](tree)
        version += 1
    node.value = version


def _name_optimizer(tree: Node) -> None:
    """`train.optimizer.weight_decay=0` alone changes the default optimiser."""
    from trivium.marked_yaml import Node
    from trivium.problems import locate

    node, where = locate(tree, ("train", "optimizer"))
    if node is not None and isinstance(node.value, dict) and "name" not in node.value:
        node.value = {"name": Node(DEFAULT_OPTIMIZER, where), **node.value}
        node.keys["name"] = where


def _differences(config: BaseModel, prefix: str, *, skip: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in skip:
            continue
        if isinstance(value, BaseModel):
            found.update(_differences(value, f"{prefix}{name}.", skip=skip))
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if field.is_required() or value != default:
            plain = config.model_dump(mode="json", include={name})[name]
            found[f"{prefix}{name}"] = (plain, default)
    return found


def _only_numbers(annotation: Any) -> bool:
    """Whether an annotation accepts numbers but not true and false."""
    parts = get_args(annotation) or (annotation,)
    parts = tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in parts)
    return (int in parts or float in parts) and bool not in parts
