"""Products of matrices and attention by blocks equal torch's own, values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models import products

callable_here = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor that prefers oneDNN; counts its calls."""
    calls: list[int] = []
    plain = products.by_onednn

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        return plain(x, weight, bias)

    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products, "by_onednn", counted)
    return calls


@callable_here
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer(bias: bool, onednn: list[int]) -> None:
    x, weight, shift = random(64, 24), random(17, 24, seed=1), random(17, seed=2) if bias else None
    wanted = [each for each in (x, weight, shift) if each is not None]
    upstream = random(64, 17, seed=3).detach()
    mine, theirs = products.linear(x, weight, shift), F.linear(x, weight, shift)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    pairs = zip(*(torch.autograd.grad(each, wanted, upstream) for each in (mine, theirs)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert onednn == [64, 64]  # forwards, and backwards to the inputs


@callable_here
def test_what_is_frozen_keeps_and_computes_nothing(onednn: list[int]) -> None:
    kept: list[Tensor] = []
    x, weight = random(64, 24), random(17, 24, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        products.linear(x, weight.detach()).sum().backward()
        assert [tuple(each.shape) for each in kept] == [(17, 24)]
        kept.clear()
        products.linear(x.detach(), weight).sum().backward()
        assert [tuple(each.shape) for each in kept] == [(64, 24)]
    assert onednn == [64, 64, 64]


@callable_here
def test_few_tokens_other_types_and_autocast_are_left_to_torch(onednn: list[int]) -> None:
    weight = random(17, 24, seed=1)
    products.linear(random(4, 24), weight)
    products.linear(random(1000, 24), weight)  # a number that will hardly return
    products.linear(random(64, 24, dtype=torch.float64), random(17, 24, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(random(64, 24), weight).dtype == torch.bfloat16
    assert not onednn
    products.linear(random(2001, 24), weight)
    assert onednn == [2001]


@callable_here
def test_a_product_with_a_matrix(onednn: list[int]) -> None:
    x, matrix = random(64, 24).detach(), random(24, 9, seed=1).detach()
    torch.testing.assert_close(products.product(x, matrix), x @ matrix, rtol=1e-4, atol=1e-4)
    assert onednn == [64]


@callable_here
@pytest.mark.slow
def test_compiled_layers_use_it_too(onednn: list[int]) -> None:
    layer = nn.Sequential(nn.Linear(24, 17), nn.SiLU())
    x, weight = random(64, 24), layer[0].weight
    compiled = torch.compile(lambda x: F.silu(products.linear(x, weight, layer[0].bias)), fullgraph=True)
    mine, theirs = compiled(x), layer(x)
    for one, other in zip(
        torch.autograd.grad(mine.sum(), [x, weight]), torch.autograd.grad(theirs.sum(), [x, weight]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert onednn


def test_training_keeps_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "32")  # put back afterwards, whatever it was
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "500")
    products.keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "500"


@pytest.mark.skipif(sys.platform != "linux" or not products.ONEDNN, reason="torch does not ask oneDNN here")
def test_lengths_that_never_return_leave_nothing() -> None:
    """Each length has a compiled kernel of a quarter of a MiB; 300 of them would be 90 MiB."""
    code = """
import torch
from pathlib import Path
from trivium.models import products

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

products.keep_few_kernels()
torch.set_num_threads(1)
weight = torch.randn(344, 128)
for tokens in range(1024, 1404):
    products.by_onednn(torch.randn(tokens, 128), weight)
    if tokens == 1104:
        before = resident()
assert resident() - before < 40, resident() - before
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert not done.returncode, done.stderr
