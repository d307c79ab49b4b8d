"""One JSON schema for every recipe, for completion and checking while typing in an editor.

Made from the same classes that check a recipe; methods, transforms and optimisers become one alternative each, with
the settings of the file of that name. Recipes point to it in a comment:
`# yaml-language-server: $schema=recipe.schema.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from trivium.config import DEFAULT_OPTIMIZER, StrictModel, recipe_keys
from trivium.problems import fields_below
from trivium.recipe import SHORTHAND, Recipe
from trivium.registry import Folder, component, first_line, names
from trivium.search_space import Dimension, SweepSection, SweepSettings

_COMPONENTS: dict[Folder, tuple[str, ...]] = {
    "methods": ("Recipe", "method"),
    "transforms": ("Recipe", "transforms", "items"),
    "optim": ("TrainSection", "optimizer"),
}
"""Folder -> the definition and property that names one of its components."""

_OUTSIDE: dict[str, Any] = {"type": "string", "pattern": ":", "description": "package.module:Class of your own code"}


def recipe_schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) as plain data; imports the component files, but no torch."""
    top = Recipe.model_json_schema()
    definitions: dict[str, Any] = top.pop("$defs")
    definitions["Recipe"] = top
    for folder, (owner, key, *inside) in _COMPONENTS.items():
        place = definitions[owner]["properties"][key]
        for step in inside:
            place = place[step]
        alternatives = _component(folder, definitions)
        place.clear() if inside else [place.pop(word, None) for word in ("type", "additionalProperties")]
        place["oneOf"] = alternatives
    _allow_shorthand(definitions)
    _shape(definitions)
    _sweep(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Trivium recipe",
        "$ref": "#/$defs/Recipe",
        "$defs": dict(sorted(definitions.items())),
    }


def every_setting() -> Iterator[tuple[str, FieldInfo, str | None]]:
    """(dotted key, field, owner) of all that a recipe can set; owner is the method, optimiser or transform it is of."""
    from trivium.models.config import ModelConfig

    places: dict[Folder, str] = {"methods": "method", "optim": "train.optimizer", "transforms": "transforms.0"}
    for key, field in [*recipe_keys().items(), *fields_below(ModelConfig, "model.config.")]:
        yield key, field, None
    for folder, place in places.items():
        for name in names(folder):
            for key, field in fields_below(component(folder, name).Config, f"{place}."):
                yield key, field, name


def sweep_keys() -> dict[str, FieldInfo]:
    """Every dotted key of a section `sweep`; KEY stands for a searched key."""
    return {
        **dict(fields_below(SweepSettings, "sweep.")),
        "sweep.space": SweepSection.model_fields["space"],
        **dict(fields_below(Dimension, "sweep.space.KEY.")),
    }


def _sweep(definitions: dict[str, Any]) -> None:
    """The section `sweep`, with what may be written shorter."""
    section = _lift(SweepSection, definitions)
    properties = section["properties"]
    said = {key: {"description": field.description} for key, field in SweepSection.model_fields.items()}
    for key, name in (("sampler", "SamplerSettings"), ("pruner", "PrunerSettings")):
        names = {"enum": definitions[name]["properties"]["name"]["enum"]}
        properties[key] = {**said[key], "anyOf": [names, {"$ref": f"#/$defs/{name}"}]}
    goal = [{"type": "string"}, {"$ref": "#/$defs/Goal"}]
    properties["goals"] = {
        **said["goals"],
        "anyOf": [*goal, {"type": "array", "items": {"anyOf": goal}, "minItems": 1}],
    }
    # Keys may be nested, so what is not a dimension may be a section of them.
    properties["space"]["additionalProperties"] = {"type": ["array", "object"]}
    definitions["Dimension"]["description"] = "One setting that is searched"
    definitions["Recipe"]["properties"]["sweep"] = section


def _component(folder: Folder, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The name alone, outside code, or the name with the settings of that component."""
    known = names(folder)
    alternatives: list[dict[str, Any]] = [{"enum": list(known)}] if known else []
    alternatives.append(_OUTSIDE)
    for name in known:
        cls = component(folder, name)
        title = f"{folder}.{name}"
        settings = _lift(cls.Config, definitions)
        optional = folder == "optim" and name == DEFAULT_OPTIMIZER
        definitions[title] = _with_name(name, first_line(cls), settings, optional=optional)
        alternatives.append({"$ref": f"#/$defs/{title}"})
    own = {"type": "object", "required": ["name"], "properties": {"name": _OUTSIDE}}
    alternatives.append(own)
    return alternatives


def _with_name(name: str, description: str, schema: dict[str, Any], *, optional: bool) -> dict[str, Any]:
    schema["properties"] = {"name": {"const": name, "description": description}, **schema.get("properties", {})}
    schema["required"] = [*([] if optional else ["name"]), *schema.get("required", [])]
    return {**schema, "description": description}


def _lift(model: type[StrictModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """A model's schema with its own definitions moved to the common ones."""
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema


def _allow_shorthand(definitions: dict[str, Any]) -> None:
    """A path alone stands for a source, and one source for a list of one."""
    properties = definitions["DataSection"]["properties"]
    source = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Source"}]}
    for key in (path.removeprefix("data.") for path, meaning in SHORTHAND.items() if meaning == "[]"):
        kept = {word: properties[key][word] for word in ("description", "default", "title") if word in properties[key]}
        properties[key] = {**kept, "anyOf": [*source["anyOf"], {"type": "array", "items": source}]}


def _shape(definitions: dict[str, Any]) -> None:
    """`model.config` takes the settings of a model's shape, none of them required."""
    from trivium.models.build import presets
    from trivium.models.config import ModelConfig

    shape = _lift(ModelConfig, definitions)
    shape.pop("required", None)
    shape["description"] = definitions["ModelSection"]["properties"]["config"]["description"]
    definitions["ModelSection"]["properties"]["config"] = shape
    definitions["ModelSection"]["properties"]["preset"]["anyOf"][0] = {"enum": presets()}
