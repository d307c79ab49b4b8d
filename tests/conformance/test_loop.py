"""Seven methods on the bare loop, with no branch for any of them in the trainer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients, make_trainer, tiny_config
from trivium import losses
from trivium.config import StrictModel
from trivium.core.callbacks import Callback
from trivium.core.method import Method, Role, Update, frozen_forward
from trivium.core.terms import Term, Terms
from trivium.core.trainer import Trainer
from trivium.data.batch import Batch
from trivium.errors import TrainingDiverged
from trivium.methods.clm import CausalLanguageModelling
from trivium.methods.distill import Distillation
from trivium.methods.dpo import DirectPreferenceOptimisation
from trivium.methods.freelb import FreeLB
from trivium.methods.grpo import GroupRelativePolicyOptimisation
from trivium.methods.sft import SupervisedFineTuning


class TwoPlayers(Method):
    """A generator and a critic that each predict tokens, in turns, with an optimiser each; the critic looks twice."""

    class Config(StrictModel):
        """No settings."""

    def roles(self) -> dict[str, Role]:
        return {"policy": Role(), "critic": Role()}

    def players(self) -> dict[str, list[str]]:
        return {"generator": ["policy"], "critic": ["critic"]}

    def updates(self) -> Iterator[Update]:
        while True:
            batches = self.context.feed.batches()
            if self.context.progression.step % 2 == 0:
                yield Update(batches, player="generator", loss=self.generator_loss)
            else:
                yield Update(batches, player="critic", loss=self.critic_loss)

    def generator_loss(self, batch: Batch) -> Terms:
        own = self.policy(batch, lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets))
        judged = self.context.roles["critic"](
            batch, lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets)
        )
        return {"nll": Term(-own.sum(), "tokens"), "judged": Term((own * judged.exp()).sum(), "tokens", 0.1)}

    def critic_loss(self, batch: Batch) -> Terms:
        own = frozen_forward(
            self.policy, batch, lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets)
        )
        judged = self.context.roles["critic"](
            batch, lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets)
        )
        return {"gap": Term((judged - own).square().sum(), "tokens")}


METHODS = {
    "clm": lambda: CausalLanguageModelling(CausalLanguageModelling.Config()),
    "sft": lambda: SupervisedFineTuning(SupervisedFineTuning.Config()),
    "dpo": lambda: DirectPreferenceOptimisation(DirectPreferenceOptimisation.Config()),
    "distill": lambda: Distillation(Distillation.Config(teacher="teacher")),
    "grpo": lambda: GroupRelativePolicyOptimisation(
        GroupRelativePolicyOptimisation.Config(reward="brevity", group_size=4, max_new_tokens=6, minibatches=2, kl=0.05)
    ),
    "freelb": lambda: FreeLB(FreeLB.Config(ascent_steps=2)),
    "two_players": lambda: TwoPlayers(TwoPlayers.Config()),
}
SPLITTABLE = ["clm", "sft", "dpo", "distill", "two_players"]


class Losses(Callback):
    """Keeps each update's loss and terms."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.terms: list[dict[str, float]] = []

    def update_end(self, trainer: Trainer, update: Update, result, tokens: int) -> None:  # type: ignore[no-untyped-def]
        self.losses.append(result.loss)
        self.terms.append(result.terms)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_moves_only_trainable_roles(name: str) -> None:
    trainer = make_trainer(METHODS[name](), steps=6)
    before = {key: copy.deepcopy(role.module.state_dict()) for key, role in trainer.engine.roles.items()}
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    assert trainer.progression.step >= 6
    assert all(math.isfinite(loss) for loss in log.losses)
    for key, role in trainer.engine.roles.items():
        same = all(torch.equal(value, before[key][entry]) for entry, value in role.module.state_dict().items())
        assert same != role.trainable, f"{key} {'did not move' if role.trainable else 'moved'}"
        assert role.trainable or all(p.grad is None and not p.requires_grad for p in role.module.parameters())


@pytest.mark.parametrize("name", ["clm", "sft", "distill", "freelb"])
def test_overfits_a_tiny_set(name: str) -> None:
    trainer = make_trainer(METHODS[name](), steps=60, batch_size=24, micro_rows=24, lr=3e-2)
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    assert log.terms[-1]["nll"] < 0.5 * log.terms[0]["nll"]


def test_dpo_prefers_the_chosen_answers() -> None:
    trainer = make_trainer(METHODS["dpo"](), steps=30, batch_size=24, micro_rows=24, lr=3e-2)
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    assert log.losses[0] == pytest.approx(math.log(2), rel=1e-9), "policy and reference are equal at the start"
    assert log.terms[-1]["accuracy"] == 1.0


def test_grpo_raises_the_reward() -> None:
    method = GroupRelativePolicyOptimisation(
        GroupRelativePolicyOptimisation.Config(reward="brevity", group_size=8, max_new_tokens=8, minibatches=1)
    )
    trainer = make_trainer(method, steps=25, batch_size=8, lr=3e-2)
    log = Losses()
    trainer.callbacks.append(log)
    trainer.fit()
    rewards = [terms["reward"] for terms in log.terms]
    assert sum(rewards[-5:]) / 5 > 1.5 * sum(rewards[:5]) / 5


@pytest.mark.parametrize("name", SPLITTABLE)
@pytest.mark.parametrize("micro_rows", [1, 2, 8])
@pytest.mark.parametrize("padded", [False, True])
def test_gradient_does_not_depend_on_the_split(name: str, micro_rows: int, padded: bool) -> None:
    def gradients(rows: int, pad_to: int | None) -> list[dict[str, torch.Tensor]]:
        recorder = Frozen()
        make_trainer(METHODS[name](), micro_rows=rows, pad_to=pad_to, steps=3, optimizer=recorder).fit()
        return recorder.gradients

    whole = gradients(8, None)
    split = gradients(micro_rows, 60 * micro_rows if padded else None)
    assert len(whole) == len(split) == 3
    for ours, reference in zip(split, whole, strict=True):
        assert_same_gradients(ours, reference)


@pytest.mark.parametrize("name", SPLITTABLE)
def test_weights_count_what_the_loss_sums(name: str) -> None:
    trainer = make_trainer(METHODS[name]())
    for _ in range(3):
        for batch in trainer.context.feed.batches():
            counted = trainer.method.weights(batch)
            terms = (trainer.method.critic_loss if name == "two_players" else trainer.method.loss)(
                trainer.method.prepare(batch)
            )
            assert {term.unit for term in terms.values()} <= set(counted)
            assert counted["tokens"] == int((batch.targets != -100).sum())


def test_non_finite_updates_are_skipped_then_stop_the_run() -> None:
    trainer = make_trainer(METHODS["clm"](), steps=20, max_nonfinite=3)
    start = copy.deepcopy(trainer.engine.weights("policy"))
    method_loss = trainer.method.loss
    trainer.method.loss = lambda batch: {  # type: ignore[method-assign]
        "nll": Term(method_loss(batch)["nll"].sum * float("nan"), "tokens")
    }
    with pytest.raises(TrainingDiverged, match="4 updates in a row"):
        trainer.fit()
    assert trainer.progression.skipped == 4
    after = trainer.engine.weights("policy")
    assert all(torch.equal(after[name], start[name]) for name in start)


def test_one_non_finite_update_costs_one_update() -> None:
    trainer = make_trainer(METHODS["clm"](), steps=6)
    method_loss, calls = trainer.method.loss, []

    def loss(batch: Batch) -> Terms:
        calls.append(1)
        nll = method_loss(batch)["nll"].sum
        return {"nll": Term(nll * float("inf") if len(calls) == 3 else nll, "tokens")}

    trainer.method.loss = loss  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.progression.skipped == 1 and trainer.progression.consecutive == 0
    assert all(torch.isfinite(value).all() for value in trainer.engine.weights("policy").values())


def test_stop_in_a_rollout_abandons_it_and_saves_the_state_before_it() -> None:
    saved: list[int] = []
    trainer = make_trainer(METHODS["grpo"](), steps=40, checkpoint_every=1000)
    trainer.save = lambda trainer: saved.append(trainer.progression.step)
    updates = trainer.method.updates

    def stopping() -> Iterator[Update]:
        for number, update in enumerate(updates()):
            if number == 3:  # between the two updates of the second rollout
                trainer.stop_signal = "SIGTERM"
            yield update

    trainer.method.updates = stopping  # type: ignore[method-assign]
    with pytest.raises(Exception, match="stopped by SIGTERM after update 4"):
        trainer.fit()
    assert saved == [4], "a finished rollout's updates are completed before the run is saved"

    trainer.stop_signal = "SIGTERM"
    position = trainer.progression.step
    with pytest.raises(Exception, match="stopped by SIGTERM after update 4"):
        trainer.fit()
    assert trainer.progression.step == position, "an abandoned rollout has changed nothing"


@pytest.mark.parametrize("name", METHODS)
def test_random_numbers_drawn_outside_of_the_loop_change_nothing(name: str) -> None:
    gpt2 = {"family": "gpt2", "positions": "learned", "norm": "layernorm", "mlp": "plain", "activation": "gelu_tanh"}
    config = tiny_config(**gpt2, biases=("attention", "mlp"), num_kv_heads=4, dropout=0.2)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make_trainer(METHODS[name](), steps=4, config=config)
        trainer.fit()
        weights.append(trainer.engine.weights("policy"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
