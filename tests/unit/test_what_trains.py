"""What trains: a probe on cached features, blocks released one by one, and the proof about what is frozen."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.crash.kills import fingerprint
from tests.unit.test_run import interrupt_at
from tests.unit.test_transforms import LORA, Changed, changed, world
from trivium.core.features import Features
from trivium.core.frozen import frozen_hash
from trivium.errors import ConfigError, Interrupted
from trivium.models.folder import load_model

__all__ = ["changed", "world"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def labelled(changed: Changed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that classifies short texts."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [{"text": f"{'abc' if number % 2 else 'ghi'} {number}", "label": "ab"[number % 2]} for number in range(60)]
    for name, some in (("train", rows[:48]), ("validation", rows[48:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    recipe = changed(steps=12, validate_every=6, checkpoint_every=4)
    for key in ("sample_prompts", "sample_every", "sample_tokens"):
        recipe["train"].pop(key, None)
    data = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "sequence_length": 32}
    return {**recipe, "method": {"name": "classification", "dropout": 0.0}, "data": data}


def lines(run: Path, kind: str) -> list[float]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in found if line["kind"] == kind]


def test_a_probe_on_cached_features_learns_what_one_on_the_body_learns(
    labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The body has dropout, which a probe never sees: the other side runs without.
    plain = {"name": "trainable", "head": False, "patterns": ["head.*"]}
    monkeypatch.setattr("torch.nn.functional.dropout", lambda x, *args, **kwargs: x)
    labelled["train"]["lr"] = 1e-2
    body = tv.train({**labelled, "name": "body", "transforms": [plain]})
    cached = tv.train({**labelled, "name": "cached", "transforms": [{"name": "trainable", "cached_features": True}]})
    for kind in ("train", "validation"):
        assert lines(cached.folder, kind) == pytest.approx(lines(body.folder, kind), abs=1e-4)
    ours, theirs = (load_model(run.final or "").state_dict() for run in (cached, body))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_the_body_runs_once_over_the_data(labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.models.transformer import Transformer

    calls: list[int] = []
    original = Transformer.forward

    def counted(self: Transformer, input_ids: torch.Tensor, *rest: Any, **more: Any) -> Any:
        calls.append(len(input_ids))
        return original(self, input_ids, *rest, **more)

    monkeypatch.setattr(Transformer, "forward", counted)
    monkeypatch.setattr("trivium.drivers.single.measured", lambda session, place: None)
    run = tv.train({**labelled, "name": "once", "transforms": [{"name": "trainable", "cached_features": True}]})
    tokens = json.loads((run.folder / "data.json").read_text())
    whole = sum(tokens[split]["tokens"] for split in ("train", "validation"))
    assert sum(calls) <= whole + 64


def test_a_probe_that_is_interrupted_ends_as_one_that_was_not(
    labelled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**labelled, "transforms": [{"name": "trainable", "cached_features": True}]}
    straight = tv.train({**recipe, "name": "straight"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train({**recipe, "name": "stopped"})
    assert fingerprint(tv.train({**recipe, "name": "stopped"}).folder) == fingerprint(straight.folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cached_features": True, "last_layers": 1}, "nothing but the head trains"),
        ({"cached_features": True, "head": False}, "nothing but the head trains"),
    ],
)
def test_features_are_not_cached_where_more_trains(labelled: dict[str, Any], settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tv.train({**labelled, "transforms": [{"name": "trainable", **settings}]})


def test_features_need_a_head_for_labels(changed: Changed) -> None:
    with pytest.raises(ConfigError, match="labels to whole texts"):
        tv.train(changed({"name": "trainable", "cached_features": True}))


def test_blocks_are_released_from_the_top(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = changed({"name": "trainable", "unfreeze_every": 2}, checkpoint_every=1, keep_checkpoints=8)
    run = tv.train(recipe)
    weights = [load_model(recipe["model"]["path"]).state_dict()]
    saved = [run.folder / "checkpoints" / f"step-{step:08d}" / "model" for step in range(1, 7)]
    weights += [load_model(folder).state_dict() for folder in saved]

    def moved(step: int) -> set[str]:
        before, after = weights[step - 1], weights[step]
        return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}

    assert not any(name.startswith("blocks") for name in moved(1) | moved(2))
    assert {name for name in moved(3) | moved(4) if name.startswith("blocks")} == {"blocks.1"}
    assert {name for name in moved(5) | moved(6) if name.startswith("blocks")} == {"blocks.0", "blocks.1"}
    assert not any(name.startswith("position_embed") for step in range(1, 7) for name in moved(step))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train({**recipe, "name": "released"})
    assert fingerprint(tv.train({**recipe, "name": "released"}).folder)["final"] == fingerprint(run.folder)["final"]


def test_the_report_says_that_frozen_weights_kept_every_bit(changed: Changed) -> None:
    run = tv.train(changed(LORA))
    found = json.loads((run.folder / "frozen.json").read_text())
    base = load_model(changed()["model"]["path"]).requires_grad_(False)
    assert found["identical"] is True and found["before"] == found["after"] == frozen_hash(base)[1]
    assert found["parameters"] == sum(parameter.numel() for parameter in base.parameters())
    assert "bit for bit" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_frozen_weight_that_changes_is_found(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.core.trainer import Trainer

    original = Trainer.advance

    def meddling(self: Trainer, update: Any) -> None:
        original(self, update)
        with torch.no_grad():
            self.engine.roles["policy"].module.blocks[0].mlp.up.weight[0, 0] += 1e-6

    monkeypatch.setattr(Trainer, "advance", meddling)
    with pytest.raises(AssertionError, match="frozen weight has changed"):
        tv.train(changed(LORA))


def test_texts_that_come_again_have_one_row_of_features() -> None:
    from tests.conformance.harness import tiny_config
    from trivium.core.method import Method, Role, RoleModel
    from trivium.data.batch import make_batch
    from trivium.models.build import build_model

    model = build_model(tiny_config(head="sequence", labels=("a", "b"), pooling="mean"), seed=1).eval()
    role = RoleModel("policy", model, Role())
    batch = make_batch([[3, 4, 5, 6], [7, 8, 9], [3, 4, 5, 6]])
    features = Features()
    features.fill(role, Method(Method.Config()), [batch, batch], torch.device("cpu"))
    assert len(features) == 2
    with torch.no_grad():
        expected = model(batch.input_ids, batch.layout)
        role.features = features
        torch.testing.assert_close(role(batch, lambda hidden, head: head(hidden, batch.layout)), expected)


@pytest.mark.parametrize("pooling", ["first", "last"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_scores_of_texts_need_only_the_tokens_that_are_pooled(kind: str, pooling: str) -> None:
    from tests.conformance.objectives import model_config
    from trivium.data.batch import make_batch
    from trivium.models.build import build_model
    from trivium.models.heads import pooled_tokens

    config = model_config(kind, head="sequence", labels=("a", "b"), pooling=pooling)
    model = build_model(config, seed=1, dtype=torch.float64)
    batch = make_batch([[3, 4, 5, 6], [7, 8, 9], [3, 4, 5, 6, 9, 10, 11]])
    found = []
    for wanted in (None, pooled_tokens(batch.layout, pooling)):
        scores = model(
            batch.input_ids, batch.layout, then=lambda hidden, head: head(hidden, batch.layout), wanted=wanted
        )
        scores.square().sum().backward()
        found.append((scores, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (whole, expected), (part, gradients) = found
    torch.testing.assert_close(part, whole, atol=1e-12, rtol=1e-12)
    assert all(torch.allclose(gradients[name], expected[name], atol=1e-10) for name in gradients)
    assert all(bool((expected[name] == 0).all()) for name in expected.keys() - gradients.keys())
