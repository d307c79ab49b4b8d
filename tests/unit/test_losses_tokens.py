"""Token losses: values and gradients equal torch's own on full logits, whatever is trained and however it is cut."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.data.batch import IGNORE
from trivium.losses import token_logprobs, token_loss, tokens
from trivium.models.build import build_model
from trivium.models.config import ModelConfig

T, D, V = 23, 6, 11


def make(
    seed: int = 0, *, bias: bool = True, ignored: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, nn.Linear, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=stream, dtype=torch.float64).to(dtype).requires_grad_()
    head = nn.Linear(D, V, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    targets = torch.randint(0, V, (T,), generator=stream)
    targets[torch.rand(T, generator=stream) < ignored] = IGNORE
    return hidden, head, targets


@pytest.fixture(autouse=True, params=[1, 4, 1000], ids=lambda size: f"chunk{size}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokens.CHUNKS, "cpu", (request.param, 0))


@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_cross_entropy(bias: bool) -> None:
    hidden, head, targets = make(bias=bias)
    wanted = [hidden, *head.parameters()]
    loss = token_loss(hidden, head, targets)
    mine = torch.autograd.grad(loss * 0.7, wanted)
    reference = F.cross_entropy(head(hidden), targets, reduction="sum")
    theirs = torch.autograd.grad(reference * 0.7, wanted)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_denominator_is_kept_small_as_by_hand(weighted: bool) -> None:
    hidden, head, targets = make()
    wanted = [hidden, head.weight, head.bias]
    weights = torch.rand(T, dtype=torch.float64) if weighted else torch.ones(T, dtype=torch.float64)
    loss = token_loss(hidden, head, targets, weights=weights if weighted else None, z_loss=0.3, label_smoothing=0.1)
    logits = head(hidden)
    plain = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
    drift = 0.3 * logits.logsumexp(1).square() * (targets != IGNORE)
    reference = ((plain + drift) * weights).sum()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    mine, theirs = (torch.autograd.grad(each, wanted) for each in (loss, reference))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_what_is_measured_beside_the_loss_does_not_change_it() -> None:
    hidden, head, targets = make()
    targets[:9] = head(hidden)[:9].argmax(1)
    measures = torch.zeros(3, dtype=torch.float64)
    weights = torch.rand(T, dtype=torch.float64)
    loss = token_loss(hidden, head, targets, weights=weights, label_smoothing=0.2, measures=measures)
    plain = token_loss(hidden, head, targets, weights=weights, label_smoothing=0.2)
    wanted = [hidden, head.weight]
    for one, other in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(plain, wanted), strict=True):
        assert torch.equal(one, other)
    logp = head(hidden).log_softmax(1)[targets != IGNORE].detach()
    goal = targets[targets != IGNORE]
    expected = [
        -logp.gather(1, goal[:, None]).sum().item(),
        float((logp.argmax(1) == goal).sum()),
        -(logp.exp() * logp).sum().item(),
    ]
    assert measures.tolist() == pytest.approx(expected, rel=1e-12) and 0 < expected[1] < len(goal)


def test_weights_multiply_each_token() -> None:
    hidden, head, targets = make()
    weights = torch.rand(T, dtype=torch.float64) - 0.3
    loss = token_loss(hidden, head, targets, weights=weights)
    reference = (F.cross_entropy(head(hidden), targets, reduction="none") * weights).sum()
    mine = torch.autograd.grad(loss, [hidden, head.weight])
    theirs = torch.autograd.grad(reference, [hidden, head.weight])
    assert loss.item() == pytest.approx(reference.item(), rel=1e-12)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_gradients_pass_the_numerical_check() -> None:
    hidden, head, targets = make()

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_loss(hidden, Head(weight, bias), targets)  # type: ignore[arg-type]

    def logprobs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_logprobs(hidden, Head(weight, bias), targets)  # type: ignore[arg-type]

    inputs = (hidden, head.weight, head.bias)
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradcheck(logprobs, inputs)


class Head:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias


def test_logprobs_take_any_gradient() -> None:
    hidden, head, targets = make()
    upstream = torch.randn(T, dtype=torch.float64)
    result = token_logprobs(hidden, head, targets)
    reference = -F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(result, reference, rtol=1e-12, atol=1e-12)
    assert (result[targets == IGNORE] == 0).all()
    mine = torch.autograd.grad(result, [hidden, *head.parameters()], upstream)
    theirs = torch.autograd.grad(reference, [hidden, *head.parameters()], upstream)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_nothing_trained_gives_zero_and_keeps_the_graph() -> None:
    hidden, head, targets = make()
    targets.fill_(IGNORE)
    for result in (token_loss(hidden, head, targets), token_logprobs(hidden, head, targets).sum()):
        assert result.item() == 0
        (gradient,) = torch.autograd.grad(result, [hidden])
        assert (gradient == 0).all()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets = make()
    reference = torch.autograd.grad(token_loss(hidden, head, targets), [hidden])[0]
    head.requires_grad_(False)
    token_loss(hidden, head, targets).backward()
    assert head.weight.grad is None
    torch.testing.assert_close(hidden.grad, reference)


def test_no_gradient_work_without_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = make()
    expected = token_loss(hidden, head, targets).item()
    monkeypatch.setattr(tokens._Gradients, "add", None)
    with torch.no_grad():
        loss = token_loss(hidden, head, targets)
    assert loss.item() == expected
    assert not loss.requires_grad


def test_two_backward_passes_add_up() -> None:
    hidden, head, targets = make()
    loss = token_loss(hidden, head, targets)
    loss.backward(retain_graph=True)
    once = hidden.grad
    assert once is not None
    once = once.clone()
    loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_softmax(dtype: torch.dtype) -> None:
    hidden, head, targets = make(dtype=dtype)
    loss = token_loss(hidden, head, targets)
    exact = F.cross_entropy(head(hidden).double(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    mine = torch.autograd.grad(loss, [hidden, head.weight])
    theirs = torch.autograd.grad(exact, [hidden, head.weight])
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_autocast_computes_in_its_own_type() -> None:
    hidden, head, targets = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_loss(hidden, head, targets)
        logprobs = token_logprobs(hidden, head, targets)
    plain = token_loss(hidden, head, targets)
    assert loss.item() != plain.item()
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)
    assert -logprobs.sum().item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, T), ignored=st.floats(0, 1))
def test_sums_do_not_depend_on_the_split(seed: int, cut: int, ignored: float) -> None:
    hidden, head, targets = make(seed, ignored=ignored)
    whole = token_loss(hidden, head, targets)
    parts = token_loss(hidden[:cut], head, targets[:cut]) + token_loss(hidden[cut:], head, targets[cut:])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(whole, [hidden, head.weight])
    theirs = torch.autograd.grad(parts, [hidden, head.weight])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


HEADS: dict[str, dict[str, Any]] = {
    "masked": {"head": "masked", "head_bias": True, "norm": "layernorm", "activation": "gelu"},
    "scaled": {"head_scale": 0.25},
    "bounded": {"logit_softcap": 3.0, "head_bias": True},
    "all of it": {"head": "masked", "logit_softcap": 3.0, "head_scale": 0.5},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_heads_with_more_than_a_matrix(name: str, smoothing: float) -> None:
    """Values and all gradients of both functions are those of the whole logits."""
    shape: dict[str, Any] = {"family": "llama", "vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
    settings = {**shape, "intermediate_size": 8, "max_positions": 8, "init_std": 0.7, **HEADS[name]}
    config = ModelConfig.model_validate(settings, context="read back")
    head = build_model(config, seed=1, dtype=torch.float64).head
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 8, generator=stream, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, IGNORE, 0, 10, IGNORE, 3, 7, IGNORE, 1])
    weights = torch.rand(9, generator=stream, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    each = F.cross_entropy(head(hidden), targets, reduction="none", label_smoothing=smoothing)
    wanted = (each * weights).sum()
    found = token_loss(hidden, head, targets, weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    logprobs = token_logprobs(hidden, head, targets)
    plain = -F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(logprobs, plain, rtol=1e-12, atol=1e-12)
    found, wanted = (logprobs * weights).sum(), (plain * weights).sum()
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_scaled_where_it_lies_unless_another_pass_may_follow() -> None:
    hidden, head, targets = make()
    loss = token_loss(hidden, head, targets) / 3
    made = loss.grad_fn.next_functions[0][0].gradients[1].data_ptr()  # type: ignore[union-attr]
    loss.backward(retain_graph=True)
    first = head.weight.grad
    assert first is not None and first.data_ptr() != made
    head.weight.grad = None
    loss.backward()
    second = head.weight.grad
    assert second is not None and second.data_ptr() == made
    torch.testing.assert_close(first, second)


def test_a_gradient_is_used_once() -> None:
    hidden, head, targets = make()
    loss = token_loss(hidden, head, targets)
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


def test_the_logits_of_one_chunk_are_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets = make()
    monkeypatch.setitem(tokens.CHUNKS, "cpu", (3, 0))
    alive: list[weakref.ref[torch.Tensor]] = []
    plain = tokens._logits

    def watched(*arguments: Any) -> Any:
        assert not [each for each in alive if each() is not None]
        made = plain(*arguments)
        alive.append(weakref.ref(made[0]))
        return made

    monkeypatch.setattr(tokens, "_logits", watched)
    token_loss(hidden, head, targets).backward()
    token_logprobs(hidden, head, targets).sum().backward()
    assert len(alive) > 3
