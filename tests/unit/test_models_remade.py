"""What is made again in the backward pass is what was not kept, to the bit, and is let go afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trivium.data.batch import Layout
from trivium.losses.tokens import token_loss
from trivium.models import kernels, products, remade
from trivium.models.build import build_model, preset

READ = {"llama": 2, "gpt2": 2, "pythia": 2, "falcon": 1, "gemma2": 2, "olmo2": 0, "qwen3": 2, "mixtral": 2, "bert": 2}
"""Norms of a block that linear layers read, by family: before each branch, after it, both, one for both branches."""
Norm = Callable[[Tensor, Tensor], Tensor]
NORMS: dict[str, Norm] = {
    "rms": lambda x, weight: kernels.rms_norm(x, weight, 1e-5),
    "layer": lambda x, weight: kernels.layer_norm(x, weight, None, 1e-5),
}
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def kept_by(function: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and every tensor that is kept for its backward pass."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        return function(), kept


@pytest.mark.parametrize("family", READ)
@pytest.mark.parametrize("onednn", [False, True])
def test_a_model_has_the_same_gradients(family: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "ONEDNN", onednn)
    model = build_model(preset(f"{family}-1m"), seed=1)
    ids, layout = torch.arange(128) % 97, Layout((50, 78))
    found = []

    def loss_of() -> Tensor:
        result: Tensor = model(ids, layout, then=lambda hidden, head: token_loss(hidden, head, ids.roll(-1)))
        return result

    for marks in (True, False):
        if not marks:
            monkeypatch.setattr(remade, "mark", lambda result, *_: result)
        model.zero_grad()
        loss, kept = kept_by(loss_of)
        loss.backward()
        bytes_kept = sum(x.nbytes for x in {x.data_ptr(): x for x in kept}.values())
        found.append((bytes_kept, [parameter.grad for parameter in model.parameters()]))
    (less, mine), (more, theirs) = found
    assert all(one is not None and torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    config = model.config
    results = READ[family] * config.num_layers * 4 * ids.numel() * config.hidden_size
    assert 0.98 * results <= more - less <= results  # a copy of each norm's parameters is kept


@norms
def test_layers_keep_the_source_and_make_the_result_once(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, layers = random(64, 24), random(24, seed=1), [random(17, 24, seed=seed) for seed in (2, 3)]
    makes: list[Tensor] = []
    original = remade.Again.__init__

    def counted(self: remade.Again, make: Callable[..., Tensor]) -> None:
        original(self, lambda *sources: makes.append(make(*sources)) or makes[-1])

    monkeypatch.setattr(remade.Again, "__init__", counted)
    normed = norm(x, weight)
    total, kept = kept_by(lambda: sum(products.linear(normed, layer).square().sum() for layer in layers))
    assert not any(tensor.data_ptr() == normed.data_ptr() for tensor in kept)
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in kept)
    wanted = [x, weight, *layers]
    first = torch.autograd.grad(total, wanted, retain_graph=True)
    assert len(makes) == 1
    assert torch.equal(makes[0], normed)
    again, _, _ = normed.__dict__[remade._NAME]
    assert again.made is None  # let go
    second = torch.autograd.grad(total, wanted)
    assert len(makes) == 2
    plain = torch.autograd.grad(sum(F.linear(norm(x, weight), layer).square().sum() for layer in layers), wanted)
    for one, two, other in zip(first, second, plain, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@norms
def test_a_result_that_was_written_to_is_kept_itself(norm: Norm) -> None:
    x, weight, layer = random(64, 24), random(24, seed=1), random(17, 24, seed=2)
    normed = norm(x, weight)
    assert remade.is_marked(normed)
    changed = normed.mul_(2)
    mine, theirs = products.linear(changed, layer), F.linear(2 * norm(x, weight), layer)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), [x, layer]) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@norms
def test_a_source_that_was_written_to_is_an_error(norm: Norm) -> None:
    x, weight, layer = random(64, 24).detach().clone(), random(24, seed=1), random(17, 24, seed=2)
    product = products.linear(norm(x, weight), layer)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@norms
def test_what_needs_no_gradient_is_not_made_again(norm: Norm) -> None:
    x, weight = random(64, 24).detach(), random(24).detach()
    assert not remade.is_marked(norm(x, weight))  # nothing would let it go


def test_layer_norm_is_torchs() -> None:
    x, weight, bias = (random(*shape).double().detach().requires_grad_() for shape in ((5, 8), (8,), (8,)))
    for shift in (bias, None):
        wanted = [each for each in (x, weight, shift) if each is not None]
        mine, theirs = kernels.layer_norm(x, weight, shift, 1e-5), F.layer_norm(x, (8,), weight, shift, 1e-5)
        assert torch.equal(mine, theirs)
        pairs = zip(*(torch.autograd.grad(y.sin().sum(), wanted) for y in (mine, theirs)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    only = torch.autograd.grad(kernels.layer_norm(x, weight.detach(), bias, 1e-5).sin().sum(), [bias])
    assert torch.equal(only[0], torch.autograd.grad(F.layer_norm(x, (8,), weight, bias, 1e-5).sin().sum(), [bias])[0])
