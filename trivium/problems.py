"""From pydantic's list of errors to one message a user can act on: key, place, value, what is allowed, nearest key."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from trivium.config import StrictModel
from trivium.errors import ConfigError, TriviumError
from trivium.marked_yaml import Node
from trivium.nearest import nearest

Keys = tuple[str | int, ...]

_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a section with keys of its own",
    "model_type": "must be a section with keys of its own",
    "model_attributes_type": "must be a section with keys of its own",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "has characters that are not allowed",
    "literal_error": "is not one of the allowed values",
    "missing": "is missing",
}
"""Kind of pydantic error -> what to say after the key."""

ELSEWHERE = {
    "learning_rate": "train.lr",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "max_grad_norm": "train.clip",
    "grad_clip": "train.clip",
    "lr_scheduler_type": "train.schedule",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "weight_decay": "train.optimizer.weight_decay",
    "betas": "train.optimizer.beta1",
    "block_size": "data.sequence_length",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "model_name_or_path": "model.path",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "fp8": "train.precision",
    "gradient_checkpointing": "train.activation_checkpointing",
    "output_dir": "runs",
}
"""What other tools call a key -> where it is here; only for the hint."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe."""

    key: str
    text: str
    where: str
    value: object
    fix: str


class ConfigProblems(ConfigError):
    """The first of several problems in detail, and the keys of the others in a fifth line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, *others = problems
        self.problems = tuple(problems)
        keys = " ".join(", ".join(problem.key for problem in others).split())
        self.more = f"{len(others)} more problem{'s' * (len(others) > 1)}: {keys}" if others else None
        shown: dict[str, Any] = {} if first.value is NO_VALUE else {"value": _shown(first.value)}
        super().__init__(first.text, where=first.where, fix=first.fix, **shown)

    def render(self) -> str:
        """The first problem, then how many more there are."""
        lines = super().render()
        return lines if self.more is None else f"{lines}\n  also:  {self.more[:300]}"


NO_VALUE = object()


def _shown(value: object) -> str:
    """A value as one would write it in YAML."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def raise_first(problems: Iterable[Problem]) -> None:
    """Raises the most telling problem: an unknown key before a missing one that it was probably meant to be."""
    found = list(problems)
    if not found:
        return
    suggested = {problem.fix for problem in found}
    kept = [
        problem
        for problem in found
        if not (problem.text.endswith("is missing") and any(f"mean {problem.key}?" in fix for fix in suggested))
    ]
    raise ConfigProblems(sorted(kept, key=lambda problem: not problem.text.startswith("unknown key")))


def from_error(error: TriviumError, *, key: str, where: str) -> Problem:
    """A problem out of an error that was raised with its own words."""
    value = error.value if "\n  value: " in error.render() else NO_VALUE
    return Problem(key, error.problem, error.where or where, value, error.fix or "")


def problems_of(
    error: ValidationError, model: type[StrictModel], tree: Node, *, prefix: Keys, known: Mapping[str, Any]
) -> list[Problem]:
    """Every error of validating `model` against the part of `tree` below `prefix`.

    known: all dotted keys of the whole recipe, for hints about keys in the wrong section.
    """
    items: dict[Any, Any] = {}
    for item in error.errors(include_url=False):
        # A value that may be of several types has an error for each: the last one that is no fixed word says it.
        loc = tuple(part for part in item["loc"] if not _is_branch(part))
        if loc == item["loc"]:
            items[len(items)] = item
        elif loc not in items or item["type"] != "literal_error":
            items[loc] = {**item, "loc": loc}
    return [_problem(item, model, tree, prefix, known) for item in items.values()]


def _is_branch(part: str | int) -> bool:
    """Whether pydantic added this part of a place to name one of several types."""
    return isinstance(part, str) and bool(re.fullmatch(r"int|float|constrained-\w+|literal\[.*\]", part))


def _problem(item: Any, model: type[StrictModel], tree: Node, prefix: Keys, known: Mapping[str, Any]) -> Problem:
    loc: Keys = (*prefix, *item["loc"])
    key = dotted(loc) or "the recipe"
    node, where = locate(tree, loc)
    kind = item["type"]
    if kind == "extra_forbidden":
        value = node.plain() if node is not None else item["input"]
        return Problem(key, f"unknown key {key}", where, value, unknown_key_hint(loc, model, prefix, known))
    raised = item.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):
        return from_error(raised, key=key, where=where)
    if isinstance(raised, ValueError):
        return Problem(key, f"{key}: {raised}", where, NO_VALUE, "correct the values of this section")
    field = field_at(model, item["loc"])
    if kind == "missing":
        return Problem(key, f"{key} is missing", where, NO_VALUE, f"add it: {_help(field)}")
    value = item["input"]
    if kind == "union_tag_invalid":
        tag, tags = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        return Problem(key, f"{key} has an unknown {item['ctx']['discriminator']}", where, tag, f"one of {tags}")
    if value is None:
        return Problem(key, f"{key} has no value", where, NO_VALUE, f"give {_allowed(field)}, or delete the line")
    words = _WORDS.get(kind)
    bounds = {name: f"{bound:g}" for name, bound in item.get("ctx", {}).items() if isinstance(bound, int | float)}
    text = words.format(**bounds) if words else f"cannot be used: {item['msg']}"
    return Problem(key, f"{key} {text}", where, value, _fix(field, value))


def _fix(field: FieldInfo | None, value: object) -> str:
    fix = f"give {_allowed(field)}"
    options = literals(field.annotation) if field is not None else ()
    near = nearest(value, options) if isinstance(value, str) else None
    return f"did you mean {near}? ({fix})" if near else fix


def unknown_key_hint(loc: Keys, model: type[StrictModel], prefix: Keys, known: Mapping[str, Any]) -> str:
    """The nearest key of the same section, or the section where a key of this name lives."""
    word, section = str(loc[-1]), dotted(loc[:-1])
    if word in known and "." in word:
        above, _, last = word.rpartition(".")
        return f"write it nested, '{last}: ...' below '{above}:'; dots are for the command line"
    exact = [key for key in known if key.rpartition(".")[2] == word]
    if exact:
        home = exact[0].rpartition(".")[0]
        belongs = f"{word} belongs under {home}" if home else f"{word} belongs at the top level"
        return f"{belongs}: {' or '.join(exact[:3])}"
    if ELSEWHERE.get(word) in known:
        return f"did you mean {ELSEWHERE[word]}?"
    own = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    near = nearest(word, own)
    if near:
        return f"did you mean {dotted((*loc[:-1], near))}?"
    last_parts = {key.rpartition(".")[2]: key for key in sorted(known, key=lambda key: -key.count("."))}
    near = nearest(word, last_parts)
    if near:
        return f"did you mean {last_parts[near]}?"
    return f"delete it; the keys here are {', '.join(own)}" if own else "delete it"


def locate(tree: Node, keys: Keys) -> tuple[Node | None, str]:
    """The node at `keys` (None if it is not written there) and the place nearest to it."""
    node, where = tree, tree.where
    for key in keys:
        below = node.child(key)
        if below is None:
            return None, where
        where = node.keys.get(str(key), below.where)
        node = below
    return node, where


def dotted(keys: Keys) -> str:
    """`("data", "train", 0)` -> `data.train.0`."""
    return ".".join(str(key) for key in keys)


def field_at(model: type[StrictModel] | None, keys: Keys) -> FieldInfo | None:
    """The field that `keys` lead to; a list index stays with the field of the list."""
    field = None
    for key in keys:
        if isinstance(key, str):
            field = model.model_fields.get(key) if model is not None else None
            model = submodel(field.annotation) if field is not None else None
    return field


def fields_below(model: type[StrictModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All (dotted key, field) of a configuration class; items of lists stand at index 0."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        below = submodel(field.annotation)
        if below is not None:
            item = "0." if _is_list(field.annotation) else ""
            yield from fields_below(below, f"{prefix}{name}.{item}")


def submodel(annotation: Any) -> type[StrictModel] | None:
    """The configuration class inside an annotation, through Annotated, lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := submodel(part)) is not None), None)


def type_words(field: FieldInfo) -> str:
    """What a field accepts, in words: `a number greater than 0 or null`."""
    words = _limited(_type_words(field.annotation), field.metadata)
    pattern = next((bound.pattern for bound in field.metadata if getattr(bound, "pattern", None)), None)
    return f"{words} that matches {pattern}" if pattern else words


def _limited(words: str, metadata: Iterable[Any]) -> str:
    """`a number` with its bounds."""
    limits = [
        f"{name} {getattr(bound, attribute)}"
        for bound in metadata
        for attribute, name in (("gt", "greater than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))
        if getattr(bound, attribute, None) is not None
    ]
    return words.replace("number", f"number {' and '.join(limits)}", 1) if limits else words


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [bound for extra in arguments[1:] for bound in getattr(extra, "metadata", ())]
        return _limited(_type_words(arguments[0]), bounds)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_words(argument) for argument in arguments))
    if origin in (list, tuple):
        return "a list" if not arguments else f"a list, each item {_type_words(arguments[0])}"
    if submodel(annotation) is not None or origin is dict:
        return "a section with keys of its own"
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    return simple.get(annotation, "a value")


def literals(annotation: Any) -> tuple[str, ...]:
    """The values a field allows, if it allows only some."""
    if get_origin(annotation) is Literal:
        return tuple(str(option) for option in get_args(annotation))
    return tuple(option for part in get_args(annotation) for option in literals(part))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_is_list(part) for part in get_args(annotation))


def _allowed(field: FieldInfo | None) -> str:
    if field is None:
        return "a value of the right type"
    if field.is_required() or field.default is None or field.default_factory is not None:
        return type_words(field)
    return f"{type_words(field)}; the default is {field.default}"


def _help(field: FieldInfo | None) -> str:
    return " ".join((field.description or "").split()) if field is not None else ""
