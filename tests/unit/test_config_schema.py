"""The schema for editors: recipes fit it, mistakes do not, and the file beside the recipes is the current one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from trivium.cli.main import run
from trivium.config import resolve
from trivium.marked_yaml import parse_yaml, read_yaml
from trivium.registry import names
from trivium.schema import recipe_schema

jsonschema = pytest.importorskip("jsonschema")

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
SCHEMA = recipe_schema()


def problems(recipe: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(recipe)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit(path: Path) -> None:
    assert problems(read_yaml(path).plain()) == []
    resolved = resolve(path)
    assert problems(resolved.dump()) == [], "and so does the complete configuration"
    assert "# yaml-language-server: $schema=recipe.schema.json" in path.read_text().splitlines()[1]


def test_the_file_beside_the_recipes_is_current(tmp_path: Path) -> None:
    assert run(["schema", "--output", str(tmp_path / "schema.json")]) == 0
    written = RECIPES[0].parent / "recipe.schema.json"
    assert written.read_text() == (tmp_path / "schema.json").read_text(), (
        "trivium schema --output recipes/recipe.schema.json"
    )


GOOD = {
    "name": "run",
    "method": "clm",
    "model": {"preset": "llama-1m", "config": {"num_layers": 2}},
    "data": {"train": "pydocs"},
    "train": {"steps": 1},
}


@pytest.mark.parametrize(
    "text",
    [
        "method: dpo",
        "method: {name: dpo, beta: 0.2}",
        "method: my_package.my_file:Method",
        "method: {name: 'my_file:Method', anything: 1}",
        "train: {steps: 1, optimizer: adamw}",
        "train: {steps: 1, optimizer: {weight_decay: 0}}",
        "data: {train: [a.jsonl, {path: b.jsonl, weight: 2}]}",
        "data: {train: {path: a.jsonl}}",
    ],
)
def test_what_recipes_may_say(text: str) -> None:
    assert problems({**GOOD, **parse_yaml(text, name="x").plain()}) == []


@pytest.mark.parametrize(
    "text",
    [
        "methd: dpo",
        "method: dpoo",
        "method: {name: dpo, betta: 0.2}",
        "method: {name: dpo, beta: -1}",
        "method: {beta: 0.2}",
        "train: {steps: 0}",
        "train: {steps: 1, lrr: 3}",
        "train: {steps: 1, schedule: cosin}",
        "train: {steps: 1, optimizer: {name: adamw, beta3: 1}}",
        "model: {preset: llama-2m}",
        "model: {preset: llama-1m, config: {num_layer: 2}}",
        "data: {train: {pth: a.jsonl}}",
    ],
)
def test_what_recipes_may_not_say(text: str) -> None:
    assert problems({**copy.deepcopy(GOOD), **parse_yaml(text, name="x").plain()})


def test_every_method_and_setting_is_described() -> None:
    for name in names("methods"):
        assert SCHEMA["$defs"][f"methods.{name}"]["description"]
    for section in ("DataSection", "TrainSection", "ModelSection", "EngineSection", "Recipe"):
        for key, field in SCHEMA["$defs"][section]["properties"].items():
            assert field.get("description") or "$ref" in field, f"{section}.{key}"


def test_it_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
