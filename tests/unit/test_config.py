"""Resolving recipes: scalars, overrides, components, the canonical dump, marks and differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.config import SCHEMA_VERSION, StrictModel, resolve
from trivium.errors import ConfigError
from trivium.marked_yaml import dump_yaml, parse_yaml
from trivium.recipe import Recipe

RECIPE = """\
name: run
method: sft
model:
  path: runs/pretrain/final
data:
  train: [a.jsonl, {path: b.jsonl, weight: 2}]
train:
  epochs: 3
  lr: 3e-4
  schedule: wsd
  compile: on
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = (
        "a: 3e-4\nb: on\nc: yes\nd: 'no'\ne: 12:30\nf: 0x10\ng: 0o17\nh: 017\ni: ~\nj: true\nk: 2024-01-01\nl: 1_000\n"
    )
    assert parse_yaml(text, name="x").plain() == {
        "a": 3e-4,
        "b": "on",
        "c": "yes",
        "d": "no",
        "e": "12:30",
        "f": 16,
        "g": 15,
        "h": 17,
        "i": None,
        "j": True,
        "k": "2024-01-01",
        "l": "1_000",
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(values)
@settings(deadline=None)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    found = parse_yaml(dump_yaml({"value": value}), name="x").plain()["value"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "3e-4", "1e3", "0o17", "~", "true", "1.", ".inf", "12:30", "", "a: b", "- x", "\t"]
)
def test_text_stays_text_in_a_dump(text: str) -> None:
    assert parse_yaml(dump_yaml({"value": text}), name="x").plain() == {"value": text}


def test_anchors_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\n"
    assert parse_yaml(text, name="x").plain() == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_an_override_of_one_alias_leaves_the_other_alone(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    data = "data:\n  train: [&source {path: a.jsonl}]\n  validation: [*source]\n"
    path.write_text("name: run\nmethod: clm\nmodel: {path: m}\ntrain: {steps: 1}\n" + data)
    resolved = resolve(path, ["data.validation.0.path=b.jsonl"]).recipe
    assert (resolved.data.train[0].path, resolved.data.validation[0].path) == ("a.jsonl", "b.jsonl")


def test_resolve_checks_every_part(recipe: Path) -> None:
    resolved = resolve(recipe)
    assert resolved.recipe.train.lr == 3e-4
    assert resolved.recipe.train.compile == "on"
    assert [source.weight for source in resolved.recipe.data.train] == [1, 2]
    assert resolved.method.name == "sft" and resolved.method.cls.data_kind == "instructions"
    assert resolved.optimizer.name == "adamw"
    assert type(resolved.method.config) is resolved.method.cls.Config


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("train.lr=1e-3", ("train", "lr"), 1e-3),
        ("train.clip=null", ("train", "clip"), None),
        ("train.sample_prompts=[a, 'b: c']", ("train", "sample_prompts"), ["a", "b: c"]),
        ("name=other", ("name",), "other"),
        ("engine.device=cuda:1", ("engine", "device"), "cuda:1"),
        ("model.config={}", ("model", "config"), {}),
        ("train.tensorboard=true", ("train", "tensorboard"), True),
    ],
)
def test_overrides_change_what_they_name(recipe: Path, override: str, keys: tuple[str, ...], value: object) -> None:
    found: Any = resolve(recipe, [override]).recipe
    for key in keys:
        found = getattr(found, key)
    assert found == value
    assert resolve(recipe, [override]).where(*keys) == f"override {override}"


def test_overrides_of_list_items(recipe: Path) -> None:
    train = resolve(recipe, ["data.train.0.weight=5", "data.train.1=c.jsonl", "data.train.2=d.jsonl"]).recipe.data.train
    assert [(source.path, source.weight) for source in train] == [("a.jsonl", 5), ("c.jsonl", 1), ("d.jsonl", 1)]


def test_overrides_reach_through_shorthand(recipe: Path) -> None:
    resolved = resolve(recipe, ["train.optimizer.weight_decay=0", "method=dpo", "data.validation=v.jsonl"])
    assert resolved.optimizer.config.model_dump()["weight_decay"] == 0
    assert resolved.method.name == "dpo"
    assert resolve(recipe, ["method=dpo", "method.beta=0.3"]).method.config.model_dump()["beta"] == 0.3
    assert (
        resolve(recipe, ["data.validation=v.jsonl", "data.validation.0.weight=2"]).recipe.data.validation[0].weight == 2
    )


def test_the_dump_is_complete_and_resolves_to_itself(recipe: Path, tmp_path: Path) -> None:
    resolved = resolve(recipe, ["train.optimizer.weight_decay=0"])
    dump = resolved.dump()
    assert dump["schema_version"] == SCHEMA_VERSION and dump["trivium_version"]
    assert dump["train"]["optimizer"] == {"name": "adamw", **resolved.optimizer.config.model_dump()}
    assert set(dump) == set(Recipe.model_fields)
    again = tmp_path / "config.yaml"
    again.write_text(resolved.to_yaml())
    assert resolve(again).dump() == dump
    assert yaml.safe_load(resolved.to_yaml())["train"]["compile"] == "on", "other YAML readers agree"


def test_the_same_tree_can_be_built_in_python(recipe: Path) -> None:
    plain = parse_yaml(RECIPE, name="x").plain()
    assert resolve(plain).dump() == resolve(recipe).dump()
    assert resolve(Recipe.model_validate(plain)).dump() == resolve(recipe).dump()
    with pytest.raises(ConfigError, match="given in Python"):
        resolve({**plain, "nmae": "x"})


def test_differences_from_defaults(recipe: Path) -> None:
    found = resolve(recipe, ["train.optimizer.beta2=0.99", "train.batch_size=8"]).differences_from_defaults()
    assert found["train.schedule"] == ("wsd", "cosine")
    assert found["train.optimizer.beta2"] == (0.99, 0.95)
    assert found["method"] == ("sft", None)
    assert "train.batch_size" not in found, "written, but equal to the default"
    assert "train.lr" not in found
    assert "trivium_version" not in found


def test_places_of_values(recipe: Path) -> None:
    resolved = resolve(recipe, ["train.clip=2"])
    assert resolved.where("train", "lr") == f"{recipe}:9"
    assert resolved.where("data", "train", 1, "path") == f"{recipe}:6"
    assert resolved.where("train", "clip") == "override train.clip=2"
    assert resolved.where("train", "seed") == f"{recipe}:7", "not written: the section"


def test_outside_code_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method.py").write_text(
        "from trivium.config import StrictModel\n\n\n"
        "class Mine:\n    class Config(StrictModel):\n        strength: int = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = {**parse_yaml(RECIPE, name="x").plain(), "method": {"name": "own_method:Mine", "strength": 3}}
    assert resolve(plain).dump()["method"] == {"name": "own_method:Mine", "strength": 3}
    with pytest.raises(ConfigError, match=r"did you mean method\.strength"):
        resolve(plain, ["method.strenght=2"])


def test_true_is_not_one() -> None:
    class Section(StrictModel):
        number: int | None = None
        share: float = 0.5
        flag: bool = False

    assert Section(flag=True, number=1).flag
    for wrong in ({"number": True}, {"share": False}):
        with pytest.raises(ValueError, match="valid"):
            Section.model_validate(wrong)


def test_model_shape_is_checked_with_the_preset(recipe: Path) -> None:
    preset = ["model.path=null", "model.preset=llama-1m", "tokenizer=t"]
    assert resolve(recipe, [*preset, "model.config.num_layers=3"]).recipe.model.config == {"num_layers": 3}
    with pytest.raises(ConfigError, match=r"model\.config\.num_layers"):
        resolve(recipe, [*preset, "model.config.num_layer=3"])
