"""Whole runs under torchrun: the same samples and losses as one process, and continued on another number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.kills import make_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small run without dropout, which would draw other noise on other ranks."""
    recipe = make_world(tmp_path_factory.mktemp("world"), "clm")
    recipe["model"]["config"].update(dropout=0.0, embedding_dropout=0.0)
    recipe["train"].update(steps=9, sample_prompts=["abc"], batch_size=6)
    return recipe


def run(
    recipe: dict[str, Any], name: str, *, ranks: int, until: int | None = None, **changes: Any
) -> list[dict[str, Any]]:
    """Metrics after a run on `ranks` processes; `until` stops it early by SIGTERM to itself."""
    recipe = {**recipe, "name": name, **changes}
    file = Path(recipe["runs"]).parent / f"{name}.json"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "tests.distributed.one_run", str(file), str(until or 0)]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = ["timeout", "--kill-after=10", "240", sys.executable, *launcher, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    stopped = until is not None
    assert (done.returncode != 0) == stopped, done.stderr[:6000] + "\n...\n" + done.stderr[-3000:]
    lines = (Path(recipe["runs"]) / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def compare(ours: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    """Same samples, losses within 1e-5 relative (fp32), also in validation."""
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in reference]
    for line, expected in zip(ours, reference, strict=True):
        assert line.get("samples") == expected.get("samples")
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        if line["kind"] == "validation":
            assert line["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-5)


@pytest.fixture(scope="module")
def alone(world: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics of the run in one process."""
    return run(world, "alone", ranks=1)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_ranks_train_like_one(world: dict[str, Any], alone: list[dict[str, Any]], engine: str) -> None:
    compare(run(world, engine, ranks=2, engine={"name": engine}), alone)


def test_a_run_continues_on_other_numbers_of_ranks_and_engines(
    world: dict[str, Any], alone: list[dict[str, Any]]
) -> None:
    run(world, "moved", ranks=1, until=3)
    run(world, "moved", ranks=2, until=5, engine={"name": "tensor"})
    run(world, "moved", ranks=2, until=7, engine={"name": "ddp"})
    compare(run(world, "moved", ranks=3, engine={"name": "fsdp2"}), alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_fp8_on_two_ranks_stays_near_one_and_resumes(
    world: dict[str, Any], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank rounds its own rows by their own scale, and fsdp2 rounds weights in bf16: near, not the same."""
    pytest.importorskip("torchao")
    monkeypatch.setenv("TRIVIUM_FP8_EMULATE", "1")
    recipe = {**world, "train": {**world["train"], "precision": "fp8", "steps": 5}}
    reference = [line["loss"] for line in run(recipe, f"fp8-{engine}-alone", ranks=1)]
    calm = run(recipe, f"fp8-{engine}", ranks=2, engine={"name": engine})
    assert [line["loss"] for line in calm] == pytest.approx(reference, rel=2e-3)
    run(recipe, f"fp8-{engine}-stopped", ranks=2, until=2, engine={"name": engine})
    resumed = run(recipe, f"fp8-{engine}-stopped", ranks=2, engine={"name": engine})
    assert [line["loss"] for line in resumed] == [line["loss"] for line in calm]


ALWAYS = {("prompt_tuning", "fsdp2"), ("prefix_tuning", "ddp"), ("p_tuning", "fsdp2")}
EVERYWHERE = [
    pytest.param(transform, engine, marks=[pytest.mark.slow] * ((transform, engine) not in ALWAYS))
    for transform in ("prompt_tuning", "prefix_tuning", "p_tuning")
    for engine in ("ddp", "fsdp2")
]


@pytest.mark.parametrize(("transform", "engine"), EVERYWHERE)
@pytest.mark.usefixtures("alone")
def test_virtual_tokens_train_on_two_ranks_like_on_one(world: dict[str, Any], engine: str, transform: str) -> None:
    base = Path(world["runs"]) / "alone" / "final"
    recipe = {**world, "model": {"path": str(base)}, "transforms": [{"name": transform, "tokens": 3}]}
    reference = run(recipe, f"{transform}-alone-{engine}", ranks=1)
    compare(run(recipe, f"{transform}-{engine}", ranks=2, engine={"name": engine}), reference)
