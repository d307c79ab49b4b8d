"""Random weights: from the seed alone, and of the right size."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from trivium.models.build import build_model, preset

CONFIG = preset("llama-1m", {"num_layers": 2})


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(CONFIG, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build_model(CONFIG, seed=5), build_model(CONFIG, seed=6)
    for (name, one), two, three in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert "norm" in name or not torch.equal(one, three)


def test_a_parameter_does_not_depend_on_the_others() -> None:
    small = build_model(CONFIG, seed=5).state_dict()
    large = build_model(preset("llama-1m", {"num_layers": 2, "vocab_size": 3000}), seed=5).state_dict()
    assert torch.equal(small["blocks.1.mlp.up.weight"], large["blocks.1.mlp.up.weight"])


@pytest.mark.parametrize("name", ["llama-1m", "gpt2-1m"])
def test_sizes_of_first_values(name: str) -> None:
    config = preset(name)
    for parameter_name, parameter in build_model(config, seed=0).named_parameters():
        if parameter_name.endswith("bias"):
            assert (parameter == 0).all()
        elif "norm" in parameter_name:
            assert (parameter == 1).all()
        else:
            residual = parameter_name.endswith(("output.weight", "down.weight"))
            expected = config.init_std / (math.sqrt(2 * config.num_layers) if residual else 1)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05)


def test_dtype_and_gradients() -> None:
    model = build_model(CONFIG, seed=0, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    exact = build_model(CONFIG, seed=0)
    assert torch.equal(model.embed.weight, exact.embed.weight.bfloat16())


def test_a_new_model_predicts_every_token_about_equally() -> None:
    model = build_model(CONFIG, seed=0)
    logits = model(torch.arange(64)[None])
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.arange(1, 64))
    assert loss.item() == pytest.approx(math.log(CONFIG.vocab_size), abs=0.5)


def test_first_use_imports_neither_compiler_nor_transformers() -> None:
    code = """
import sys
from trivium.models.build import preset
assert "torch" not in sys.modules
from trivium.models.build import build_model
from trivium.losses import token_loss
from trivium.data.batch import make_batch
model = build_model(preset("llama-1m"), seed=0)
batch = make_batch([[1, 2, 3], [4, 5, 6, 7]])
model(batch.input_ids, batch.layout, then=lambda h, head: token_loss(h, head, batch.targets)).backward()
slow = {"torch._dynamo", "sympy", "transformers", "torch._inductor"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
