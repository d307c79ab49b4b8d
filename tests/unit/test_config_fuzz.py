"""Whatever is in a recipe file, the answer is a checked recipe or a ConfigError of at most five lines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.combinations import refuse_wrong_combinations
from trivium.config import resolve
from trivium.errors import ConfigError
from trivium.marked_yaml import parse_yaml, read_yaml
from trivium.schema import every_setting

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
KEYS = sorted({key for key, _, _ in every_setting()})


def short(error: ConfigError) -> None:
    assert len(str(error).splitlines()) <= 5, str(error)


def tried(recipe: Any, overrides: list[str]) -> None:
    try:
        refuse_wrong_combinations(resolve(recipe, overrides), {})
    except ConfigError as error:
        short(error)


@given(st.text(alphabet="ab:-[]{},&*!|>'\"%@`#?<~ \n\t\\0123.e", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text(text: str) -> None:
    try:
        parse_yaml(text, name="recipe.yaml")
    except ConfigError as error:
        short(error)


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_any_bytes(data: bytes) -> None:
    path = Path("recipe.yaml")
    path.write_bytes(data)
    try:
        read_yaml(path)
    except ConfigError as error:
        short(error)


@pytest.fixture(autouse=True)
def there(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("fuzz"))


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["dpo", "auto"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6), st.sampled_from(RECIPES))
@settings(max_examples=200, deadline=None)
def test_any_value_of_any_setting(changes: dict[str, Any], path: Path) -> None:
    recipe = read_yaml(path).plain()
    for key, value in changes.items():
        *above, last = key.split(".")
        node: Any = recipe
        for part in above:
            if part.isdecimal():
                continue
            node = node.setdefault(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node[last] = value
    tried(recipe, [])


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.text(alphabet="ab0.[]{}:, '\"-&*!=", max_size=8)), max_size=3),
    st.sampled_from(RECIPES),
)
@settings(max_examples=200, deadline=None)
def test_any_override(changes: list[tuple[str, str]], path: Path) -> None:
    tried(path, [f"{key}={value}" for key, value in changes])


@pytest.mark.slow
def test_recipes_with_a_damaged_byte() -> None:
    chance = random.Random(5)
    path = Path("recipe.yaml")
    for _ in range(1500):
        data = bytearray(chance.choice(RECIPES).read_bytes())
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(b":-[]{}'\"#&*!|>%@` \n\tab01\xff\x00")
        path.write_bytes(data)
        tried(path, [])
