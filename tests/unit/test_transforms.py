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
from tests.conformance.harness import tiny_config
from tests.crash.kills import fingerprint, make_world
from tests.unit.test_run import interrupt_at
from trivium.artifacts.manifest import verify
from trivium.errors import ConfigError, Interrupted, ModelError
from trivium.models.build import build_model
from trivium.models.folder import load_model, read_config
from trivium.models.transform import apply_transforms, merge_all
from trivium.transforms.bottleneck import BottleneckAdapters

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
        ({"target": ["c_atn"]}, "did you mean c_attn"),
        ({"target": ["head"]}, "cannot act"),
        ({"layers": [7]}, "there is no such layer"),
        ({"target": "attention.query", "exclude": ["c_attn"]}, "would act on no layer"),
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


def test_an_interrupted_run_of_bottlenecks_ends_as_one_that_was_not(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"name": "bottleneck", "reduction": 4, "places": ["attention", "mlp"], "dropout": 0.1}
    straight = tv.train({**changed(settings), "name": "straight-bottleneck"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train(changed(settings))
    assert fingerprint(tv.train(changed(settings)).folder) == fingerprint(straight.folder)


def test_adapters_are_fused_and_stacked_and_stay_frozen(changed: Changed) -> None:
    recipe = changed()
    finals = []
    for name, activation in (("one", "relu"), ("two", "gelu")):
        bottleneck = {"name": "bottleneck", "reduction": 8, "activation": activation}
        finals.append(str(tv.train({**recipe, "name": f"member-{name}", "transforms": [bottleneck]}).final))
    fused = tv.train({**recipe, "name": "fused", "transforms": [{"name": "fusion", "adapters": finals}]})
    stacked = tv.train(
        {**recipe, "name": "stacked", "transforms": [{"name": "bottleneck", "width": 8, "stack_on": finals[:1]}]}
    )
    first = {name: tensor for name, tensor in load_model(finals[0]).state_dict().items() if ".slots." in name}
    for run, name, trained in ((fused, "bottleneck", ".fusion."), (stacked, "bottleneck_1", ".bottleneck.")):
        weights = load_model(run.final or "").state_dict()
        kept = {key.replace(".bottleneck.", f".{name}."): tensor for key, tensor in first.items()}
        assert all(torch.equal(weights[key], tensor) for key, tensor in kept.items())
        assert any(trained in key for key in weights)
        assert tv.load(run.final or "").generate("def", max_new_tokens=3, temperature=0)


def test_lora_and_bottlenecks_together_are_stored_side_by_side(changed: Changed) -> None:
    run = tv.train(changed(LORA, {"name": "bottleneck", "width": 4}))
    assert run.final is not None
    assert json.loads((run.final / "adapters.json").read_text())["adapters"] == ["lora", "bottleneck"]
    assert (run.final / "lora" / "adapter_model.safetensors").is_file()
    assert (run.final / "bottleneck" / "adapter.safetensors").is_file()
    model = load_model(run.final)
    assert [transform.name for transform in model.transforms] == ["lora", "bottleneck"]


BOTTLENECK = BottleneckAdapters.Config(width=4, init="bert", scale=1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"places": ["attention"]},
        {"parallel": True},
        {"width": 5},
        {"width": None, "reduction": 8.0},
        {"activation": "silu"},
        {"reads": "branch"},
        {"scale": 2.0},
        {"scale": "learned"},
        {"scale": "channel"},
        {"norm_before": True},
        {"norm_after": True},
        {"dropout": 0.5},
        {"init": "zero"},
        {"init": "houlsby"},
        {"leave_out": [0]},
    ],
)
def test_every_setting_of_bottlenecks_changes_what_is_computed_or_trained(change: dict[str, Any]) -> None:
    def outcome(config: BottleneckAdapters.Config) -> tuple[int, torch.Tensor]:
        model = build_model(tiny_config(), seed=1).train()
        apply_transforms(model, [BottleneckAdapters(config)], seed=2)
        torch.manual_seed(0)
        return sum(p.numel() for p in model.parameters() if p.requires_grad), model(torch.arange(2, 12)[None])

    count, logits = outcome(BOTTLENECK)
    given = {**BOTTLENECK.model_dump(exclude_unset=True), **change}
    other_count, other = outcome(BottleneckAdapters.Config(**{k: v for k, v in given.items() if v is not None}))
    assert count != other_count or not torch.allclose(logits, other, atol=1e-6)


def test_a_fresh_bottleneck_changes_nothing() -> None:
    model = build_model(tiny_config(), seed=1).eval()
    before = model(torch.arange(2, 12)[None])
    apply_transforms(model, [BottleneckAdapters(BottleneckAdapters.Config(places=["attention", "mlp"]))], seed=2)
    torch.testing.assert_close(model(torch.arange(2, 12)[None]), before)
    model.transforms[0].remove(model)
    assert all(block.slots is None for block in model.all_blocks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"places": ["cross"]}, "no attention to a source"),
        ({"leave_out": [9]}, "no such block"),
        ({"width": 4, "reduction": 2.0}, "both say how narrow"),
    ],
)
def test_bottlenecks_that_do_not_fit_are_refused(changed: Changed, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tv.train(changed({"name": "bottleneck", **settings}))
