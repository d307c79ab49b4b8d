"""Learning-rate schedules as functions of the update."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trivium.optim.schedule import learning_rate, warmup_length
from trivium.recipe import TrainSection


def settings(**changes: object) -> TrainSection:
    return TrainSection.model_validate({"steps": 100, "lr": 1.0, "warmup_steps": 10, **changes})


def rates(total: int = 100, **changes: object) -> list[float]:
    return [learning_rate(step, settings(**changes), total) for step in range(total)]


SCHEDULES = ["cosine", "cosine_restarts", "linear", "polynomial", "inverse_sqrt", "wsd", "constant"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warms_up_to_the_peak_and_ends_at_the_floor(schedule: str) -> None:
    found = rates(schedule=schedule, min_lr_ratio=0.1)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(found) == pytest.approx(1.0)
    ends = {"constant": 1.0, "inverse_sqrt": (10 / 100) ** 0.5}
    assert found[-1] == pytest.approx(ends.get(schedule, 0.1))


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
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.none() | st.integers(0, 100),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    shapes=st.tuples(
        st.sampled_from(["linear", "cosine", "sqrt", "exponential"]), st.sampled_from(["linear", "cosine"])
    ),
    start=st.floats(0, 0.99),
    power=st.floats(0.1, 9),
    cycles=st.integers(1, 9),
)
def test_never_leaves_its_bounds(
    total: int,
    schedule: str,
    warmup: int | None,
    floor: float,
    decay: float,
    shapes: tuple[str, str],
    start: float,
    power: float,
    cycles: int,
) -> None:
    chosen = settings(
        schedule=schedule,
        warmup_steps=warmup,
        min_lr_ratio=floor,
        decay_fraction=decay,
        decay_shape=shapes[0],
        warmup_shape=shapes[1],
        warmup_start_ratio=start,
        schedule_power=power,
        schedule_cycles=cycles,
    )
    found = [learning_rate(step, chosen, total) for step in range(total)]
    assert all(0 <= rate <= 1.0 + 1e-12 for rate in found)
    falling = found[warmup_length(chosen, total) :]
    if schedule == "cosine_restarts":
        return
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(falling))


def theirs(name: str, *, total: int = 100, warmup: int = 10, **options: object) -> list[float]:
    """A schedule of transformers over the updates after warm-up; its last update is the one after ours."""
    optimization = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    length = (
        {} if name in ("constant_schedule_with_warmup", "inverse_sqrt_schedule") else {"num_training_steps": total - 1}
    )
    scheduler = getattr(optimization, f"get_{name}")(optimizer, num_warmup_steps=warmup, **length, **options)
    return [scheduler.lr_lambdas[0](step) for step in range(warmup, total)]


@pytest.mark.parametrize(
    ("schedule", "name", "options"),
    [
        ("constant", "constant_schedule_with_warmup", {}),
        ("linear", "linear_schedule_with_warmup", {}),
        ("cosine", "cosine_schedule_with_warmup", {}),
        ("cosine_restarts", "cosine_with_hard_restarts_schedule_with_warmup", {"num_cycles": 2}),
        ("polynomial", "polynomial_decay_schedule_with_warmup", {"power": 1.0, "lr_end": 0.0}),
    ],
)
def test_is_that_of_transformers(schedule: str, name: str, options: dict[str, object]) -> None:
    assert rates(schedule=schedule, min_lr_ratio=0.0)[10:] == pytest.approx(theirs(name, **options), abs=1e-12)


def test_polynomial_and_restarts_with_other_numbers_are_those_of_transformers() -> None:
    ours = rates(schedule="polynomial", min_lr_ratio=0.2, schedule_power=2.5)[10:]
    expected = theirs("polynomial_decay_schedule_with_warmup", power=2.5, lr_end=0.2)
    assert ours == pytest.approx(expected, abs=1e-12)
    ours = rates(schedule="cosine_restarts", min_lr_ratio=0.0, schedule_cycles=5)[10:]
    expected = theirs("cosine_with_hard_restarts_schedule_with_warmup", num_cycles=5)
    assert ours == pytest.approx(expected, abs=1e-12)


def test_inverse_square_root_is_that_of_transformers_one_update_on() -> None:
    """Theirs begins at 0, ours at the first step of warm-up."""
    ours = rates(schedule="inverse_sqrt", min_lr_ratio=0.0)[10:-1]
    assert ours == pytest.approx(theirs("inverse_sqrt_schedule")[1:], abs=1e-12)


@pytest.mark.parametrize(("shape", "decay"), [("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt")])
def test_decay_of_wsd_is_that_of_transformers(shape: str, decay: str) -> None:
    ours = rates(schedule="wsd", decay_shape=shape, decay_fraction=0.3, min_lr_ratio=0.1)[10:]
    expected = theirs("wsd_schedule", num_stable_steps=60, num_decay_steps=29, decay_type=decay, min_lr_ratio=0.1)
    assert ours == pytest.approx(expected, abs=1e-12)


def test_exponential_decay_loses_the_same_share_in_each_update() -> None:
    found = rates(schedule="wsd", decay_shape="exponential", decay_fraction=0.3, min_lr_ratio=0.01)[70:]
    assert [later / earlier for earlier, later in itertools.pairwise(found)] == pytest.approx([0.01 ** (1 / 29)] * 29)
    assert rates(schedule="wsd", decay_shape="exponential", min_lr_ratio=0.0)[-1] == pytest.approx(1e-3)


def test_one_cycle_is_that_of_torch() -> None:
    """Theirs is one update longer at both ends: it starts at its lowest rate."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=400
    )
    expected = []
    for _ in range(100):
        optimizer.step()
        reference.step()
        expected.append(reference.get_last_lr()[0])
    ours = rates(
        warmup_steps=30, warmup_shape="cosine", warmup_start_ratio=1 / 25, schedule="cosine", min_lr_ratio=1 / 10000
    )
    assert ours[:30] == pytest.approx(expected[:30], abs=1e-12)
    assert ours[-1] == pytest.approx(expected[-1], abs=1e-12)
    assert ours[30:] == pytest.approx(expected[30:], abs=0.03)
