"""Objectives made from plain text on two gloo processes: the gradients of one, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients
from tests.conformance.objectives import make_method, objective_trainer
from tests.distributed.processes import run_ranks
from trivium.core.distributed import Processes

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

NAMES = ["fim", "prefix", "mlm spans", "electra", "t5", "bart", "seq2seq smoothed"]
JOBS = {
    **{f"{engine} {name}": (name, engine, {}) for engine in ("ddp", "fsdp2") for name in NAMES},
    # With one row in an update the second rank has nothing but a filler.
    **{f"ddp {name}, empty rank": (name, "ddp", {"batch_size": 1}) for name in ("mlm spans", "electra", "t5")},
}


def gradients(processes: Processes, name: str, engine: str, settings: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Two updates of an objective on one rank."""
    recorder = Frozen()
    settings = {"micro_rows": 2, "optimizer": recorder, "steps": 2, **settings}
    objective_trainer(make_method(name), engine=engine, processes=processes, **settings).fit()
    return recorder.gradients


def run_all(processes: Processes) -> dict[str, Any]:
    """Every job on one rank."""
    return {job: gradients(processes, *settings) for job, settings in JOBS.items()}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(run_all)


@pytest.mark.parametrize("job", JOBS)
def test_two_ranks_have_the_gradient_of_one(results: list[dict[str, Any]], job: str) -> None:
    name, _, settings = JOBS[job]
    reference = gradients(Processes(), name, "single", settings)
    for rank in results:
        assert len(rank[job]) == len(reference) == 2
        for ours, expected in zip(rank[job], reference, strict=True):
            assert_same_gradients(ours, expected)
