"""Weights that are used instead of those that train: the average of the schedule-free optimisers, and the EMA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import make_trainer
from tests.conformance.test_loop import METHODS
from trivium import registry
from trivium.core.average import MovingAverage
from trivium.core.terms import Term
from trivium.core.trainer import Trainer
from trivium.optim.adamw import AdamW
from trivium.optim.schedule_free import ScheduleFree
from trivium.recipe import EmaSettings


def made(optimizer: Any = None, ema: dict[str, Any] | None = None, **train: Any) -> Trainer:
    trainer = make_trainer(METHODS["clm"](), optimizer=optimizer, schedule="constant", **train)
    if ema is not None:
        average = MovingAverage(EmaSettings.model_validate(ema), trainer.engine)
        trainer.state.register("ema", average)
        trainer.callbacks.append(average)
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.engine.weights("policy").items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [{"decay": 0.5, "warmup": False}, {"decay": 0.5}, {"decay": 0.9}], ids=str)
def test_the_moving_average_is_what_its_formula_says(settings: dict[str, Any]) -> None:
    trainer = made(ema=settings, steps=6)
    average = weights(trainer)
    for step in range(1, 7):
        trainer.fit(until=step)
        decay = settings["decay"]
        if settings.get("warmup", True):
            decay = min(decay, (1 + step) / (10 + step))
        for name, now in weights(trainer).items():
            average[name] = decay * average[name] + (1 - decay) * now
    for name, found in trainer.engine.moving_average.weights.items():  # type: ignore[union-attr]
        torch.testing.assert_close(found, average[name.removeprefix("policy.")])


def test_the_moving_average_does_not_touch_the_training() -> None:
    plain, followed = made(steps=5), made(ema={}, steps=5)
    plain.fit()
    followed.fit()
    assert same(weights(plain), weights(followed))


def test_skipped_updates_do_not_move_the_average() -> None:
    trainer = made(ema={}, steps=3)
    trainer.fit(until=1)
    before = {name: tensor.clone() for name, tensor in trainer.engine.moving_average.weights.items()}  # type: ignore[union-attr]
    loss = trainer.method.loss
    trainer.method.loss = lambda batch: {  # type: ignore[method-assign]
        "nll": Term(loss(batch)["nll"].sum * torch.inf, "tokens")
    }
    trainer.fit(until=2)
    assert trainer.progression.skipped == 1
    assert same(before, trainer.engine.moving_average.weights)  # type: ignore[union-attr]


@pytest.mark.parametrize("use", ["validation", "final", "checkpoint"])
@pytest.mark.parametrize("off", ["none", "validation", "final"])
def test_the_moving_average_is_used_where_it_is_wanted(use: Any, off: str) -> None:
    trainer = made(ema={} if off == "none" else {off: False}, steps=4)
    trainer.fit()
    training = weights(trainer)
    with trainer.engine.averaged(use):
        inside = weights(trainer)
    assert same(inside, training) == (use in ("checkpoint", off))
    assert same(weights(trainer), training), "and the weights that train are back"


@pytest.mark.parametrize("use", ["validation", "final", "checkpoint"])
def test_the_model_of_a_schedule_free_run_is_its_average(use: Any) -> None:
    trainer = made(ScheduleFree(ScheduleFree.Config()), steps=4)
    trainer.fit()
    training = weights(trainer)
    slots = trainer.engine.optimizer_state("policy")["slots"]
    with trainer.engine.averaged(use):
        inside = weights(trainer)
    assert same(weights(trainer), training)
    for name, tensor in inside.items():
        z = slots[f"policy.{name}"]["z"]
        torch.testing.assert_close(0.1 * z + 0.9 * tensor, training[name])
        assert not torch.equal(tensor, training[name])


def test_validation_looks_at_the_average() -> None:
    trainer = made(ScheduleFree(ScheduleFree.Config()), steps=4)
    trainer.fit()
    batches = trainer.context.feed.batches()
    validated = trainer.engine.evaluate(batches)["loss"]
    with trainer.engine.averaged("final"):
        average = weights(trainer)
    plain = made(AdamW(AdamW.Config()), steps=4)
    plain.engine.load_weights("policy", weights(trainer))
    assert plain.engine.evaluate(batches)["loss"] != validated
    plain.engine.load_weights("policy", average)
    assert plain.engine.evaluate(batches)["loss"] == validated


@pytest.mark.parametrize("ema", [None, {}], ids=["alone", "ema"])
@pytest.mark.parametrize("name", registry.names("optim"))
def test_every_optimiser_continues_bit_for_bit(name: str, ema: dict[str, Any] | None) -> None:
    """As a checkpoint does it: the model to use, the state of the optimiser, and the state of the run."""
    cls = registry.component("optim", name)
    if ema is not None and name == "schedule_free":
        pytest.skip("averages already")

    def fresh() -> Trainer:
        return made(cls(cls.Config()), ema=ema, steps=6, dtype=torch.float32, layer_lr_decay=0.7)

    calm = fresh()
    calm.fit()
    first = fresh()
    first.fit(until=3)
    with first.engine.averaged("checkpoint"):
        model = weights(first)
    state, run = first.engine.optimizer_state("policy"), first.state.state_dict()
    second = fresh()
    second.state.load_state_dict(run)
    second.engine.load_weights("policy", model)
    second.engine.load_optimizer_state("policy", state)
    second.fit()
    assert same(weights(calm), weights(second))
    ours, expected = (one.engine.optimizer_state("policy")["slots"] for one in (second, calm))
    for key, slot in expected.items():
        for entry, value in slot.items():
            assert (
                torch.equal(ours[key][entry], value) if isinstance(value, torch.Tensor) else ours[key][entry] == value
            )
    if ema is not None:
        assert same(calm.engine.moving_average.weights, second.engine.moving_average.weights)  # type: ignore[union-attr]
