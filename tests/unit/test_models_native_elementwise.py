"""The element-wise kernels against plain formulas in float64, and what the gated MLP keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.needs import needs_compiler
from trivium.models import kernels, native_attention, native_blocks, native_elementwise
from trivium.models.build import build_model, preset
from trivium.models.layers import MLP

native = native_elementwise
pytestmark = needs_compiler

rows, widths = st.integers(1, 200), st.integers(1, 70)


def random(*size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def compare(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Results and gradients: ours in float32, the formula in float64."""
    mine = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    found, expected = ours(*mine), plain(*theirs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = random(*found.shape, seed=9)
    slopes = torch.autograd.grad(found, mine, upstream), torch.autograd.grad(expected, theirs, upstream.double())
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@given(rows, widths)
@settings(max_examples=25, deadline=None)
def test_norm(count: int, width: int) -> None:
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    x, weight = random(count, width), random(width, seed=1)
    assert native.suits(x, weight)
    compare(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), plain, [x, weight])


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@given(rows, widths, st.sampled_from(native.ACTIVATIONS), st.booleans(), st.sampled_from([1.0, 30.0]))
@settings(max_examples=50, deadline=None)
def test_gate(count: int, width: int, activation: str, gates: bool, scale: float) -> None:
    def ours(gate: Tensor, up: Tensor | None = None) -> Tensor:
        return kernels.gated(gate, up, activation)

    def plain(gate: Tensor, up: Tensor | None = None) -> Tensor:
        return PLAIN[activation](gate) * (1 if up is None else up)

    inputs = [random(count, width, scale=scale), random(count, width, seed=1)]
    assert native.suits(*inputs)
    compare(ours, plain, inputs if gates else inputs[:1])


@pytest.mark.parametrize("activation", native.ACTIVATIONS)
def test_activations_are_exact_everywhere(activation: str) -> None:
    x = torch.linspace(-12, 12, 100_001)
    wide = x.double().requires_grad_()
    expected = PLAIN[activation](wide)
    off = (native.gated(x, None, activation).double() - expected).abs() / (1 + wide.abs())
    assert off.max() < 2e-7
    slopes = native.gated_backward(torch.ones_like(x), x, None, activation)[0]
    assert (slopes.double() - torch.autograd.grad(expected.sum(), wide)[0]).abs().max() < 3e-6


@given(rows, st.sampled_from([2, 6, 32, 48, 64, 80, 128]), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_rotation(count: int, width: int, heads: int) -> None:
    angles = random(count, 1, width // 2, seed=2).double()
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), angles.sin()

    def plain(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :])
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)

    compare(lambda x: kernels.rotate(x, cos.float(), sin.float()), plain, [random(count, heads, width)])


@given(st.integers(1, 40), st.integers(1, 3000), st.sampled_from([1.0, 40.0]))
@settings(max_examples=25, deadline=None)
def test_softmax(count: int, vocabulary: int, scale: float) -> None:
    logits = random(count, vocabulary, scale=scale)
    goal = torch.randint(vocabulary, (count, 1), generator=torch.Generator().manual_seed(1))
    logs = logits.double().log_softmax(1)
    chances = logits.clone()
    picked, right, entropy = native.softmax_(chances, goal)
    torch.testing.assert_close(chances.double(), logs.exp(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(picked.double(), logs.gather(1, goal), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(logs * logs.exp()).sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert torch.equal(right.bool(), logits.gather(1, goal) >= logits.amax(1, keepdim=True))


def test_numbers_that_are_none_stay_so() -> None:
    for bad in (float("nan"), float("inf")):
        logits = random(3, 50)
        logits[1, 7] = bad
        picked, _, _ = native.softmax_(logits, torch.zeros(3, 1, dtype=torch.int64))
        assert picked.isfinite().tolist() == [[True], [False], [True]]
        x = random(3, 50)
        x[1, 7] = bad
        assert not kernels.rms_norm(x, torch.ones(50), 1e-5)[1].isfinite().all()
        assert not kernels.gated(x, torch.ones(3, 50), "silu")[1].isfinite().all()


def results(seed: int = 0) -> list[Tensor]:
    """Of all kernels, at a size that several threads share."""
    x, weight, grad = random(700, 130, seed=seed), random(130, seed=1), random(700, 130, seed=2)
    normed, inverse = native.rms_norm(x, weight, 1e-5)
    gates = native.gated_backward(grad, x, normed, "silu", remake=True)
    chances = x.clone()
    said = native.softmax_(chances, torch.arange(700).unsqueeze(1) % 130)
    turned = native.turn(x.view(700, 1, 130), grad, weight[:65].expand(700, 65))
    found = [normed, *native.rms_norm_backward(grad, x, weight, inverse), *gates, chances, *said, turned]
    return [each for each in found if each is not None]


@pytest.mark.parametrize("check", [native.kernel, native_attention.kernel, native_blocks.decoder])
def test_the_check_of_a_kernel_runs_anywhere(check: Any) -> None:
    """It comes with the first use, wherever that is."""
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), hooks:
        assert check.__wrapped__() is not None
    assert not saved, "activation checkpointing would count it"


def test_the_number_of_threads_changes_no_bit() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        assert all(map(torch.equal, one, results()))
    finally:
        torch.set_num_threads(before)


def mlp(name: str) -> MLP:
    shape = {"hidden_size": 24, "num_heads": 2, "intermediate_size": 40, "num_layers": 1}
    found = build_model(preset(name, shape), seed=0).blocks[0].mlp
    assert isinstance(found, MLP)
    return found


def kept(part: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The result, and how many numbers that are no weights the backward pass keeps."""
    found: dict[int, int] = {}
    weights = {p.data_ptr() for p in part.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return part(x), sum(found.values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("name", "factors"), [("llama-1m", 2), ("gpt2-1m", 1), ("bert-10m", 1)])
def test_an_mlp_keeps_its_factors_only(name: str, factors: int, frozen: bool) -> None:
    part, x = mlp(name), random(9, 24).requires_grad_()
    part.down.weight.requires_grad_(not frozen)
    seen: list[Any] = []
    found, numbers = kept(part, x)
    hook = part.down.register_forward_hook(lambda *inputs: seen.append(inputs))
    expected, more = kept(part, x)  # through the layer itself, which keeps its input
    hook.remove()
    assert len(seen) == 1
    assert numbers == 9 * (24 + factors * 40)
    assert more == numbers + (0 if frozen else 9 * 40)
    assert torch.equal(found, expected)
    wanted = [x, *(p for p in part.parameters() if p.requires_grad)]
    slopes = (torch.autograd.grad(each.square().sum(), wanted) for each in (found, expected))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gates", [False, True])
def test_an_activation_and_the_layer_after_it(activation: str, gates: bool, bias: bool) -> None:
    shapes = [(5, 6), (4, 6), *([(4,)] if bias else [])]
    gate, weight, *rest = (random(*shape, seed=n).double().requires_grad_() for n, shape in enumerate(shapes))
    up = random(5, 6, seed=7).double().requires_grad_() if gates else None

    def joined(gate: Tensor, up: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return kernels.gated_linear(gate, up, activation, weight, bias)

    plain = F.linear(kernels.ACTIVATIONS[activation](gate) * (1 if up is None else up), weight, *rest)
    torch.testing.assert_close(joined(gate, up, weight, *rest), plain)
    assert torch.autograd.gradcheck(joined, (gate, up, weight, *rest))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("gates", [False, True])
def test_compiled_it_is_one_operator(gates: bool, frozen: bool) -> None:
    gate, weight = (random(64, 48, seed=n).requires_grad_() for n in range(2))
    up = random(64, 48, seed=7).requires_grad_() if gates else None
    weight.requires_grad_(not frozen)
    wanted = [gate, *([] if up is None else [up]), *([] if frozen else [weight])]
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def joined(gate: Tensor, up: Tensor | None) -> Tensor:
        return kernels.gated_linear(gate, up, "silu", weight, None)

    torch.compile(joined, fullgraph=True, backend=backend)(gate, up)
    assert [call for call in calls if "gated_linear" in call]
    compiled = torch.compile(joined, fullgraph=True, backend="aot_eager")
    results = compiled(gate, up), joined(gate, up)
    torch.testing.assert_close(*results)
    slopes = (torch.autograd.grad(each.square().sum(), wanted) for each in results)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
