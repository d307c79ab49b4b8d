"""Two gloo processes against one: every optimiser ends at the same weights under DDP and FSDP2, with the same state.

What is not a matter of each number alone (norms, orthogonal matrices, factored means) must see whole tensors.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.harness import assert_same_end, make_trainer
from tests.conformance.test_loop import METHODS
from tests.distributed.processes import run_ranks
from trivium import registry
from trivium.core.average import MovingAverage
from trivium.core.distributed import Processes
from trivium.recipe import EmaSettings

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

CASES = [("fsdp2", name) for name in registry.names("optim") if name != "adamw8bit"]
CASES += [("ddp", "adamw8bit"), ("ddp", "muon")]
GROUPS: dict[str, Any] = {"layer_lr_decay": 0.7, "groups": [{"match": "*mlp*", "lr_factor": 0.5, "weight_decay": 0.3}]}


def train(name: str, engine: str, processes: Processes) -> dict[str, Any]:
    """Some updates with half of the state saved and loaded into a new trainer in between."""
    cls = registry.component("optim", name)

    def fresh() -> Any:
        optimizer = cls(cls.Config())
        settings = {"micro_rows": 2, "steps": 6, "schedule": "constant", **GROUPS}
        settings.update(clip=0.05, clip_by="value" if name == "adam" else "norm")
        trainer = make_trainer(METHODS["clm"](), engine=engine, processes=processes, optimizer=optimizer, **settings)
        if name == "adamw":
            average = MovingAverage(EmaSettings(), trainer.engine)
            trainer.state.register("ema", average)
            trainer.callbacks.append(average)
        return trainer

    first = fresh()
    first.fit(until=3)
    second = fresh()
    with first.engine.averaged("checkpoint"):
        model = {key: tensor.clone() for key, tensor in first.engine.weights("policy").items()}
    second.engine.load_weights("policy", model)
    second.engine.load_optimizer_state("policy", first.engine.optimizer_state("policy"))
    second.state.load_state_dict(first.state.state_dict())
    second.fit()
    engine_ = second.engine
    loss = engine_.evaluate(second.context.feed.batches())["loss"]
    slots = engine_.optimizer_state("policy")["slots"]
    training = engine_.weights("policy")
    with engine_.averaged("final"):
        final = {key: tensor.clone() for key, tensor in engine_.weights("policy").items()}
    return {"weights": training, "slots": slots, "final": final, "loss": loss}


def train_all(processes: Processes) -> dict[str, Any]:
    return {f"{engine} {name}": train(name, engine, processes) for engine, name in CASES}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(train_all, timeout=1000)


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_two_ranks_end_where_one_does(results: list[dict[str, Any]], engine: str, name: str) -> None:
    expected = train(name, "single", Processes())
    for rank in results:
        ours = rank[f"{engine} {name}"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        assert_same_end(ours, expected)
