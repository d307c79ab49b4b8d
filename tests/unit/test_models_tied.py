"""A weight that is embedding and head has one gradient, and no second table is made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trivium.data.batch import Layout, Source
from trivium.losses.tokens import token_logprobs, token_loss
from trivium.models import tied
from trivium.models.build import build_model, preset
from trivium.models.transformer import Transformer

IDS, LAYOUT = torch.arange(64) % 37, Layout((30, 34))
Then = Callable[[Tensor, nn.Module], Tensor]
USES: dict[str, Then] = {
    "loss": lambda hidden, head: token_loss(hidden, head, IDS.roll(-1)),
    "logprobs": lambda hidden, head: token_logprobs(hidden, head, IDS.roll(-1)).sin().sum(),
    "logits": lambda hidden, head: head(hidden).sin().sum(),
    "only_head": lambda hidden, head: token_loss(hidden.detach(), head, IDS.roll(-1)),
    "only_embedding": lambda hidden, head: hidden.sin().sum(),
    "twice": lambda hidden, head: token_loss(hidden, head, IDS.roll(-1)) + head(hidden).square().mean(),
}


class Tables(TorchDispatchMode):
    """Counts operators that make a tensor of the shape of the weight."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.made = shape, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.layout == torch.strided and result.shape == self.shape:
            self.made += all(result.data_ptr() != x.data_ptr() for x in args if _strided(x))
        return result


def _strided(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


def model_of(name: str = "llama-1m") -> Transformer:
    return build_model(preset(name), seed=1, dtype=torch.float64)


def gradients(model: Transformer, then: Then, *, source: Source | None = None) -> tuple[list[Tensor | None], int]:
    """Of all parameters, and how many tables the backward pass made."""
    model.zero_grad()
    loss = model(IDS, LAYOUT, then=then, source=source)
    with Tables(model.embed.weight.shape) as tables:
        loss.backward()
    return [parameter.grad for parameter in model.parameters()], tables.made


@pytest.mark.parametrize("use", USES)
def test_the_gradient_is_that_of_two_uses(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    mine, made = gradients(model, USES[use])
    monkeypatch.setattr(tied, "suits", lambda weight: False)
    theirs, more = gradients(model, USES[use])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert made <= more if use.startswith("only") else made < more
    assert model.embed.weight.grad is not None and model.embed.weight.grad.layout == torch.strided


@pytest.mark.parametrize("name", ["t5-1m", "bart-1m"])
def test_sources_count_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(preset(name, {"tie_embeddings": True}), seed=1, dtype=torch.float64)
    source = Source(torch.arange(50) % 23, Layout((20, 30)))
    mine, made = gradients(model, USES["loss"], source=source)
    monkeypatch.setattr(tied, "suits", lambda weight: False)
    theirs, more = gradients(model, USES["loss"], source=source)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert (made, more > made) == (0, True)  # that of the head was made in the forward pass


def test_a_graph_can_be_used_again_and_two_passes_make_one_graph() -> None:
    model = model_of()
    weight = model.embed.weight
    first, second = (model(IDS, LAYOUT, then=USES[use]) for use in ("loss", "logits"))
    once = torch.autograd.grad(first + second, weight, retain_graph=True)[0].clone()
    again = torch.autograd.grad(first + second, weight, retain_graph=True)[0]
    assert torch.equal(once, again)
    apart = torch.autograd.grad(first, weight)[0] + torch.autograd.grad(second, weight)[0]
    torch.testing.assert_close(once, apart)


def test_nothing_is_left_behind_even_by_an_error() -> None:
    model = model_of()
    names = model.state_dict().keys()

    def fails(hidden: Tensor, head: nn.Module) -> Tensor:
        assert model.embed.shared is not None and model.head.matrix is not model.head.weight
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        model(IDS, LAYOUT, then=fails)
    assert model.embed.shared is model.head.shared is None
    assert model.head.matrix is model.head.weight is model.embed.weight
    assert model.state_dict().keys() == names


def test_where_it_does_not_pay_the_weight_is_read_itself() -> None:
    model = model_of()
    seen: list[bool] = []

    def note(hidden: Tensor, head: nn.Module) -> Tensor:
        seen.append(head.matrix is head.weight)
        return hidden.sum()

    with torch.no_grad():
        model(IDS, LAYOUT, then=note)
    model.embed.weight.requires_grad_(False)
    model(IDS, LAYOUT, then=note)
    own = build_model(preset("llama-1m", {"tie_embeddings": False}), seed=1)
    own(IDS, LAYOUT, then=note)
    assert seen == [True, True, True]


def test_a_weight_that_a_head_makes_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with the rows that train (`trivium.models.token_rows`) is as large as the vocabulary."""
    model, made = model_of(), []
    model.embed.weight.requires_grad_(False)

    class Made(type(model.head)):  # type: ignore[misc]
        @property
        def weight(self) -> Tensor:
            made.append(1)
            return self.__dict__["_parameters"]["weight"] * 1

    monkeypatch.setattr(model.head, "__class__", Made)
    model(IDS, LAYOUT, then=USES["loss"])
    assert len(made) == 1
