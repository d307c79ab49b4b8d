"""Fused blocks compute what plain ones do, also in one call of the kernel, and are made anew when weights change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.needs import needs_compiler
from trivium.data.batch import Layout
from trivium.inference.engine import generate_ids, generating
from trivium.inference.request import Sampling
from trivium.models import kernels
from trivium.models.build import build_model, preset
from trivium.models.cache import KVCache
from trivium.models.fused import FusedBlock, FusedBlocks, fused
from trivium.models.native_blocks import NativeBlocks, NativeProduct
from trivium.models.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "llama-1m": {},
    "gpt2-1m": {"num_kv_heads": 4},
    "qwen2-1m": {},
    "qwen3-1m": {"query_key_norm": "head"},
    "mistral-7b": {"sliding_window": 3},
    "smollm3-1m": {"layers_without_rotary": (1,)},
}
PLAIN = {"gemma2-1m": "norms after the branches", "mixtral-1m": "experts", "pythia-1m": "branches side by side"}
"""What oneDNN's blocks are not made for; the kernel has none for experts only."""
needs_onednn = pytest.mark.skipif(not kernels.onednn(), reason="this torch has no oneDNN")


@pytest.fixture(params=["onednn", pytest.param("native", marks=needs_compiler)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the blocks are computed."""
    if request.param == "onednn":
        monkeypatch.setattr("trivium.models.fused.decoder", lambda: None)
    return str(request.param)


def tiny(kind: str, **changes: Any) -> Transformer:
    shape = {
        "vocab_size": 41,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_positions": 32,
        "init_std": 0.3,
    }
    return build_model(preset(kind, {**shape, **changes}), seed=1).eval()


def logits(model: Transformer) -> torch.Tensor:
    """Of two prompts of different lengths, and of two tokens after each."""
    cache = KVCache(model.config, rows=2, max_length=9)
    ids = torch.arange(3, 3 + 11)
    with torch.no_grad():
        parts = [model(ids[:7], Layout((5, 2)), cache=cache)]
        parts += [model(ids[at : at + 2], Layout((1, 1)), cache=cache) for at in (7, 9)]
        parts.append(model(ids[4:].view(1, -1))[0])
    return torch.cat(parts)


@needs_onednn
@pytest.mark.parametrize("kind", KINDS)
def test_the_results_are_those_of_plain_blocks(kind: str, way: str) -> None:
    model = tiny(kind, **KINDS[kind])
    expected = logits(model)
    with fused(model, keep=False):
        if way == "native":
            assert isinstance(model.fused, NativeBlocks) and isinstance(model.head.fused, NativeProduct)
        else:
            assert isinstance(model.fused, FusedBlocks)
            assert all(isinstance(block, FusedBlock) for block in model.fused.blocks)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert model.fused is None and model.head.fused is None


@needs_onednn
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("kind", ["llama-1m", "gpt2-1m"])
def test_every_activation(activation: str, kind: str, way: str) -> None:
    model = tiny(kind, activation=activation, num_kv_heads=4)
    expected = logits(model)
    with fused(model, keep=False):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PLAIN)
def test_other_blocks_stay_plain(kind: str, way: str) -> None:
    model = tiny(kind, num_kv_heads=4)
    expected = logits(model)
    with fused(model, keep=False):
        if way == "native" and kind != "mixtral-1m":
            assert isinstance(model.fused, NativeBlocks)
        else:
            assert isinstance(model.fused, FusedBlocks) and model.fused.blocks == list(model.blocks)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_what_changes_the_weights_changes_the_answer() -> None:
    model = tiny("llama-1m")

    def answer() -> list[int]:
        return generate_ids(model, [[1, 2, 3]], max_new_tokens=12, sampling=Sampling(temperature=0), eos_ids=())[0].ids

    before = answer()
    assert answer() == before
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizer.step()
    stepped = answer()
    assert stepped != before
    model.load_state_dict(tiny("llama-1m").state_dict())
    assert answer() == before
    model.assign(dict(build_model(model.config, seed=5).state_dict()))
    assert answer() not in (before, stepped)


@needs_onednn
def test_a_model_in_training_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivium.models.fused.decoder", lambda: None)
    made: list[bool] = []
    real = FusedBlock.__init__

    def counted(self: FusedBlock, *given: Any) -> None:
        made.append(True)
        real(self, *given)

    monkeypatch.setattr(FusedBlock, "__init__", counted)
    model = tiny("llama-1m")
    for _ in range(2):
        with generating(model):
            assert len(made) == 2
    model = tiny("llama-1m").train()
    for times in (2, 3):
        with generating(model):
            assert len(made) == 2 * times


@needs_onednn
def test_gradients_come_from_the_plain_blocks() -> None:
    model = tiny("llama-1m")
    with fused(model, keep=False):
        model(torch.tensor([[1, 2, 3]]), then=lambda hidden, head: head(hidden)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_without_gradients_is_linear(tokens: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, more = (torch.randn(*shape, generator=draw) for shape in ((tokens, 24), (17, 24), (17,)))
    expected = torch.nn.functional.linear(x, weight, more if bias else None)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight, more if bias else None), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.linear(x, weight, None).dtype == torch.bfloat16
    assert kernels.linear(x, weight.requires_grad_(), None).requires_grad


SHAPES: dict[str, dict[str, Any]] = {
    "norms after": {"kind": "olmo2-1m"},
    "norms on both sides, bounded scores": {"kind": "gemma2-1m", "attention_softcap": 2.0},
    "branches side by side": {"kind": "pythia-1m", "num_kv_heads": 4},
    "side by side, one norm": {"kind": "falcon-1m"},
    "narrow heads": {"head_dim": 6, "num_heads": 3, "num_kv_heads": 3, "hidden_size": 20, "intermediate_size": 27},
    "wide heads": {"head_dim": 48, "num_heads": 4, "num_kv_heads": 1, "intermediate_size": 80},
    "partly turned": {"kind": "pythia-1m", "parallel": "none", "num_kv_heads": 4},
    "biases": {"biases": ("query_key_value", "attention_output", "mlp")},
    "a window": {"kind": "mistral-7b", "sliding_window": 3},
}


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_takes_every_shape(shape: str, threads: int) -> None:
    """Decoding, and several tokens of each row, as guessing reads them."""
    model = tiny(**{"kind": "llama-1m", **SHAPES[shape]})
    draw = torch.Generator().manual_seed(3)
    steps = [(20, 3, 9), (1, 1, 1), (4, 0, 2), (1, 5, 1), (1, 1, 1)]

    def run() -> torch.Tensor:
        cache = KVCache(model.config, rows=3, max_length=30)
        with torch.no_grad():
            parts = [model(ids[: sum(step)], Layout(step), cache=cache) for ids, step in zip(given, steps, strict=True)]
        return torch.cat(parts)

    given = [torch.randint(3, 41, (40,), generator=draw) for _ in steps]
    expected, before = run(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with fused(model, keep=False):
            assert isinstance(model.fused, NativeBlocks)
            torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("outputs", [1, 15, 16, 33, 160])
def test_a_row_of_a_product_does_not_depend_on_its_company(outputs: int, eight: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((23, 37), (outputs, 37), (outputs,)))
    layer = torch.nn.Linear(37, outputs)
    layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    product = NativeProduct.of(layer, eight=eight)
    together = product(x)
    torch.testing.assert_close(together, layer(x).detach(), rtol=1e-5, atol=0.3 if eight else 1e-5)
    for count in (1, 2, 3, 5, 8):
        assert torch.equal(product(x[:count]), together[:count])
    assert product(x[:0]).shape == (0, outputs)


@needs_compiler
def test_scores_that_are_no_numbers_stay_so() -> None:
    model = tiny("llama-1m")
    with torch.no_grad():
        model.blocks[1].attention.query.weight[0, 0] = torch.nan  # type: ignore[union-attr, index]
    cache = KVCache(model.config, rows=1, max_length=8)
    with torch.no_grad(), fused(model, keep=False):
        model(torch.tensor([1, 2]), Layout((2,)), cache=cache)
        assert model(torch.tensor([3]), Layout((1,)), cache=cache).isnan().all()


@needs_compiler
def test_several_threads_share_a_model() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = tiny("llama-1m")
    prompts = [[number + 1, 2, 3] for number in range(8)]

    def run(cache: KVCache, number: int) -> torch.Tensor:
        with torch.no_grad():
            parts = [model(torch.tensor(prompts[number]), Layout((3,)), cache=cache)]
            parts += [model(torch.tensor([token]), Layout((1,)), cache=cache) for token in range(5, 25)]
        return torch.cat(parts)

    def caches() -> list[KVCache]:
        return [KVCache(model.config, rows=1, max_length=24) for _ in prompts]

    with fused(model, keep=False):
        alone = list(map(run, caches(), range(8)))
        with ThreadPoolExecutor(4) as pool:
            for found, expected in zip(pool.map(run, caches(), range(8)), alone, strict=True):
                assert torch.equal(found, expected)


WITHOUT = "import torch; from trivium.models.native import library; print(library() is None)"


@pytest.mark.parametrize(
    "settings",
    [{"TRIVIUM_NATIVE": "0"}, {"CC": "false"}, {"CC": "/nowhere/cc"}, {"CC": "true"}],
    ids=["switched off", "fails", "absent", "makes nothing"],
)
def test_without_a_compiler_there_is_no_kernel(settings: dict[str, str], tmp_path: Path) -> None:
    environment = {**_environment(), "TRIVIUM_CACHE": str(tmp_path), **settings}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_it_is_compiled_once_and_into_a_folder_that_can_be_written_to(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    environment = {**_environment(), "TRIVIUM_CACHE": str(blocked), "XDG_CACHE_HOME": "", "HOME": str(tmp_path)}
    for _ in range(2):
        command = [sys.executable, "-c", WITHOUT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
        (made,) = (tmp_path / ".cache" / "trivium").iterdir()
        assert made.suffix == ".so"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
