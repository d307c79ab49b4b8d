"""Generation with weights in eight bits: close to the model it was made of, and the same alone and in company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.test_models_fused import logits, tiny
from trivium.errors import TriviumError
from trivium.inference.engine import generate_ids
from trivium.inference.request import Sampling
from trivium.models import kernels
from trivium.models.fused import FusedBlock, FusedBlocks, Int8Product, fused
from trivium.models.native_blocks import NativeBlocks, NativeProduct, decoder
from trivium.models.quantized import QuantizedLinear, int8_codes, quantize_weights

PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2], [17], [30, 31, 32, 33, 34]]
has_vnni = pytest.mark.skipif(not kernels.int8_products(), reason="the processor has no VNNI")


@has_vnni
def test_the_product_is_that_of_the_weight_up_to_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((5, 64), (48, 64), (48,)))
    x[3] = 0
    parts = int8_codes(weight)
    made = kernels.int8_linear(x, parts["weight"], parts["scale"], bias)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert (made - exact).norm() / exact.norm() < 0.02
    assert not torch.equal(made, exact)
    torch.testing.assert_close(made[3], bias)
    for row in range(5):  # no row depends on its company
        alone = kernels.int8_linear(x[row : row + 1], parts["weight"], parts["scale"], bias)
        torch.testing.assert_close(alone[0], made[row], rtol=1e-5, atol=1e-5)
    assert kernels.int8_linear(x[:0], parts["weight"], parts["scale"], bias).shape == (0, 48)


@pytest.mark.parametrize("kind", ["llama-1m", "gpt2-1m", "gemma2-1m", "mixtral-1m"])
@pytest.mark.parametrize("native", [True, False])
def test_logits_stay_close_fused_or_not(kind: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("trivium.models.fused.decoder", lambda: None)
    model = tiny(kind, num_kv_heads=4)
    expected = logits(model)
    quantize_weights(model, "int8")
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    assert layers and all(layer.weight.dtype == torch.int8 for layer in layers)
    assert not any("router" in name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear))
    plain = logits(model)
    assert 0 < (plain - expected).norm() / expected.norm() < 0.1
    with fused(model, keep=False):
        if kind in ("llama-1m", "gpt2-1m") and native and decoder() is not None:
            assert isinstance(model.fused, NativeBlocks) and isinstance(model.head.fused, NativeProduct)
        elif kind in ("llama-1m", "gpt2-1m") and kernels.int8_products():
            assert isinstance(model.fused, FusedBlocks)
            assert all(isinstance(block, FusedBlock) for block in model.fused.blocks)
            assert isinstance(model.head.fused, Int8Product)
        assert (logits(model) - expected).norm() / expected.norm() < 0.1


def test_without_vnni_the_products_stay_in_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "int8_products", lambda: False)
    monkeypatch.setattr("trivium.models.fused.decoder", lambda: None)
    model = tiny("llama-1m")
    quantize_weights(model, "int8")
    expected = logits(model)
    with fused(model, keep=False):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_an_answer_is_the_same_alone_and_in_company() -> None:
    model = tiny("llama-1m")
    quantize_weights(model, "int8")
    greedy = Sampling(temperature=0)
    together = generate_ids(model, PROMPTS, max_new_tokens=12, sampling=greedy, eos_ids=())
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = generate_ids(model, [prompt], max_new_tokens=12, sampling=greedy, eos_ids=())[0]
        assert alone.ids == found.ids
        assert alone.logprobs == pytest.approx(found.logprobs, abs=0.02)


def test_what_it_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(TriviumError, match="there are no such weights"):
        quantize_weights(tiny("llama-1m"), "int4")
    with pytest.raises(TriviumError, match="float32 on a CPU"):
        quantize_weights(tiny("llama-1m").to(torch.bfloat16), "int8")
    model = tiny("llama-1m")
    quantize_weights(model, "int8")
    with pytest.raises(TriviumError, match="plain model"):
        quantize_weights(model, "int8")


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    import trivium
    from trivium.cli.main import app
    from trivium.models.folder import save_model
    from trivium.tokenizers.train import train_bpe

    tokenizer = train_bpe(["return the list of the line"] * 9, vocab_size=280)
    tokenizer.save(tmp_path)
    model = tiny("llama-1m", vocab_size=tokenizer.vocab_size)
    save_model(tmp_path, model.config, model.state_dict())
    loaded = trivium.load(tmp_path, weights="int8")
    assert any(isinstance(layer, QuantizedLinear) for layer in loaded.module.modules())
    expected = loaded.generate("return", max_new_tokens=6, temperature=0)
    options = ["--max-new-tokens", "6", "--temperature", "0", "--no-stream"]
    done = CliRunner().invoke(app, ["generate", str(tmp_path), "return", *options, "--weights", "int8"])
    assert done.exit_code == 0
    assert done.output.strip() == expected.strip()
    refused = CliRunner().invoke(app, ["generate", str(tmp_path), "return", *options, "--weights", "int4"])
    assert refused.exit_code != 0
