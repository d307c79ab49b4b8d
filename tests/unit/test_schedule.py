"""Learning-rate schedules as functions of the update."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.optim.schedule import learning_rate, warmup_length
from trivium.recipe import TrainSection


def settings(**changes: object) -> TrainSection:
    return TrainSection.model_validate({"steps": 100, "lr": 1.0, "warmup_steps": 10, **changes})


def rates(total: int = 100, **changes: object) -> list[float]:
    return [learning_rate(step, settings(**changes), total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warms_up_to_the_peak_and_ends_at_the_floor(schedule: str) -> None:
    found = rates(schedule=schedule, min_lr_ratio=0.1)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(found) == pytest.approx(1.0)
    assert found[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_wsd_is_flat_until_its_decay() -> None:
    found = rates(schedule="wsd", decay_fraction=0.3, min_lr_ratio=0.0)
    assert found[10:71] == pytest.approx([1.0] * 61)
    assert found[71] < 1.0 and found[-1] == pytest.approx(0.0)


def test_cosine_and_linear_meet_in_the_middle() -> None:
    cosine, linear = (
        rates(schedule=name, warmup_steps=0, min_lr_ratio=0.0, total=101) for name in ("cosine", "linear")
    )
    assert cosine[50] == pytest.approx(linear[50]) == pytest.approx(0.5)
    assert cosine[25] > linear[25]


def test_default_warm_up_is_two_percent() -> None:
    assert warmup_length(settings(warmup_steps=None), 1000) == 20
    assert warmup_length(settings(warmup_steps=None), 10**6) == 1000
    assert warmup_length(settings(warmup_steps=500), 100) == 100


@given(
    total=st.integers(1, 3000),
    schedule=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    warmup=st.none() | st.integers(0, 100),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
def test_never_leaves_its_bounds(total: int, schedule: str, warmup: int | None, floor: float, decay: float) -> None:
    chosen = settings(schedule=schedule, warmup_steps=warmup, min_lr_ratio=floor, decay_fraction=decay)
    found = [learning_rate(step, chosen, total) for step in range(total)]
    assert all(0 <= rate <= 1.0 + 1e-12 for rate in found)
    falling = found[warmup_length(chosen, total) :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(falling))
