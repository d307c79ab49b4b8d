"""Two gloo processes against one: the same gradients under DDP, FSDP2 and pipelines, in float64.

The feeds deal ragged rows to the ranks, so counts are unequal; with one row in an update the second rank has nothing
to train at all. All jobs run in one pair of processes, because starting them takes longer than the jobs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients, make_trainer, tiny_config
from tests.conformance.objectives import model_config
from tests.conformance.test_loop import METHODS
from tests.distributed.processes import run_ranks
from trivium.core.callbacks import Callback
from trivium.core.distributed import Processes
from trivium.core.engine import StepResult
from trivium.core.engine_pipeline import refuse_unsupported_model
from trivium.core.method import Update
from trivium.core.trainer import Trainer
from trivium.errors import ConfigError
from trivium.methods.freelb import FreeLB
from trivium.models.config import ModelConfig

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]
Gradients = list[dict[str, torch.Tensor]]

ENGINES = ["ddp", "fsdp2"]
GRADIENT_METHODS = ["clm", "sft", "dpo", "distill", "freelb", "two_players"]
MIXTURE = {"family": "mixtral", "experts": 4, "experts_per_token": 2, "balance_loss": 0.0}
"""Without the balance, which depends on the micro-batches."""
PIPELINES = {
    "clm": ("clm", {"micro_rows": 2, "pad_to": 60}),
    "dpo": ("dpo", {"micro_rows": 2, "pad_to": 120}),
    "sft tied": ("sft", {"micro_rows": 2, "pad_to": 60, "tied": True}),
    "encoder": ("clm", {"micro_rows": 2, "pad_to": 60, "shape": "encoder"}),
}


def jobs() -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """Name -> (what to return, method, engine, settings)."""
    work: dict[str, tuple[str, str, str, dict[str, Any]]] = {}
    for engine in ENGINES:
        for method in GRADIENT_METHODS:
            work[f"{engine} {method}"] = ("gradients", method, engine, {"micro_rows": 2})
        work[f"{engine} empty rank"] = ("gradients", "clm", engine, {"micro_rows": 2, "batch_size": 1})
        work[f"{engine} experts"] = ("gradients", "clm", engine, {"micro_rows": 2, "shape": MIXTURE})
        work[f"{engine} trained"] = ("trained", "clm", engine, {"micro_rows": 2})
    for name, (method, settings) in PIPELINES.items():
        work[f"pipeline {name}"] = ("gradients", method, "pipeline", settings)
    work["ddp grpo"] = ("trained", "grpo", "ddp", {"micro_rows": 4})
    work["pipeline trained"] = ("trained", "clm", "pipeline", {"micro_rows": 2, "pad_to": 60})
    return work


class Losses(Callback):
    """Remembers the loss that each update told."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        self.seen.append(result.loss)


def run_job(processes: Processes, what: str, method: str, engine: str, settings: dict[str, Any]) -> Any:
    """One job on one rank."""
    settings = dict(settings)
    if shape := settings.pop("shape", None):
        settings["config"] = model_config(shape) if isinstance(shape, str) else tiny_config(**shape)
    if settings.pop("tied", False):
        settings["config"] = tiny_config(tie_embeddings=True)
    # Random noise would be drawn for each micro-batch; without it FreeLB is a function of the sequences alone.
    made = FreeLB(FreeLB.Config(initial=0.0)) if method == "freelb" else METHODS[method]()
    if what == "gradients":
        recorder = Frozen()
        make_trainer(made, engine=engine, processes=processes, optimizer=recorder, steps=3, **settings).fit()
        return recorder.gradients
    trainer = make_trainer(made, engine=engine, processes=processes, steps=4, clip=0.05, **settings)
    losses = Losses()
    trainer.callbacks.append(losses)
    trainer.fit()
    slots = trainer.engine.optimizer_state("policy")["slots"]
    return {"weights": trainer.engine.weights("policy"), "slots": slots, "losses": losses.seen}


def run_all(processes: Processes) -> dict[str, Any]:
    """Every job on one rank."""
    return {name: run_job(processes, *job) for name, job in jobs().items()}


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What both ranks found."""
    return run_ranks(run_all)


def alone(name: str) -> Any:
    """The same job in one process, in one micro-batch."""
    what, method, _, settings = jobs()[name]
    return run_job(Processes(), what, method, "single", {**settings, "micro_rows": 8, "pad_to": None})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [*GRADIENT_METHODS, "empty rank", "experts"])
def test_two_ranks_have_the_gradient_of_one(results: list[dict[str, Any]], engine: str, case: str) -> None:
    reference = alone(f"{engine} {case}")
    for rank in results:
        assert len(rank[f"{engine} {case}"]) == len(reference) == 3
        for ours, expected in zip(rank[f"{engine} {case}"], reference, strict=True):
            assert_same_gradients(ours, expected)


@pytest.mark.parametrize("case", PIPELINES)
def test_a_pipeline_has_the_gradient_of_one_process(results: list[dict[str, Any]], case: str) -> None:
    reference = alone(f"pipeline {case}")
    for update in range(3):
        parts = [rank[f"pipeline {case}"][update] for rank in results]
        assert all(parts), "both stages hold parameters"
        assert_same_gradients({**parts[0], **parts[1]}, reference[update])


def test_ranks_that_roll_out_different_prompts_stay_one_model(results: list[dict[str, Any]]) -> None:
    first, second = (rank["ddp grpo"]["weights"] for rank in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("engine", [*ENGINES, "pipeline"])
def test_training_with_clipping_ends_at_the_same_weights(results: list[dict[str, Any]], engine: str) -> None:
    expected = alone(f"{engine} trained")
    for rank in results:
        ours = rank[f"{engine} trained"]
        assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-9)
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(ours["weights"][name], tensor, rtol=1e-9, atol=1e-12)
        assert ours["slots"].keys() == expected["slots"].keys()
        for name, slot in expected["slots"].items():
            torch.testing.assert_close(ours["slots"][name]["exp_avg"], slot["exp_avg"], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("config", [tiny_config(**MIXTURE), model_config("encoder_decoder")])
def test_what_a_pipeline_cannot_carry_is_refused(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="cannot be cut into the stages of a pipeline"):
        refuse_unsupported_model(config)
