"""LoRA, IA3 and quantised bases by themselves: what options change, what they keep and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.errors import ConfigError
from trivium.losses import token_loss
from trivium.models.adapted import AdaptedLinear
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, save_model
from trivium.models.layers import Linear
from trivium.models.lora import LoRABranch, _Beside
from trivium.models.quantized import QuantizedLinear, normal_code, quantize, quantized_layers
from trivium.models.transform import Transform, apply_transforms, lr_factors, merge_all
from trivium.models.transformer import Transformer
from trivium.transforms.ia3 import IA3
from trivium.transforms.lora import LoRA
from trivium.transforms.quantize import Quantize

IDS = torch.arange(24).view(2, 12) % 50


def small(name: str = "llama-1m", **changes: Any) -> Transformer:
    shape = {"vocab_size": 64, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 80, **changes}
    if name == "llama-1m":
        shape = {"num_kv_heads": 2, **shape}
    return build_model(preset(name, {"init_std": 0.2, **shape}), seed=0).eval()


def with_(*transforms: Transform, name: str = "llama-1m", seed: int = 0, **changes: Any) -> Transformer:
    model = small(name, **changes)
    apply_transforms(model, transforms, seed=seed)
    return model


def lora(**settings: Any) -> LoRA:
    return LoRA(LoRA.Config(**settings))


def shaken(model: Transformer) -> Transformer:
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=stream) * 0.1
    return model


def says(model: Transformer) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS)
    return result


# LoRA


def test_the_written_out_gradient_is_right() -> None:
    stream = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (6, 4), (6,), (2, 4), (6, 2)]
    inputs = [torch.randn(shape, generator=stream, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *args: _Beside.apply(*args, 1.7), inputs)
    x, weight, bias, down, up = inputs
    torch.testing.assert_close(
        _Beside.apply(x, weight, bias, down, up, 1.7), x @ weight.t() + bias + 1.7 * x @ down.t() @ up.t()
    )


def test_both_ways_of_computing_agree() -> None:
    """In one go, and one after the other (as with dropout, autocast or chosen rows)."""
    transform = lora(rank=4)
    model = shaken(with_(transform))
    whole = says(model)
    transform.rows.index = torch.arange(IDS.numel())
    torch.testing.assert_close(says(model), whole, atol=1e-5, rtol=1e-5)
    transform.rows.index = torch.arange(12, 24)
    part = says(model)
    assert torch.equal(part[0], says(small())[0]) and not torch.allclose(part[1], says(small())[1])
    transform.rows.active = False
    assert torch.equal(says(model), says(small()))


@pytest.mark.parametrize(
    ("settings", "different"),
    [
        ({"rank": 2}, True),
        ({"alpha": 3.0}, True),
        ({"rslora": True}, True),
        ({"dora": True}, True),
        ({"init": "gaussian"}, True),
        ({"init": "pissa"}, True),
        ({"init": "olora"}, True),
        ({"bias": "all"}, False),
        ({"target": ["q_proj"]}, True),
        ({"exclude": ["q_proj"]}, True),
        ({"layers": [0]}, True),
        ({"rank_pattern": {"q_proj": 2}}, True),
        ({"alpha_pattern": {"*.1.attention.query": 2.0}}, True),
    ],
)
def test_each_option_changes_what_is_learnt_and_merges_exactly(settings: dict[str, Any], different: bool) -> None:
    model = with_(lora(**{"rank": 4, **settings}))
    torch.testing.assert_close(says(model), says(small()), atol=1e-4, rtol=1e-4)
    changed = says(shaken(model))
    assert bool((changed - says(shaken(with_(lora(rank=4))))).abs().max() > 1e-3) is different
    merge_all(model)
    torch.testing.assert_close(says(model), changed, atol=1e-4, rtol=1e-4)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in small().named_parameters()}


def test_dropout_acts_in_training_only() -> None:
    model = shaken(with_(lora(dropout=0.5)))
    still = says(model)
    assert torch.equal(says(model), still)
    model.train()
    assert not torch.allclose(says(model), still)


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 0), ({"bias": "lora_only"}, 3), ({"bias": "all"}, 2 * (3 + 1 + 2 + 2) + 1)],
)
def test_biases_train_as_asked(settings: dict[str, Any], count: int) -> None:
    model = with_(lora(target=["c_attn"], layers=[0], **settings), name="gpt2-1m")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and ".branches." not in name]
    assert all(name.endswith(".bias") for name in trained) and len(trained) == count


def test_lora_plus_says_which_matrices_learn_faster() -> None:
    model = with_(lora(lr_ratio=16, target=["q_proj", "embed"]))
    factors = lr_factors(model)
    assert factors and set(factors.values()) == {16.0}
    assert {name.rsplit(".", 1)[1] for name in factors} == {"up"} and not any(n.startswith("embed") for n in factors)
    assert lr_factors(with_(lora())) == {}


def test_parts_of_one_tensor_share_their_first_matrix() -> None:
    model = with_(lora(), name="gpt2-1m")
    downs = {model.get_parameter(f"blocks.0.attention.{part}.branches.lora.down") for part in ("query", "key", "value")}
    assert len(downs) == 1


def test_pissa_holds_the_largest_part_of_a_weight() -> None:
    model = with_(lora(rank=4, init="pissa", target=["o_proj"]))
    layer = model.get_submodule("blocks.0.attention.output")
    assert isinstance(layer, AdaptedLinear)
    branch = layer.branches["lora"]
    assert isinstance(branch, LoRABranch)
    with torch.no_grad():
        values = torch.linalg.svdvals(layer.weight)
        left = torch.linalg.svdvals(layer.weight - branch.up @ branch.down * branch.scale)
    torch.testing.assert_close(left[: len(values) - 4], values[4:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["head"]}, "output layer cannot have one"),
        ({"target": ["q_prj"]}, "did you mean q_proj"),
        ({"rank_pattern": {"q_prj": 3}}, "did you mean q_proj"),
        ({"target": ["embed"], "dora": True}, "plain LoRA only"),
        ({"target": ["embed"], "init": "pissa"}, "plain LoRA only"),
        ({"init": "loftq"}, "not quantised"),
        ({"tokens": [64]}, "tokens 0 to 63"),
        ({"tokens": [3, 3]}, "twice"),
        ({"tokens": [3], "target": ["embed"]}, "not both"),
        ({"init": "pissa", "rank": 200}, "rank is larger"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        with_(lora(**settings))
    assert str(caught.value).count("\n") < 5


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_new_tokens_train_alone(tied: bool) -> None:
    model = with_(lora(target=["q_proj"], tokens=[3, 60]), tie_embeddings=tied)
    assert torch.equal(says(model), says(small(tie_embeddings=tied)))
    ids, layout = IDS.flatten(), Layout((12, 12))
    model(ids, layout, then=lambda hidden, head: token_loss(hidden, head, ids)).backward()
    values = model.get_parameter("embed.branches.lora.values")
    assert values.grad is not None and model.get_parameter("embed.weight").grad is None
    assert bool(values.grad[1].any()) is tied  # token 60 is not read, but a tied head could say it
    changed = says(shaken(model))
    before = model.get_parameter("embed.weight").clone()
    merge_all(model)
    torch.testing.assert_close(says(model), changed, atol=1e-4, rtol=1e-4)
    moved = (model.get_parameter("embed.weight") != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 60] and type(model.head).__name__ == "LanguageHead"


# Memory of what is frozen


def kept_by(model: Transformer) -> dict[int, int]:
    """Storage -> bytes of everything that autograd keeps for the backward pass of one loss, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids, layout = IDS.flatten(), Layout((12, 12))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids, layout, then=lambda hidden, head: token_loss(hidden, head, ids))
    loss.backward()
    return kept


def test_frozen_weights_get_no_gradient_and_keep_no_activations() -> None:
    """Beside the weights, LoRA keeps what full training keeps, what its layers read inside of the MLPs, and [T, rank] a
    layer: inputs are shared, not copied."""
    full, adapted = small(), with_(lora(rank=2))
    everything, some = sum(kept_by(full).values()), sum(kept_by(adapted).values())
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is None) == (".branches." not in name)
    inner = IDS.numel() * 2 * 4 * 7 * 2
    read = IDS.numel() * 4 * full.config.intermediate_size * full.config.num_layers
    assert some <= everything + inner + read


def test_no_gradient_of_a_frozen_head_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.losses import tokens

    seen: list[tuple[bool, ...]] = []
    original = tokens._Gradients.__init__

    def watched(self: Any, *args: Any) -> None:
        seen.append(args[-1])
        original(self, *args)

    monkeypatch.setattr(tokens._Gradients, "__init__", watched)
    kept_by(with_(lora(rank=2)))
    kept_by(with_(lora(rank=2), tie_embeddings=True))
    kept_by(small())
    assert seen == [(True, False, False)] * 2 + [(True, True, False)]


# IA3


@pytest.mark.parametrize("settings", [{}, {"target": ["q_proj"]}, {"feedforward": []}, {"layers": [1]}, {"target": []}])
def test_ia3_starts_as_the_base_and_merges_exactly(settings: dict[str, Any]) -> None:
    for name in ("llama-1m", "gpt2-1m"):
        if name == "gpt2-1m" and "target" in settings:
            continue
        model = with_(IA3(IA3.Config(**settings)), name=name)
        assert torch.equal(says(model), says(small(name)))
        changed = says(shaken(model))
        assert (changed - says(small(name))).abs().max() > 1e-2
        if settings:
            assert not torch.allclose(changed, says(shaken(with_(IA3(IA3.Config()), name=name))))
        merge_all(model)
        torch.testing.assert_close(says(model), changed, atol=1e-4, rtol=1e-4)


# Quantised bases

PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""The values of NF4 as bitsandbytes has them."""


def test_the_code_is_the_published_one() -> None:
    torch.testing.assert_close(normal_code(), torch.tensor(PUBLISHED), atol=1e-6, rtol=0)


def layer_of(kind: Any, inputs: int = 200, outputs: int = 96) -> tuple[QuantizedLinear, Tensor]:
    layer = Linear(inputs, outputs)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=stream) * 0.02)
        layer.bias.copy_(torch.randn(outputs, generator=stream))
    exact = layer.weight.detach().clone()
    quantize(layer, kind)
    assert isinstance(layer, QuantizedLinear)
    return layer, exact


@pytest.mark.parametrize(("kind", "error", "bits"), [("int8", 0.012, 8.5), ("nf4", 0.11, 4.7)])
def test_quantised_weights_are_near_and_small(kind: str, error: float, bits: float) -> None:
    layer, exact = layer_of(kind)
    assert ((layer.dense_weight() - exact).norm() / exact.norm()) < error
    stored = layer.weight.nbytes + sum(buffer.nbytes for buffer in layer.buffers()) - (64 if kind == "nf4" else 0)
    assert stored * 8 / exact.numel() < bits


def test_each_code_is_the_nearest() -> None:
    layer, exact = layer_of("nf4", inputs=64)
    scale = (layer.scale * (layer.group_scale[0] / 127) + layer.scale_mean)[:, None]
    distance = (exact[:, :, None] - normal_code() * scale[:, :, None]).abs()
    torch.testing.assert_close(layer.dense_weight(), normal_code()[distance.argmin(2)] * scale)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_pass_a_quantised_layer(kind: str) -> None:
    layer, _ = layer_of(kind)
    layer.bias.requires_grad_(False)
    x = torch.randn(7, 200, requires_grad=True)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        y = layer(x)
    assert kept == []
    y.square().sum().backward()
    other = x.detach().requires_grad_()
    torch.nn.functional.linear(other, layer.dense_weight(), layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_lora_on_a_quantised_base_merges_into_what_it_was_trained_on(kind: Any) -> None:
    quantised = with_(Quantize(Quantize.Config(to=kind)))
    assert len(quantized_layers(quantised)) == 14
    model = with_(Quantize(Quantize.Config(to=kind)), lora(rank=4))
    torch.testing.assert_close(says(model), says(quantised))
    assert (says(model) - says(small())).abs().max() > 1e-3
    assert all(layer.exact is None for layer in quantized_layers(model).values())
    changed = says(shaken(model))
    merge_all(model)
    assert not quantized_layers(model)
    torch.testing.assert_close(says(model), changed, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mappings in a file")
def test_a_quantised_base_lets_go_of_its_file(tmp_path: Path) -> None:
    save_model(tmp_path, small().config, small().state_dict())

    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")

    model = load_model(tmp_path)
    before = says(model)
    assert mapped()
    apply_transforms(model, [Quantize(Quantize.Config(to="int8"))], seed=0)
    assert not mapped()
    assert model.head.weight is model.embed.weight
    torch.testing.assert_close(says(model), before, atol=0.1, rtol=0.1)


def test_layers_can_be_left_out_of_quantising() -> None:
    model = with_(Quantize(Quantize.Config(exclude=["down_proj"])), lora())
    assert len(quantized_layers(model)) == 12
    with pytest.raises(ConfigError, match="first"):
        with_(lora(), Quantize(Quantize.Config()))


def test_loftq_starts_nearer_to_the_base() -> None:
    def far(init: str) -> float:
        model = with_(Quantize(Quantize.Config()), lora(init=init, rank=8))
        return float((says(model) - says(small())).norm())

    assert far("loftq") < 0.8 * far("uniform")
