"""Two gloo processes against one: every optimiser ends at the same weights under DDP and FSDP2, with the same state.

What is not a matter of each number alone (norms, orthogonal matrices, factored means) must see whole tensors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import make_trainer
from tests.conformance.test_loop import METHODS
from tests.distributed.processes import run_ranks
from trivium import registry
from trivium.core.distributed import Processes

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

ENGINES = ["ddp", "fsdp2"]
OPTIMIZERS = list(registry.names("optim"))
GROUPS: dict[str, Any] = {"layer_lr_decay": 0.7, "groups": [{"match": "*mlp*", "lr_factor": 0.5, "weight_decay": 0.3}]}


def train(name: str, engine: str, processes: Processes) -> dict[str, Any]:
    """Some updates with half of the state saved and loaded into a new trainer in between."""
    cls = registry.component("optim", name)

    def fresh() -> Any:
        optimizer = cls(cls.Config())
        settings = {"micro_rows": 2, "steps": 6, "schedule": "constant", **GROUPS}
        return make_trainer(METHODS["clm"](), engine=engine, processes=processes, optimizer=optimizer, **settings)

    first = fresh()
    first.fit(until=3)
    second = fresh()
    second.engine.load_weights("policy", first.engine.weights("policy"))
    second.engine.load_optimizer_state("policy", first.engine.optimizer_state("policy"))
    second.state.load_state_dict(first.state.state_dict())
    second.fit()
    slots = second.engine.optimizer_state("policy")["slots"]
    return {"weights": second.engine.weights("policy"), "slots": slots}


def train_all(processes: Processes) -> dict[str, Any]:
    return {f"{engine} {name}": train(name, engine, processes) for engine in ENGINES for name in OPTIMIZERS}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(train_all)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_ranks_end_where_one_does(results: list[dict[str, Any]], engine: str, name: str) -> None:
    expected = train(name, "single", Processes())
    for rank in results:
        ours = rank[f"{engine} {name}"]
        for key, tensor in expected["weights"].items():
            torch.testing.assert_close(ours["weights"][key], tensor, rtol=1e-7, atol=1e-9)
        assert ours["slots"].keys() == expected["slots"].keys()
        for key, slots in expected["slots"].items():
            for slot, value in slots.items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(ours["slots"][key][slot], value, rtol=1e-6, atol=1e-9)
                else:
                    assert ours["slots"][key][slot] == value
