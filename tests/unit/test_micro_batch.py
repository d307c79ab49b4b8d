"""`train.micro_batch_size: auto`: the most rows that fit, the same gradient, and the same number when continued."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.crash.kills import make_world
from tests.unit.test_run import interrupt_at
from trivium.cli.main import run
from trivium.config import resolve
from trivium.core.engine import Engine
from trivium.core.plan import MARGIN, plan_memory
from trivium.drivers import micro_batch, session
from trivium.drivers.single import opened
from trivium.errors import ConfigError, Interrupted
from trivium.marked_yaml import dump_yaml


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe = make_world(tmp_path_factory.mktemp("micro"), "clm")
    recipe["model"]["config"] = {"vocab_size": 400, "num_layers": 2}
    recipe["train"] = {"steps": 4, "batch_size": 12, "lr": 1e-3, "threads": 1, "checkpoint_every": 2}
    return recipe


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def written(folder: Path) -> int:
    return int(resolve(folder / "config.yaml").recipe.train.micro_batch_size or 0)


def room_for(monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], rows: int) -> None:
    """A machine whose memory holds micro-batches of so many rows, and no more."""
    resolved = resolve(recipe, ["train.micro_batch_size=null"])
    described = session.describe_machine

    def describe(*arguments: Any, **named: Any) -> Any:
        machine = described(*arguments, **named)
        config = tv.load(Path(recipe["runs"]) / "whole" / "final").module.config
        each = replace(plan_memory(config, resolved.recipe, machine=machine), micro_rows=rows)
        return replace(machine, memory_bytes=int((each.peak + each.factor * each.activations_per_row / 2) / MARGIN))

    monkeypatch.setattr(session, "describe_machine", describe)


def test_the_most_rows_that_fit_give_the_same_run(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tv.train({**world, "name": "whole"})
    auto = {**world, "name": "auto", "train": {**world["train"], "micro_batch_size": "auto"}}
    roomy = tv.train({**auto, "name": "roomy"})
    assert written(roomy.folder) == 12 and losses(roomy.folder) == losses(whole.folder)

    with monkeypatch.context() as patch:
        room_for(patch, auto, 5)
        with patch.context() as interrupted, pytest.raises(Interrupted):
            interrupt_at(interrupted, 2)
            tv.train(auto)
        assert written(tv.train({**auto, "name": "calm"}).folder) == 5
    # More room now, but the run keeps its number and ends as it would have.
    continued = tv.train(auto)
    assert written(continued.folder) == 5
    assert losses(continued.folder) == losses(continued.folder.with_name("calm"))
    torch.testing.assert_close(losses(continued.folder), losses(whole.folder), rtol=1e-5, atol=1e-6)
    with monkeypatch.context() as patch:
        room_for(patch, auto, 2)  # less room: a smaller number, for the same run
        with opened(resolve({**auto, "name": "calm"})) as small:
            assert small.loader.micro_rows == 2
        room_for(patch, auto, 0 + 1)
        with opened(resolve({**auto, "name": "other"})) as one:
            assert one.loader.micro_rows == 1


def test_a_device_that_runs_out_of_memory_halves_the_rows(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Engine.run
    tried: list[int] = []

    def on_a_small_gpu(self: Engine, update: Any, *rest: Any, **named: Any) -> Any:
        rows = self.recipe.train.micro_rows or 0
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, update, *rest, **named)

    monkeypatch.setattr(Engine, "run", on_a_small_gpu)

    def open_session(resolved: Any) -> Any:
        found = session.open_session(resolved)
        before = {name: tensor.clone() for name, tensor in found.trainer.engine.weights("policy").items()}
        found.device = torch.device("cuda")  # as far as the finder is concerned
        starts.append(before)
        return found

    starts: list[dict[str, torch.Tensor]] = []
    auto = resolve({**world, "name": "gpu", "train": {**world["train"], "micro_batch_size": "auto"}})
    found = micro_batch.open_fitting(auto, open_session)
    found.close()
    assert tried[0] == 12 and 6 in tried and max(tried[2:]) == 3 and found.loader.micro_rows == 3
    assert found.trainer.progression.step == 0
    weights = found.trainer.engine.weights("policy")
    assert all(torch.equal(weights[name], tensor) for name, tensor in starts[0].items())


def test_what_is_wrong_is_said(world: dict[str, Any]) -> None:
    for value, words in (
        ("0", "at least 1"),
        ("aut", "did you mean auto?"),
        ("true", "whole number"),
        ("13", "larger than"),
    ):
        with pytest.raises(ConfigError, match=words.replace("?", r"\?")) as caught:
            tv.train(world, [f"train.micro_batch_size={value}"])
        assert len(str(caught.value).splitlines()) <= 5


def test_a_plan_says_the_number(world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml({**world, "train": {**world["train"], "batch_size": 4096}}))
    arguments = ["plan", "memory", str(file), "--machine", "laptop", "--json", "train.micro_batch_size=auto"]
    assert run([*arguments, "model.config.num_layers=48"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert 1 < plan["memory"]["micro_rows"] < 4096 and plan["fits"]
