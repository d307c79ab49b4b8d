"""Memory traded for work: what is computed again, or kept elsewhere, changes no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conformance.harness import make_trainer, tiny_config
from tests.conformance.test_loop import METHODS
from trivium.core import offload
from trivium.core.trainer import Trainer
from trivium.data.batch import Layout, Source
from trivium.models.build import preset
from trivium.optim.schedule_free import ScheduleFree

MODES: dict[str, dict[str, Any]] = {
    "block": {"activation_checkpointing": "block"},
    "every second block": {"activation_checkpointing": "block", "checkpoint_every_block": 2},
    "mlp": {"activation_checkpointing": "mlp"},
    "every second mlp": {"activation_checkpointing": "mlp", "checkpoint_every_block": 2},
    "attention": {"activation_checkpointing": "attention"},
    "activations": {"offload": "activations"},
    "optimizer": {"offload": "optimizer"},
    "all": {"offload": "all"},
}


GPT2 = {
    "family": "gpt2",
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "plain",
    "activation": "gelu_tanh",
    "biases": ("attention", "mlp"),
    "num_kv_heads": 4,
    "num_layers": 4,
    "dropout": 0.2,
}


def made(method: str = "clm", **settings: Any) -> Trainer:
    config = settings.pop("config", None) or tiny_config(**GPT2)
    return make_trainer(METHODS[method](), config=config, steps=4, **settings)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.fit()
    return trainer.engine.weights("policy")


@pytest.fixture(autouse=True)
def every_tensor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["clm", "freelb"])
def test_the_result_is_the_same(mode: str, method: str) -> None:
    """With dropout, so that what is computed again must draw the same numbers again."""
    plain, ours = weights(made(method)), weights(made(method, **MODES[mode]))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("mode", ["every second block", "mlp", "attention"])
def test_the_gradient_of_an_encoder_decoder_is_the_same(mode: str) -> None:
    """Cross-attention is attention too."""
    config = preset("t5-1m", {"num_layers": 2, "num_decoder_layers": 2, "vocab_size": 61})
    layout = Layout((5, 3))
    source = Source(torch.randint(0, 61, (9,)), Layout((4, 5)))
    ids = torch.randint(0, 61, (8,))

    def gradients(**settings: Any) -> list[torch.Tensor]:
        model = made(config=config, **settings).engine.roles["policy"].module
        model(ids, layout, source=source).square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    for ours, plain in zip(gradients(**MODES[mode]), gradients(), strict=True):
        assert torch.equal(ours, plain)


def kept_bytes(**settings: Any) -> int:
    """Bytes that a forward pass keeps for its backward pass, besides weights; not inside of what is computed again."""
    trainer = made(config=tiny_config(num_layers=4), **settings)
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    update = next(iter(trainer.method.updates()))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = [trainer.method.loss(batch) for batch in update.batches]
    assert kept
    return sum(seen.values())


def test_what_is_computed_again_is_not_kept() -> None:
    plain = kept_bytes()
    sizes = {mode: kept_bytes(**MODES[mode]) for mode in MODES if "activation_checkpointing" in MODES[mode]}
    assert sizes["block"] < sizes["every second block"] < plain
    assert sizes["block"] < sizes["mlp"] < sizes["every second mlp"] < plain
    assert sizes["block"] < sizes["attention"] < plain


def test_offloaded_activations_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    made_room: list[int] = []
    beside = offload._beside
    monkeypatch.setattr(offload, "_beside", lambda tensor: made_room.append(tensor.numel()) or beside(tensor))
    made(offload="activations").fit(until=1)
    assert sum(made_room) > 1000


def test_an_offloaded_optimiser_moves_twins_and_is_saved_alike() -> None:
    """Half of the run with the state on the side, saved, and gone on with without, and the other way round."""
    plain = weights(made(optimizer=ScheduleFree(ScheduleFree.Config()), schedule="constant"))
    for first, second in (("optimizer", "none"), ("none", "optimizer")):
        one = made(optimizer=ScheduleFree(ScheduleFree.Config()), schedule="constant", offload=first)
        one.fit(until=2)
        other = made(optimizer=ScheduleFree(ScheduleFree.Config()), schedule="constant", offload=second)
        with one.engine.averaged("checkpoint"):
            other.engine.load_weights("policy", one.engine.weights("policy"))
        other.engine.load_optimizer_state("policy", one.engine.optimizer_state("policy"))
        other.state.load_state_dict(one.state.state_dict())
        ours = weights(other)
        assert all(torch.equal(ours[name], plain[name]) for name in plain)
    twins = one.engine.players["policy"].twins, other.engine.players["policy"].twins
    assert twins[0] is None and twins[1] is not None


def test_offloading_on_a_cpu_is_said_to_be_idle() -> None:
    assert "saves nothing on a CPU" in (offload.idle_offload("all", torch.device("cpu")) or "")
    assert offload.idle_offload("none", torch.device("cpu")) is None
    assert offload.idle_offload("all", torch.device("cuda")) is None
