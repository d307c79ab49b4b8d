"""Learning rates and weight decay by layer and by name: in the table, and in what an update does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conformance.harness import make_trainer
from tests.conformance.test_loop import TwoPlayers
from trivium.config import resolve
from trivium.core.engine import Engine
from trivium.errors import ConfigError
from trivium.methods.clm import CausalLanguageModelling
from trivium.models.build import preset
from trivium.optim.groups import below_top, describe_groups, part_of, shortened
from trivium.optim.lion import Lion
from trivium.optim.sgd import SGD

LR = 1e-2


def made(optimizer: Any = None, **train: Any) -> Engine:
    settings: dict[str, Any] = {"lr": LR, "schedule": "constant", **train}
    return make_trainer(
        CausalLanguageModelling(CausalLanguageModelling.Config()),
        optimizer=optimizer or Lion(Lion.Config(weight_decay=0.0)),
        **settings,
    ).engine


def moved(change: Callable[[Engine], None] = lambda engine: None, **train: Any) -> dict[str, float]:
    """How far each weight moves in one update of Lion without decay: by its learning rate."""
    settings: dict[str, Any] = {"lr": LR, "schedule": "constant", "steps": 1, **train}
    trainer = make_trainer(
        CausalLanguageModelling(CausalLanguageModelling.Config()),
        optimizer=Lion(Lion.Config(weight_decay=0.0)),
        **settings,
    )
    before = {name: tensor.clone() for name, tensor in trainer.engine.weights("policy").items()}
    trainer.fit()
    return {
        name: float((tensor - before[name]).abs().max()) for name, tensor in trainer.engine.weights("policy").items()
    }


def test_layer_decay_slows_down_the_lower_blocks() -> None:
    found = moved(layer_lr_decay=0.5)
    assert found["head.weight"] == pytest.approx(LR)
    assert found["final_norm.weight"] == pytest.approx(LR)
    assert found["blocks.1.mlp.up.weight"] == pytest.approx(LR / 2)
    assert found["blocks.0.attention_norm.weight"] == pytest.approx(LR / 4)
    assert found["embed.weight"] == pytest.approx(LR / 8)


def test_rules_change_the_learning_rate_of_what_they_fit() -> None:
    found = moved(
        layer_lr_decay=0.5,
        groups=[
            {"match": "embed.*", "lr": 3e-3},
            {"match": [r"re:.*blocks\.0\.mlp.*", "policy.final_norm.weight"], "lr_factor": 0.1},
            {"match": "*mlp*", "lr_factor": 2.0},
        ],
    )
    assert found["embed.weight"] == pytest.approx(3e-3), "a learning rate of its own is no share of another"
    assert found["blocks.0.mlp.up.weight"] == pytest.approx(0.1 * LR / 4), "the first rule that fits"
    assert found["blocks.1.mlp.up.weight"] == pytest.approx(2 * LR / 2)
    assert found["final_norm.weight"] == pytest.approx(0.1 * LR)
    assert found["head.weight"] == pytest.approx(LR)


def test_the_schedule_scales_every_group() -> None:
    trainer = make_trainer(
        CausalLanguageModelling(CausalLanguageModelling.Config()), steps=4, lr=LR, schedule="linear", layer_lr_decay=0.5
    )
    trainer.fit()
    groups = trainer.engine.players["policy"].optimizer.param_groups
    assert {group["lr"] for group in groups} == {trainer.lr * factor for factor in (1.0, 0.5, 0.25, 0.125)}
    assert trainer.lr == pytest.approx(0.1 * LR)


def test_a_rule_changes_the_weight_decay() -> None:
    """With a gradient of zero, only decay moves a weight."""
    engine = made(
        SGD(SGD.Config(weight_decay=0.1)),
        groups=[{"match": "*norm*", "weight_decay": 0.5}, {"match": "embed.*", "weight_decay": 0}],
    )
    before = {name: tensor.clone() for name, tensor in engine.weights("policy").items()}
    player = engine.players["policy"]
    for parameter in player.named.values():
        parameter.grad = torch.zeros_like(parameter)
    player.optimizer.step()
    for name, tensor in engine.weights("policy").items():
        decay = 0.5 if "norm" in name else 0.0 if name.startswith("embed") else 0.1
        torch.testing.assert_close(tensor, before[name] * (1 - LR * decay))


def test_factors_of_a_role_count_too() -> None:
    trainer = make_trainer(CausalLanguageModelling(CausalLanguageModelling.Config()), lr=LR)
    trainer.engine.roles["policy"].lr_factors["head.weight"] = 16.0
    player = trainer.engine.make_player([trainer.engine.roles["policy"]], Lion(Lion.Config()))
    rates = {group["lr_factor"]: len(group["params"]) for group in player.optimizer.param_groups}
    assert rates.pop(16.0) == 1 and set(rates) == {1.0}


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([{"match": "embedd.*", "lr": 1e-3}], "no trained parameter"),
        ([{"match": "*", "lr": 1e-3}, {"match": "embed.*", "lr": 1e-4}], "earlier rules"),
    ],
)
def test_a_rule_for_nothing_is_refused(groups: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        made(groups=groups)


@pytest.mark.parametrize(
    "group",
    [
        {"match": "*"},
        {"match": "*", "lr": 1e-3, "lr_factor": 2},
        {"match": "re:(", "lr": 1e-3},
        {"match": "*", "lr_factor": 0},
        {"match": [], "lr": 1e-3},
    ],
)
def test_a_rule_that_says_nothing_or_too_much_is_refused(group: dict[str, Any]) -> None:
    recipe = {
        "name": "run",
        "method": "clm",
        "model": {"preset": "llama-1m"},
        "data": {"train": "pydocs"},
        "train": {"steps": 1, "groups": [group]},
    }
    with pytest.raises(ConfigError, match=r"groups"):
        resolve(recipe)


def test_depth_of_a_decoder_and_of_an_encoder_decoder() -> None:
    assert [below_top(f"blocks.{n}.mlp.up.weight", 3) for n in range(3)] == [3, 2, 1]
    assert below_top("embed.weight", 3) == below_top("position_embed.weight", 3) == 4
    assert below_top("head.weight", 3) == below_top("head.dense.bias", 3) == below_top("final_norm.weight", 3) == 0
    assert below_top("encoder.blocks.5.mlp.up.weight", 3, 6) == 1
    assert below_top("encoder.blocks.0.mlp.up.weight", 3, 6) == 6
    assert below_top("blocks.2.mlp.up.weight", 3, 6) == 1
    assert below_top("embed.weight", 3, 6) == below_top("encoder.relative_bias.weight", 3, 6) == 7
    assert part_of("encoder.blocks.5.mlp.up.weight") == "encoder block 5"
    assert part_of("encoder.final_norm.weight") == "encoder's final norm"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("bert-1m", {"embeddings": 3, "block 0": 2, "block 1": 1, "head": 0}),
        ("gpt2-1m", {"embeddings": 3, "block 0": 2, "block 1": 1, "final norm": 0}),
        (
            "t5-1m",
            {"embeddings": 4, "block 0": 3, "block 2": 1, "encoder block 0": 2, "encoder block 1": 1, "final norm": 0},
        ),
    ],
)
def test_layer_decay_of_each_kind_of_model(shape: str, expected: dict[str, int]) -> None:
    changes = {"num_layers": 2, "vocab_size": 61, **({"num_decoder_layers": 3} if shape.startswith("t5") else {})}
    config = preset(shape, changes)
    engine = make_trainer(
        CausalLanguageModelling(CausalLanguageModelling.Config()), config=config, layer_lr_decay=0.5
    ).engine
    rates = {row.part: row.lr_factor for row in engine.groups()}
    assert {part: rates[part] for part in expected} == {part: 0.5**below for part, below in expected.items()}


def test_the_table_counts_every_parameter_once() -> None:
    engine = made(layer_lr_decay=0.5)
    rows = engine.groups()
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in engine.players["policy"].named.values())
    lines = describe_groups(rows)
    assert len(lines) == 4
    assert lines[0] == "learning rate 0.00125: 976 parameters (embeddings), weight decay none"
    assert lines[-1].startswith("learning rate 0.01: 992 parameters (final norm, head)")


def test_the_table_names_the_models_where_several_train() -> None:
    """A rule may fit the parameters of one optimiser only."""
    rows = make_trainer(TwoPlayers(TwoPlayers.Config()), groups=[{"match": "critic.*", "lr": 1e-4}]).engine.groups()
    assert {row.lr for row in rows if row.part.startswith("critic: ")} == {1e-4}
    assert {row.lr for row in rows if row.part.startswith("policy: ")} == {1e-2}


def test_neighbouring_blocks_are_said_together() -> None:
    parts = ["embeddings", "block 0", "block 0", "block 1", "block 3", "encoder block 4", "encoder block 5", "head"]
    assert shortened(parts) == ["embeddings", "blocks 0-1", "block 3", "encoder blocks 4-5", "head"]
