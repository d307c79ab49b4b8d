"""The kernel of attention against plain formulas in float64, and where torch has to do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.needs import needs_compiler
from trivium.data.batch import Layout
from trivium.models import native_attention
from trivium.models.attention import (
    Pattern,
    RaggedAttention,
    UniformAttention,
    plan_attention,
    plan_cross_attention,
    plan_picked_attention,
)
from trivium.models.native_attention import NativeAttention, kernel

CPU = torch.device("cpu")


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def plain(
    inputs: Sequence[Tensor], lengths: Sequence[int], others: Sequence[int], pattern: Pattern, prefixes: Sequence[int]
) -> Tensor:
    """By the definition, sequence by sequence, in float64."""
    results = []
    group = inputs[0].shape[1] // inputs[1].shape[1]
    parts = zip(torch.split(inputs[0], list(lengths)), *(torch.split(x, list(others)) for x in inputs[1:]), strict=True)
    for number, (query, key, value) in enumerate(parts):
        if not len(key):
            results.append(query.double() * 0)
            continue
        q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        at, other = torch.arange(len(query)).unsqueeze(1), torch.arange(len(key))
        seen = torch.ones(len(query), len(key), dtype=torch.bool)
        if pattern.causal:
            seen = (other <= at) | (other < (prefixes[number] if prefixes else 0))
        if pattern.window is not None:
            seen = seen & (other > at - pattern.window)
        scale = query.shape[-1] ** -0.5 if pattern.scale is None else pattern.scale
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -math.inf)
        results.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(results)


def check(attend: Any, inputs: list[Tensor], expected: Tensor) -> None:
    """Results and gradients of both; without gradients the same bits."""
    found = attend(*inputs, layer=0, dropout=0.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(attend(*inputs, layer=0, dropout=0.0), found)
    upstream, absent = random(*found.shape, seed=9).detach(), {"allow_unused": True, "materialize_grads": True}
    mine = torch.autograd.grad(found, inputs, upstream)
    for one, other in zip(mine, torch.autograd.grad(expected, inputs, upstream.double(), **absent), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


shapes = st.sampled_from([(2, 2, 32), (4, 2, 16), (4, 1, 20), (3, 3, 80), (1, 1, 1), (2, 1, 64)])
lengths = st.lists(st.one_of(st.integers(1, 20), st.integers(60, 140)), min_size=1, max_size=5)


def three(tokens: int, others: int, shape: tuple[int, int, int]) -> list[Tensor]:
    heads, key_heads, width = shape
    sizes = (tokens, heads), (others, key_heads), (others, key_heads)
    return [random(*size, width, seed=seed) for seed, size in enumerate(sizes)]


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(shape=shapes, lengths=lengths, causal=st.booleans(), window=st.none() | st.integers(1, 150), data=st.data())
def test_sequences_that_look_at_themselves(
    shape: tuple[int, int, int], lengths: list[int], causal: bool, window: int | None, data: st.DataObject
) -> None:
    prefixes = (
        tuple(data.draw(st.integers(0, length)) for length in lengths) if causal and data.draw(st.booleans()) else ()
    )
    pattern = Pattern(causal=causal, window=window, scale=data.draw(st.none() | st.just(0.3)))
    attend = plan_attention(Layout(tuple(lengths), prefixes=prefixes or None), pattern=pattern, device=CPU)
    assert isinstance(attend, NativeAttention)
    inputs = three(sum(lengths), sum(lengths), shape)
    check(attend, inputs, plain(inputs, lengths, lengths, pattern, prefixes))


@needs_compiler
@settings(max_examples=20, deadline=None)
@given(shape=shapes, pairs=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 90)), min_size=1, max_size=4))
def test_sequences_that_look_at_others(shape: tuple[int, int, int], pairs: list[tuple[int, int]]) -> None:
    lengths, others = ([pair[which] for pair in pairs] for which in range(2))
    attend = plan_cross_attention(
        Layout(tuple(lengths)), Layout(tuple(others)), pattern=Pattern(causal=False), device=CPU
    )
    assert isinstance(attend, NativeAttention)
    inputs = three(sum(lengths), sum(others), shape)
    check(attend, inputs, plain(inputs, lengths, others, Pattern(causal=False), ()))


@needs_compiler
def test_some_tokens_of_each_sequence() -> None:
    lengths, wanted, pattern = (5, 70, 3, 70), torch.tensor([0, 4, 6, 70, 77, 78, 147]), Pattern(causal=False)
    attend = plan_picked_attention(Layout(lengths), wanted, pattern=pattern)
    assert isinstance(attend, NativeAttention)
    inputs = three(148, 148, (4, 2, 16))
    expected = plain(inputs, lengths, lengths, pattern, ())[wanted]
    inputs[0] = inputs[0].detach()[wanted].requires_grad_()
    mine = attend(*inputs, layer=0, dropout=0.0)
    torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-5)
    others = attend.otherwise(*inputs, layer=0, dropout=0.0)
    torch.testing.assert_close(mine, others, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_tensors_that_are_parts_of_others() -> None:
    lengths, pattern = (40, 7), Pattern()
    together = random(47, 6 * 16)
    whole = together.view(47, 6, 16)
    inputs = [whole[:, :2], whole[:, 2:4], whole[:, 4:]]
    attend = plan_attention(Layout(lengths), pattern=pattern, device=CPU)
    mine, theirs = attend(*inputs, layer=0, dropout=0.0), plain(inputs, lengths, lengths, pattern, ())
    slopes = [torch.autograd.grad(made.transpose(0, 1).sum(), together)[0] for made in (mine * mine, theirs * theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_neither_threads_nor_company_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(lengths: tuple[int, ...], first: int) -> list[Tensor]:
        inputs = [x.detach()[first : first + sum(lengths)].requires_grad_() for x in three(400, 400, (4, 2, 16))]
        out = plan_attention(Layout(lengths), pattern=Pattern(), device=CPU)(*inputs, layer=0, dropout=0.0)
        return [out, *torch.autograd.grad((out * out).sum(), inputs)]

    together = run((130, 90, 180), 0)
    for number in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        assert all(map(torch.equal, run((130, 90, 180), 0), together))
    assert all(torch.equal(one, whole[130:220]) for one, whole in zip(run((90,), 130), together, strict=True))


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_stays_so(value: float) -> None:
    inputs = [x.detach() for x in three(140, 140, (2, 2, 16))]
    inputs[1][100, 0, 3] = value
    found = plan_attention(Layout((140,)), pattern=Pattern(), device=CPU)(*inputs, layer=0, dropout=0.0)
    assert found[:100].isfinite().all()
    assert found[:, 1].isfinite().all()
    assert found[100:, 0].isnan().any(-1).sum() > 10


@needs_compiler
def test_large_scores_do_not_overflow() -> None:
    inputs = [x.detach() * 30 for x in three(90, 90, (2, 2, 32))]
    found = plan_attention(Layout((90,)), pattern=Pattern(), device=CPU)(*inputs, layer=0, dropout=0.0)
    torch.testing.assert_close(found.double(), plain(inputs, (90,), (90,), Pattern(), ()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("pattern", "layout", "kind"),
    [
        (Pattern(softcap=2.0), Layout((12, 12)), UniformAttention),
        (Pattern(), Layout((1 << 15,)), UniformAttention),
        (Pattern(bias=lambda queries, keys: torch.zeros(1, len(queries), len(keys))), Layout((3, 9)), RaggedAttention),
    ],
    ids=["bound", "long", "bias"],
)
def test_torch_does_what_the_kernel_does_not_know(pattern: Pattern, layout: Layout, kind: type) -> None:
    assert isinstance(plan_attention(layout, pattern=pattern, device=CPU), kind)


def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention, "kernel", lambda: None)


def test_torch_does_all_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off(monkeypatch)
    lengths, pattern = (12, 12, 30), Pattern()
    inputs = three(54, 54, (4, 2, 16))
    attend = plan_attention(Layout(lengths), pattern=pattern, device=CPU)
    assert isinstance(attend, RaggedAttention)
    check(attend, inputs, plain(inputs, lengths, lengths, pattern, ()))


def test_a_kernel_that_computes_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = native_attention._forward

    def wrong(*given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        out, logsums = right(*given, **named)
        return out + 0.01, logsums

    monkeypatch.setattr(native_attention, "_forward", wrong)
    assert kernel.__wrapped__() is None


@needs_compiler
@pytest.mark.parametrize("way", ["dropout", "double", "autocast"])
def test_torch_does_other_arithmetic(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel() is not None  # checked before it is taken away
    monkeypatch.setattr(native_attention, "_run", None)
    attend = plan_attention(Layout((12, 7)), pattern=Pattern(), device=CPU)
    inputs = three(19, 19, (4, 2, 16))
    if way == "double":
        inputs = [x.double() for x in inputs]
    with torch.autocast("cpu", enabled=way == "autocast"):
        assert attend(*inputs, layer=0, dropout=0.5 if way == "dropout" else 0.0).shape == (19, 4, 16)
    assert isinstance(plan_attention(Layout((12,)), pattern=Pattern(), device=CPU, dropout=True), UniformAttention)


@needs_compiler
def test_a_second_derivative_is_refused() -> None:
    inputs = three(9, 9, (2, 2, 16))
    out = plan_attention(Layout((9,)), pattern=Pattern(), device=CPU)(*inputs, layer=0, dropout=0.0)
    (slope,) = torch.autograd.grad((out * out).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()  # type: ignore[no-untyped-call]


@needs_compiler
@pytest.mark.slow
def test_compiled_it_is_one_operator_for_all_lengths() -> None:
    compiles: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        compiles.append(graph)
        return graph.forward

    torch._dynamo.reset()
    run = torch.compile(lambda attend, *x: attend(*x, layer=0, dropout=0.0) * 2, fullgraph=True, backend=backend)
    for lengths in ((20, 20), (7, 33, 5), (40, 1, 1, 1), (9, 3)):
        inputs = three(sum(lengths), sum(lengths), (4, 2, 16))
        mine = run(plan_attention(Layout(lengths), pattern=Pattern(), device=CPU), *inputs)
        theirs = plain(inputs, lengths, lengths, Pattern(), ()) * 2
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)
        slopes = (torch.autograd.grad(made.sum(), inputs) for made in (mine, theirs))
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert len(compiles) <= 2
