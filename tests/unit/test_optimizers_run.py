"""Whole runs with optimisers that train other weights than those to use: what is saved, and how it continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from tests.unit.test_run import interrupt_at
from trivium.errors import Interrupted

pytestmark = pytest.mark.timeout(300)

CASES: dict[str, dict[str, Any]] = {
    "schedule_free": {"optimizer": "schedule_free", "schedule": "constant"},
    "ema": {"ema": {"decay": 0.5, "warmup": False}},
    "muon": {"optimizer": {"name": "muon", "adamw_lr": 1e-3}, "layer_lr_decay": 0.8},
    "adafactor": {"optimizer": "adafactor", "schedule": "inverse_sqrt"},
}
SLOW = {"muon", "adafactor"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data, tokenizer and recipe of a tiny run."""
    recipe = make_world(tmp_path_factory.mktemp("run"), "clm")
    recipe["train"].update(steps=6, checkpoint_every=2, validate_every=3, sample_every=3, threads=1)
    return recipe


def recipe(world: dict[str, Any], name: str, case: str) -> dict[str, Any]:
    return {**world, "name": f"{case}-{name}", "train": {**world["train"], **CASES[case]}}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    theirs = weights(other)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_an_interrupted_run_ends_bit_identical(
    world: dict[str, Any], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = tv.train(recipe(world, "calm", case))
    disturbed = recipe(world, "disturbed", case)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 3)
        tv.train(disturbed)
    assert fingerprint(tv.train(disturbed).folder) == fingerprint(calm.folder)
    assert json.loads((calm.folder / "groups.json").read_text())["groups"]


def test_checkpoints_and_final_hold_the_average_of_a_schedule_free_run(world: dict[str, Any]) -> None:
    run = tv.train(recipe(world, "average", "schedule_free"))
    checkpoint = run.folder / "checkpoints" / "step-00000006"
    assert run.final is not None and same(run.final, checkpoint / "model")
    state = load_file(next((checkpoint / "train").glob("optimizer-policy*.safetensors")))
    trained = {key: tensor for key, tensor in state.items() if key.endswith("weight") and "final_norm.weight" in key}
    assert trained, sorted(state)[:5]


def test_final_holds_the_moving_average_and_checkpoints_hold_both(world: dict[str, Any]) -> None:
    run = tv.train(recipe(world, "average", "ema"))
    checkpoint = run.folder / "checkpoints" / "step-00000006"
    assert run.final is not None and not same(run.final, checkpoint / "model")
    plain = recipe(world, "raw", "ema")
    plain["train"]["ema"] = {**CASES["ema"]["ema"], "final": False}
    raw = tv.train(plain)
    assert raw.final is not None and same(raw.final, checkpoint / "model")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_run_that_compiles_nothing_does_not_import_the_compiler(world: dict[str, Any], optimizer: str) -> None:
    code = """import json, sys, trivium
trivium.train(json.loads(sys.argv[1]))
found = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
assert not found, found"""
    asked = {**world, "name": f"lean-{optimizer}", "train": {**world["train"], "optimizer": optimizer}}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
