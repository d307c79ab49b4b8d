"""Losses over a whole update: the same gradient however it is split, and that of autograd through everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.conformance.harness import Frozen, assert_same_gradients
from tests.conformance.objectives import model_config, objective_recipe, objective_trainer, open_objective
from tests.conformance.test_loop import Losses
from trivium.core.method import Method
from trivium.core.terms import scaled_total
from trivium.core.trainer import Trainer
from trivium.errors import ConfigError
from trivium.methods.embedding import Embedding
from trivium.methods.supervised_contrastive import SupervisedContrastive
from trivium.models.config import ModelConfig

CASES: dict[str, tuple[type[Method], dict[str, Any], str]] = {
    "supervised": (SupervisedContrastive, {"projection": 8}, ""),
    "supervised, hard": (SupervisedContrastive, {"projection": 0, "hardness": 0.5}, ""),
    "supervised, joint": (SupervisedContrastive, {"classifier": "joint", "dropout": 0.0, "projection": 0}, ""),
    "supervised, two views": (SupervisedContrastive, {"views": 2, "dropout": 0.2}, ""),
    "pairs": (Embedding, {}, ""),
    "pairs, symmetric": (Embedding, {"symmetric": True, "similarity": "dot", "temperature": 1.0}, ""),
    "negatives": (Embedding, {"dense": "tanh", "dense_size": 12, "false_negative_margin": 0.05}, "negatives"),
    "matryoshka": (Embedding, {"matryoshka": [8, 4], "matryoshka_weights": [0.5, 0.25]}, "negatives"),
    "cosent": (Embedding, {"matryoshka": [4]}, "scored"),
    "cosine": (Embedding, {"objective": "cosine"}, "scored"),
    "alone": (Embedding, {"dropout": 0.2}, "alone"),
}
NOISY = {"supervised, two views", "alone"}
"""What draws dropout for each micro-batch is no function of the texts alone."""


def made(name: str, **changes: Any) -> Method:
    cls, settings, _ = CASES[name]
    return cls(cls.Config(**{**settings, **changes}))


def trainer(name: str, changes: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    return objective_trainer(made(name, **(changes or {})), shape=CASES[name][2], **settings)


def gradients(name: str, changes: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, torch.Tensor]]:
    recorder = Frozen()
    trainer(name, changes, optimizer=recorder, **{"steps": 2, **settings}).fit()
    return recorder.gradients


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOISY])
def test_gradient_does_not_depend_on_the_split(name: str) -> None:
    whole = gradients(name)
    for micro_rows, pad_rows in [(1, False), (3, True), (8, True)]:
        split = gradients(name, micro_rows=micro_rows, pad_rows=pad_rows)
        assert len(whole) == len(split) == 2
        for ours, reference in zip(split, whole, strict=True):
            assert_same_gradients(ours, reference)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro_rows", [3, 8])
def test_gradient_is_that_of_the_whole_graph(name: str, micro_rows: int) -> None:
    """Everything in one graph, with the random numbers of each micro-batch; the engine never holds it."""
    ours = gradients(name, micro_rows=micro_rows, steps=1)[0]
    other = trainer(name, micro_rows=micro_rows, steps=1)
    method, engine = other.method, other.engine
    update = next(method.updates())
    counts = engine.count(update)
    parts = [engine.represented(batch, 0, index) for index, batch in enumerate(update.batches)]
    together = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    scaled_total(method.joint(together), counts).backward()
    named = engine.players["policy"].named
    assert_same_gradients(ours, {key: value.grad for key, value in named.items() if value.grad is not None})


@pytest.mark.parametrize("name", CASES)
def test_learns(name: str) -> None:
    running = trainer(name, steps=60, lr=4e-3, batch_size=12)
    log = Losses()
    running.callbacks.append(log)
    running.fit()
    first, last = (sum(part) / 5 for part in (log.losses[:5], log.losses[-5:]))
    assert last < 0.9 * first
    assert all(math.isfinite(loss) for loss in log.losses)


@pytest.mark.parametrize("name", CASES)
def test_weights_count_what_the_loss_sums(name: str) -> None:
    running = trainer(name, micro_rows=3, pad_rows=True)
    views, padding = (2 if name in NOISY else 1), 0
    for batch in running.context.feed.batches():
        batch = running.method.prepare(batch)
        counted, terms = running.method.weights(batch), running.method.loss(batch)
        assert {term.unit for term in terms.values()} <= set(counted)
        unit = "pairs" if isinstance(running.method, Embedding) else "sequences"
        assert counted[unit] == len(batch.sample_ids) * (views if unit == "sequences" else 1) > 0
        assert all(math.isfinite(float(term.sum.detach())) for term in terms.values())
        padding += batch.tokens * views - int(counted["tokens"])
    assert padding > 0, "what fills the rows does not count"


@pytest.mark.parametrize("name", CASES)
def test_validation_does_not_depend_on_the_split(name: str) -> None:
    figures = []
    for micro_rows in (2, 8):
        running = trainer(name, micro_rows=micro_rows)
        figures.append(running.engine.evaluate(running.context.feed.loader.evaluation()))
    assert figures[0].keys() == figures[1].keys()
    assert figures[0] == pytest.approx(figures[1], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("supervised", {"temperature": 0.5}),
        ("supervised", {"hardness": 1.0}),
        ("supervised", {"projection": 4}),
        ("supervised", {"views": 2, "dropout": 0.2}),
        ("supervised", {"dropout": 0.2}),
        ("supervised", {"pooling": "first"}),
        ("supervised, joint", {"weight": 0.9}),
        ("supervised, joint", {"dropout": 0.3}),
        ("pairs", {"temperature": 0.5}),
        ("pairs", {"similarity": "dot"}),
        ("pairs", {"symmetric": True}),
        ("pairs", {"false_negative_margin": 0.01}),
        ("pairs", {"keep_duplicates": True}),
        ("pairs", {"pooling": "max"}),
        ("pairs", {"dense": "linear"}),
        ("pairs", {"dense": "relu", "dense_size": 4}),
        ("pairs", {"matryoshka": [4]}),
        ("pairs", {"dropout": 0.2}),
        ("matryoshka", {"matryoshka_weights": [1.0, 1.0]}),
        ("cosent", {"objective": "cosine", "temperature": 0.05}),
        ("cosent", {"temperature": 0.5}),
    ],
)
def test_options_change_the_loss(name: str, change: dict[str, Any]) -> None:
    def loss(changes: dict[str, Any]) -> float:
        running = trainer(name, changes, steps=1)
        log = Losses()
        running.callbacks.append(log)
        running.fit()
        return log.losses[0]

    assert loss({}) == loss({})
    assert not math.isclose(loss({}), loss(change), rel_tol=1e-6)


def decoder(**changes: Any) -> ModelConfig:
    return model_config("decoder", **changes)


def test_decoders_end_in_their_last_token() -> None:
    running = trainer("pairs", config=decoder())
    assert running.method.policy.module.config.pooling == "last"


@pytest.mark.parametrize(
    ("name", "changes", "shape", "said"),
    [
        ("pairs", {"pooling": "first"}, "", "first token of a decoder"),
        ("pairs", {"matryoshka": [16]}, "", "not cut to this length"),
        ("pairs", {"matryoshka": [4], "matryoshka_weights": [1.0, 2.0]}, "", "not one weight for each length"),
        ("pairs", {"matryoshka": [0]}, "", "above 0"),
        ("pairs", {"dense_size": 4}, "", "no dense layer"),
        ("pairs", {"keep_dense": False}, "", "no dense layer"),
        ("pairs", {"objective": "cosent"}, "", "does not fit the rows"),
        ("pairs", {"objective": "ranking"}, "scored", "does not fit the rows"),
        ("cosent", {"symmetric": True}, "scored", "symmetric has no effect"),
        ("cosine", {"temperature": 0.1}, "scored", "temperature has no effect"),
        ("alone", {"dropout": None}, "alone", "there is no dropout"),
        ("supervised, two views", {"dropout": 0.0}, "", "there is no dropout"),
        ("supervised", {"weight": 0.1}, "", "weight has no effect"),
        ("supervised", {"penalty": 2.0}, "", "penalty has no effect"),
    ],
)
def test_what_cannot_be_is_refused(name: str, changes: dict[str, Any], shape: str, said: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=said):
        objective_trainer(made(name, **changes), shape=shape, config=decoder())


def test_prompts_and_encoder_decoders_are_refused() -> None:
    method = made("pairs")
    with pytest.raises(ConfigError, match="continues no prompts"):
        open_objective(method, objective_recipe(method, sample_prompts=["a"]), decoder())
    with pytest.raises(ConfigError, match="not from encoder-decoders"):
        open_objective(method, objective_recipe(method), model_config("encoder_decoder"))
