"""A run that is killed again and again ends bit-identical to one nobody disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash.kills import experiment

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("method", "kills"), [("clm", 10), ("sft", 5), ("grpo", 3), ("mlm", 3), ("denoise", 3)])
def test_killed_runs_end_bit_identical(method: str, kills: int) -> None:
    calm, disturbed, died = experiment(method, kills)
    assert sum(died.values()) == kills
    assert disturbed and all(run == calm for run in disturbed)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clm", "sft", "dpo", "grpo", "mlm", "denoise"])
def test_a_hundred_kills(method: str) -> None:
    calm, disturbed, _ = experiment(method, 100, seed=1, steps=60)
    assert all(run == calm for run in disturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "schedule_free", "schedule": "constant"},
        {"optimizer": "muon", "ema": {"decay": 0.9}, "layer_lr_decay": 0.8},
        {"optimizer": "adamw8bit", "offload": "all"},
    ],
    ids=lambda train: train["optimizer"],
)
def test_killed_runs_of_other_optimisers_end_bit_identical(train: dict[str, Any]) -> None:
    calm, disturbed, died = experiment("clm", 10, **train)
    assert sum(died.values()) == 10
    assert disturbed and all(run == calm for run in disturbed)
