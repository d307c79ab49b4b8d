"""Supervised tuning: tokens of several weights are counted exactly, and each setting changes what it says."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.conformance.harness import Frozen, assert_same_gradients, make_samples, make_trainer
from trivium.core.trainer import Trainer
from trivium.data.samples import Sample, TokenSequence
from trivium.methods.sft import SupervisedFineTuning


def weighted_samples(count: int) -> list[Sample]:
    """The samples of the other conformance tests, each answer token with a weight of its own."""
    rng = random.Random(1)
    samples = []
    for sample in make_samples("instructions", count):
        (sequence,) = sample.sequences
        weights = [rng.choice([0.1, 0.5, 1.0]) if flag else 0.0 for flag in sequence.trained]
        samples.append(Sample(sample.id, [TokenSequence(sequence.ids, sequence.trained, weights)]))
    return samples


def trainer(*, micro_rows: int = 8, weighted: bool = False, optimizer: Any = None, **settings: Any) -> Trainer:
    method = SupervisedFineTuning(SupervisedFineTuning.Config(**settings))
    made = make_trainer(method, micro_rows=micro_rows, optimizer=optimizer, steps=1)
    if weighted:
        made.context.feed.samples_of = weighted_samples(24)  # type: ignore[attr-defined]
    return made


def gradient(**settings: Any) -> dict[str, torch.Tensor]:
    recorder = Frozen()
    trainer(optimizer=recorder, **settings).fit()
    return recorder.gradients[0]


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}])
def test_weighted_gradients_do_not_depend_on_the_split(settings: dict[str, float]) -> None:
    assert_same_gradients(gradient(weighted=True, micro_rows=1, **settings), gradient(weighted=True, **settings))


@pytest.mark.parametrize(
    "settings", [{"weighted": True}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"neftune_alpha": 5.0}]
)
def test_each_setting_changes_the_gradient(settings: dict[str, Any]) -> None:
    changed, plain = gradient(**settings), gradient()
    assert any((changed[name] - plain[name]).abs().max() > 1e-6 for name in plain)


def terms(**settings: Any) -> tuple[float, dict[str, float], Any]:
    """(loss, terms) of the first update, and its batch with the model that it was computed with."""
    made = trainer(optimizer=Frozen(), **settings)
    update = next(made.method.updates())
    result = made.engine.run(update, made.engine.count(update), step=0, lr=0.0)
    return result.loss, result.terms, (made.method.policy.module, update.batches[0])


def test_the_weighted_loss_is_the_mean_over_the_weights() -> None:
    loss, found, (module, batch) = terms(weighted=True)
    logits = module(batch.input_ids, batch.layout).detach()
    each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    weights = batch.fields["weights"].double()
    assert loss == found["objective"] == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-9)
    assert found["nll"] == pytest.approx(float(each.sum() / (weights > 0).sum()), rel=1e-9)


def test_accuracy_and_entropy_are_those_of_the_trained_tokens() -> None:
    loss, found, (module, batch) = terms()
    logits = module(batch.input_ids, batch.layout).detach()[batch.targets != -100]
    targets = batch.targets[batch.targets != -100]
    logp = logits.log_softmax(-1)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).double().mean()))
    assert found["entropy"] == pytest.approx(float(-(logp.exp() * logp).sum(-1).mean()))
    assert loss == found["nll"]
