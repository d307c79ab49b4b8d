"""Losses over all texts of an update on two gloo processes: the gradients of one, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients
from tests.conformance.test_contrastive import trainer
from tests.distributed.processes import run_ranks
from trivium.core.distributed import Processes

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

NAMES = ["supervised, joint", "pairs, symmetric", "matryoshka", "cosent"]
JOBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{engine} {name}": (name, engine, {"micro_rows": 2}) for engine in ("ddp", "fsdp2") for name in NAMES},
    # A single micro-batch on each rank keeps its graph; with one row the second rank has nothing but a filler.
    "ddp, one micro-batch": ("matryoshka", "ddp", {"micro_rows": 4}),
    "ddp, empty rank": ("cosine", "ddp", {"micro_rows": 1, "batch_size": 1}),
    "fsdp2, empty rank": ("cosine", "fsdp2", {"micro_rows": 1, "batch_size": 1}),
}


def results_of(processes: Processes, name: str, engine: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Gradients of two updates, and what validation finds."""
    recorder = Frozen()
    running = trainer(name, engine=engine, processes=processes, optimizer=recorder, steps=2, **settings)
    running.fit()
    found = running.engine.evaluate(running.context.feed.loader.evaluation())
    return {"gradients": recorder.gradients, "validation": {key: torch.tensor(value) for key, value in found.items()}}


def run_all(processes: Processes) -> dict[str, Any]:
    return {job: results_of(processes, *settings) for job, settings in JOBS.items()}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(run_all)


@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_have_the_gradient_and_the_validation_of_one(results: list[dict[str, Any]], job: str) -> None:
    name, _, settings = JOBS[job]
    reference = results_of(Processes(), name, "single", {**settings, "micro_rows": 8})
    for rank in results:
        assert len(rank[job]["gradients"]) == len(reference["gradients"]) == 2
        for ours, expected in zip(rank[job]["gradients"], reference["gradients"], strict=True):
            assert_same_gradients(ours, expected)
        assert rank[job]["validation"].keys() == reference["validation"].keys()
        for key, value in reference["validation"].items():
            torch.testing.assert_close(rank[job]["validation"][key], value, rtol=1e-9, atol=1e-12)
