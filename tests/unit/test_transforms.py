"""Adapters and choices of what trains, through `tv.train`: what moves, what is stored, how it continues and loads."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from tests.unit.test_run import interrupt_at
from trivium.artifacts.manifest import verify
from trivium.errors import ConfigError, Interrupted, ModelError
from trivium.models.folder import load_model, read_config
from trivium.models.transform import merge_all

pytestmark = pytest.mark.timeout(300)
Changed = Callable[..., dict[str, Any]]
LORA = {"name": "lora", "rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that starts from a trained base."""
    recipe = make_world(tmp_path_factory.mktemp("transforms"), "clm")
    recipe["train"].update(steps=6, checkpoint_every=2, validate_every=3, sample_every=3, threads=1)
    base = tv.train({**recipe, "name": "base"}).final
    return {**recipe, "model": {"path": str(base)}}


@pytest.fixture
def changed(world: dict[str, Any], request: pytest.FixtureRequest) -> Changed:
    """The recipe under the name of the test, with transforms and changes to `train`."""

    def make(*transforms: dict[str, Any], **train: Any) -> dict[str, Any]:
        name = re.sub(r"\W+", "-", request.node.name)
        return {**world, "name": name, "transforms": list(transforms), "train": {**world["train"], **train}}

    return make


def base_of(recipe: dict[str, Any]) -> Path:
    return Path(recipe["model"]["path"])


def test_an_adapter_is_a_small_folder_that_loads_with_its_base(changed: Changed) -> None:
    recipe = changed(LORA)
    run = tv.train(recipe)
    assert run.final is not None
    verify(run.final)
    assert (run.final / "adapter_config.json").is_file() and not (run.final / "model.safetensors").exists()
    size = (run.final / "adapter_model.safetensors").stat().st_size
    assert size < (base_of(recipe) / "model.safetensors").stat().st_size / 2
    adapted, base = load_model(run.final).eval(), load_model(base_of(recipe)).eval()
    ids = torch.randint(3, 400, (2, 17))
    with torch.no_grad():
        assert (adapted(ids) - base(ids)).abs().max() > 1e-3
        merge_all(adapted)
        assert {name for name, _ in adapted.named_parameters()} == {name for name, _ in base.named_parameters()}
        torch.testing.assert_close(adapted(ids), load_model(run.final).eval()(ids), atol=1e-5, rtol=1e-5)
    assert tv.load(run.final).generate("def", max_new_tokens=4, temperature=0)


def test_frozen_weights_of_the_base_keep_every_bit(changed: Changed) -> None:
    recipe = changed(LORA)
    run = tv.train(recipe)
    base, adapted = load_model(base_of(recipe)).state_dict(), load_model(run.final or "").state_dict()
    assert all(torch.equal(adapted[name], tensor) for name, tensor in base.items())


def test_an_interrupted_adapter_run_ends_as_one_that_was_not(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tv.train({**changed(LORA), "name": "straight-lora"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train(changed(LORA))
    assert fingerprint(tv.train(changed(LORA)).folder) == fingerprint(straight.folder)


def test_an_adapter_can_be_trained_on(changed: Changed) -> None:
    first = tv.train(changed(LORA))
    assert first.final is not None
    recipe = {**changed(), "name": "further", "model": {"path": str(first.final)}}
    second = tv.train(recipe)
    assert second.final is not None and (second.final / "adapter_config.json").is_file()
    own = json.loads((second.final / "adapters.json").read_text())
    assert own["base"] == str(base_of(changed()))
    before, after = load_model(first.final).state_dict(), load_model(second.final).state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all(".branches." in name for name in moved)
    with pytest.raises(ConfigError, match="holds an adapter already"):
        tv.train({**recipe, "name": "twice", "transforms": [LORA]})


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({"head": True}, r"embed\.|final_norm\."),
        ({"head": False, "last_layers": 1}, r"blocks\.1\."),
        ({"head": False, "embeddings": True}, r"embed\.|position_embed\."),
        ({"head": False, "patterns": ["blocks.0.mlp.*", "*attention_norm*"]}, r"blocks\.0\.mlp\.|.*attention_norm"),
    ],
)
def test_only_what_is_chosen_trains(changed: Changed, settings: dict[str, Any], moves: str) -> None:
    recipe = changed({"name": "trainable", **settings})
    run = tv.train(recipe)
    before, after = load_model(base_of(recipe)).state_dict(), load_model(run.final or "").state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    chosen = {name for name in before if re.match(moves, name)}
    assert chosen and moved == chosen | ({"head.weight"} if "embed.weight" in chosen else set())


def test_another_base_is_refused(changed: Changed, world: dict[str, Any]) -> None:
    run = tv.train(changed(LORA))
    other = tv.train({**world, "name": "other-base", "train": {**world["train"], "lr": 1e-2}})
    with pytest.raises(ModelError, match="not the base that the adapter was trained on"):
        load_model(run.final or "", base=other.final)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["q_prj"]}, "did you mean q_proj"),
        ({"target": ["head"]}, "no layer of this name|cannot act"),
        ({"layers": [7]}, "there is no such layer"),
        ({"target": "q_proj", "exclude": ["q_proj"]}, "would act on no layer"),
    ],
)
def test_targets_that_are_not_there_are_refused(changed: Changed, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tv.train(changed({**LORA, **settings}))
    assert str(caught.value).count("\n") < 5


def test_an_adapter_needs_a_base_in_a_folder(changed: Changed, world: dict[str, Any]) -> None:
    recipe = {**changed(LORA), "model": {"preset": "llama-1m", "config": {"vocab_size": 400}}}
    with pytest.raises(ConfigError, match="stored beside its base"):
        tv.train(recipe)


def test_the_shape_of_an_adapter_folder_is_that_of_its_model(changed: Changed) -> None:
    recipe = changed(LORA)
    assert read_config(tv.train(recipe).final or "") == read_config(base_of(recipe))
