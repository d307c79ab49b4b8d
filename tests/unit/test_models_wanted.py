"""The last block can leave out tokens nobody looks at: results and gradients stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trivium.data.batch import IGNORE, Batch, Layout
from trivium.losses import token_loss
from trivium.models.build import build_model, preset

LENGTHS = (7, 1, 30, 12, 12, 3)
TOKENS = sum(LENGTHS)
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 32}


def loss_and_gradients(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(ids, Layout(LENGTHS), then=lambda hidden, head: token_loss(hidden, head, targets), **more)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("name", ["bert-1m", "llama-1m", "pythia-1m", "falcon-1m", "gemma2-1m", "mixtral-1m"])
def test_results_and_gradients(name: str, share: float, checkpointing: bool) -> None:
    config = preset(name, {**SMALL, "num_layers": 2, "init_std": 0.2})
    model = build_model(config, seed=0, dtype=torch.float64)
    if checkpointing:
        model.checkpoint_activations()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (TOKENS,), generator=draw)
    targets = torch.where(torch.rand(TOKENS, generator=draw) < share, ids, IGNORE)
    wanted = (targets != IGNORE).nonzero().squeeze(1)
    whole = loss_and_gradients(model, ids, targets)
    torch.testing.assert_close(loss_and_gradients(model, ids, targets, wanted=wanted), whole, rtol=1e-10, atol=1e-12)
    assert len(whole) == 1 + len(list(model.parameters()))


@pytest.mark.parametrize("lengths", [LENGTHS, (13,) * 5])
@pytest.mark.parametrize("wanted", [[0], [64], [7, 8, 20, 21, 22, 50, 62, 64]])
def test_an_encoder_asks_nothing_for_the_others(wanted: list[int], lengths: tuple[int, ...]) -> None:
    model = build_model(preset("bert-1m", {**SMALL, "num_layers": 2, "init_std": 0.2}), seed=0, dtype=torch.float64)
    asked: list[int] = []
    for block in model.blocks:
        block.attention.query.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    ids = torch.randint(0, 64, (TOKENS,), generator=torch.Generator().manual_seed(1))
    some = torch.tensor(wanted)

    def hidden(given: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = model(ids, Layout(lengths), wanted=given, then=lambda hidden, head: hidden)
        return result

    torch.testing.assert_close(hidden(some)[some], hidden(None)[some], rtol=1e-10, atol=1e-12)
    assert asked == [TOKENS, len(wanted), TOKENS, TOKENS]


def test_the_last_mlp_sees_fewer_tokens() -> None:
    model = build_model(preset("bert-1m", {**SMALL, "num_layers": 2}), seed=0)
    seen: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    ids = torch.randint(0, 64, (TOKENS,))
    model(ids, Layout(LENGTHS), wanted=torch.tensor([3, 40]))
    assert seen == [TOKENS, 2]


def test_a_role_leaves_out_what_has_no_target() -> None:
    from trivium.core.method import Role, RoleModel

    model = build_model(preset("bert-1m", {**SMALL, "num_layers": 1}), seed=0)
    role = RoleModel("policy", model, Role())
    seen: list[int] = []
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    targets = torch.full((TOKENS,), IGNORE)
    targets[5] = 1
    batch = Batch(torch.zeros(TOKENS, dtype=torch.int64), targets, Layout(LENGTHS))
    for only_targets in (False, True):
        role(batch, lambda hidden, head: hidden, only_targets=only_targets)
    assert seen == [TOKENS, 1]
