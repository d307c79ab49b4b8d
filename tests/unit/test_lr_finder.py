"""The range test of learning rates: where a loss falls fastest, and that nothing is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import trivium as tv
from tests.crash.kills import make_world
from trivium.cli.main import run
from trivium.drivers.lr_finder import described, judged
from trivium.errors import ConfigError
from trivium.marked_yaml import dump_yaml


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe = make_world(tmp_path_factory.mktemp("lr"), "clm")
    recipe["model"] = {"preset": "llama-1m", "config": {"vocab_size": 400, "num_layers": 1, "hidden_size": 32}}
    recipe["data"]["sequence_length"] = 32
    recipe["train"] = {"steps": 5, "batch_size": 4, "threads": 1}
    return recipe


RATES = [1e-6 * 10 ** (6 * number / 99) for number in range(100)]


def test_the_steepest_place_and_the_divergence_of_known_curves() -> None:
    # An S-shaped fall around 1e-3, and a rise from 1e-1 on.
    falls = [6 - 2 / (1 + math.exp(-3 * math.log(rate / 1e-3))) for rate in RATES]
    calm = judged(RATES, falls)
    assert 5e-4 < calm.steepest < 4e-3 and calm.diverges is None and calm.suggestion == calm.steepest
    rises = [loss + 30 * max(0.0, rate - 1e-1) for loss, rate in zip(falls, RATES, strict=True)]
    lost = judged(RATES, rises)
    assert lost.diverges is not None and 1e-1 < lost.diverges < 0.5 and lost.suggestion == lost.steepest
    early = [loss + 1e4 * max(0.0, rate - 2e-3) for loss, rate in zip(falls, RATES, strict=True)]
    low = judged(RATES, early)
    assert low.diverges is not None and low.suggestion == min(low.steepest, low.diverges / 10) < 1e-3
    nan = judged(RATES[:61], [*falls[:60], math.nan])
    assert nan.diverges == RATES[60]
    assert "^" in described(calm) and "nowhere" in described(calm) and "suggestion" in described(lost)
    with pytest.raises(ConfigError, match="did not fall"):
        judged(RATES, [6.0] * 100)


def test_nothing_is_left_and_the_run_is_as_it_would_have_been(world: dict[str, Any]) -> None:
    before = tv.train({**world, "name": "before"})
    found = tv.find_lr({**world, "name": "after"}, updates=60)
    assert not (Path(world["runs"]) / "after").exists()
    assert found.rates[0] == 1e-6 and found.rates[-1] <= 1.0 and len(found.losses) == len(found.rates) <= 60
    assert found.losses[0] == pytest.approx(math.log(400), rel=0.05)
    assert 1e-4 < found.suggestion < 1
    after = tv.train({**world, "name": "after"})
    assert (before.folder / "metrics.jsonl").read_bytes() == (after.folder / "metrics.jsonl").read_bytes()
    narrow = tv.find_lr(world, low=1e-4, high=1e-1, updates=30)
    assert narrow.rates[0] == 1e-4 and narrow.rates[-1] == pytest.approx(1e-1)


def test_the_command_draws_and_refuses(
    world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(world))
    assert run(["train", str(file), "--find-lr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suggestion"] > 0
    assert run(["train", str(file), "--find-lr", "--fresh"]) == 2
    arguments = ["train", str(file), "--find-lr", "method={name: grpo, reward: brevity}", "data.validation=[]"]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "trivium sweep" in said and len(said.strip().splitlines()) <= 8
