"""Whoever adds a method adds its recipe and its page; whoever adds a setting says what it does."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from tests.governance.source import PACKAGE, ROOT, files
from trivium import registry
from trivium.config import recipe_keys
from trivium.data.pipeline import resolve_pipeline
from trivium.recipe import Recipe
from trivium.schema import recipe_schema, sweep_keys
from trivium.search_space import SweepSection, read_search

METHODS = registry.names("methods")
COMPONENTS = [(folder, name) for folder in ("methods", "optim", "transforms") for name in registry.names(folder)]


def recipe_methods() -> set[str]:
    """The methods that some recipe in recipes/ uses."""
    found = set()
    for file in (ROOT / "recipes").glob("*.yaml"):
        method = yaml.safe_load(file.read_text(encoding="utf-8")).get("method")
        found.add(method["name"] if isinstance(method, dict) else method)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_recipe(name: str) -> None:
    assert name in recipe_methods()


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_page_in_the_site(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.is_file()
    assert f"methods/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda file: file.stem)
def test_recipe_begins_with_its_command(file) -> None:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    verb = {"pipelines": "data run", "sweeps": "sweep", "comparisons": "compare"}.get(file.parent.name, "train")
    assert first.startswith(f"# trivium {verb} {file.relative_to(ROOT)}"), first


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "pipelines").glob("*.yaml")), ids=lambda file: file.stem)
def test_pipeline_can_be_run(file) -> None:
    assert resolve_pipeline(file).steps


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def undocumented(cls: type[BaseModel]) -> list[str]:
    """Settings without a docstring, in a class and in the classes of its fields."""
    found = []
    for name, field in cls.model_fields.items():
        if not field.description:
            found.append(f"{cls.__qualname__}.{name}")
        for nested in models_in(field.annotation):
            found += undocumented(nested)
    return found


def test_every_setting_of_a_recipe_is_explained() -> None:
    assert not undocumented(Recipe)
    assert not undocumented(SweepSection)


@pytest.mark.parametrize(("folder", "name"), COMPONENTS, ids=lambda value: value)
def test_every_setting_of_a_component_is_explained(folder: Any, name: str) -> None:
    assert not undocumented(registry.component(folder, name).Config)


CHECKING = {
    "config.py",
    "recipe.py",
    "schema.py",
    "problems.py",
    "combinations.py",
    "registry.py",
    "marked_yaml.py",
}
"""Files that look at settings without acting on them."""

RECORDED = {"schema_version", "trivium_version"}
"""Settings that say which program wrote a file."""


def reads(name: str, text: str) -> bool:
    """Whether a file reads the attribute `name` of something."""
    return re.search(rf"\.{name}\b", text) is not None


GAPS: dict[str, str] = {}


def setting(key: str) -> Any:
    """A key as a test parameter; a known gap must be taken off the list when it is closed."""
    return pytest.param(key, marks=[pytest.mark.xfail(reason=GAPS[key])] if key in GAPS else [])


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_sweep_fits_its_schema_and_can_be_run(file, tmp_path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("optuna")
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert not list(jsonschema.Draft202012Validator(recipe_schema()).iter_errors(plain))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    held_out = [f"data.validation={tmp_path}"] if plain["data"].get("validation") else []
    assert read_search(file, [f"tokenizer={tmp_path / 'tokenizer'}", f"data.train={tmp_path}", *held_out]).axes


@pytest.mark.parametrize("key", [*(setting(key) for key in recipe_keys() if key not in RECORDED), *sweep_keys()])
def test_every_setting_of_a_recipe_is_read(key: str) -> None:
    """A setting that nothing reads would be ignored in silence."""
    name = key.rpartition(".")[2]
    acting = [file for file in files() if file.parent != PACKAGE or file.name not in CHECKING]
    acting = [file for file in acting if file.parent.name != "cli"]
    assert any(reads(name, file.read_text(encoding="utf-8")) for file in acting)


@pytest.mark.parametrize(("folder", "name"), COMPONENTS, ids=lambda value: value)
def test_every_setting_of_a_component_is_read(folder: Any, name: str) -> None:
    text = (PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8")
    assert not [field for field in registry.component(folder, name).Config.model_fields if not reads(field, text)]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line for extra in project["optional-dependencies"].values() for line in extra] + project["dependencies"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in pins if "==" in line}
    names = {re.split(r"[<>=\[ ]", line)[0].lower() for line in wanted} - {"trivium"}
    assert names <= pinned, names - pinned
