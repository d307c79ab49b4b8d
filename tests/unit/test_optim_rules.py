"""Each optimiser against a reference, step by step, and each of its options shown to change a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from trivium import registry
from trivium.optim.adamw8bit import packed, shares, unpacked
from trivium.optim.schedule import learning_rate
from trivium.recipe import TrainSection

STEPS = 12
Weights = dict[str, torch.Tensor]


def weights(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    """A matrix and a vector, as an optimiser sees them; the same each time."""
    random = torch.Generator().manual_seed(3)
    shapes = {"policy.blocks.0.mlp.up.weight": (5, 3), "policy.final_norm.weight": (4,)}
    return {name: nn.Parameter(torch.randn(shape, generator=random, dtype=dtype)) for name, shape in shapes.items()}


def gradients(dtype: torch.dtype = torch.float64) -> Iterator[list[torch.Tensor]]:
    """Gradients of very different sizes, and none at all in one step."""
    random = torch.Generator().manual_seed(4)
    for step in range(STEPS):
        scale = 10.0 ** (step % 3 - 1)
        yield [scale * torch.randn(shape, generator=random, dtype=dtype) for shape in ((5, 3), (4,))]


def rate(step: int) -> float:
    """A learning rate that changes."""
    return 0.1 / (4 - step % 4)


def build(name: str, **settings: Any) -> Any:
    cls = registry.component("optim", name)
    return cls(cls.Config.model_validate(settings))


def walk(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, *, steps: int = STEPS) -> Weights:
    """The weights after some steps."""
    for step, grads in zip(range(steps), gradients(next(iter(named.values())).dtype), strict=False):
        for parameter, gradient in zip(named.values(), grads, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group.get("lr_factor", 1.0)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in named.items()}


def trained(name: str, *, steps: int = STEPS, dtype: torch.dtype = torch.float64, **settings: Any) -> Weights:
    named = weights(dtype)
    return walk(named, build(name, **settings).build(named.items(), lr=0.1), steps=steps)


def numbers(found: Weights) -> numpy.ndarray:
    return torch.cat([tensor.flatten() for tensor in found.values()]).numpy()


TORCH: dict[str, tuple[str, dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ("sgd", {"momentum": 0.0, "weight_decay": 0.1}, lambda p: torch.optim.SGD(p, weight_decay=0.1)),
    "momentum": ("sgd", {"momentum": 0.8, "dampening": 0.3}, lambda p: torch.optim.SGD(p, momentum=0.8, dampening=0.3)),
    "nesterov": ("sgd", {"nesterov": True}, lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True)),
    "adam": (
        "adam",
        {"weight_decay": 0.1, "beta2": 0.9},
        lambda p: torch.optim.Adam(p, betas=(0.9, 0.9), weight_decay=0.1),
    ),
    "amsgrad": ("adam", {"amsgrad": True}, lambda p: torch.optim.Adam(p, amsgrad=True)),
    "adamw": ("adamw", {}, lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95), weight_decay=0.1)),
    "adamw amsgrad": (
        "adamw",
        {"amsgrad": True},
        lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95), weight_decay=0.1, amsgrad=True),
    ),
}


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.parametrize("fused", [True, False])
def test_is_torch_s_with_decay_of_matrices_only(case: str, fused: bool) -> None:
    name, settings, reference = TORCH[case]
    named = weights()
    theirs = reference([{"params": [one]} for one in named.values()])
    theirs.param_groups[1]["weight_decay"] = 0.0
    expected = walk(named, theirs)
    numpy.testing.assert_allclose(numbers(trained(name, fused=fused, **settings)), numbers(expected), rtol=1e-12)


def lamb(w: numpy.ndarray, grads: list[numpy.ndarray], *, decay: float, adapted: bool, **changes: Any) -> numpy.ndarray:
    """Algorithm 2 of You et al. 2020, number by number."""
    options = {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "correct": True, "low": 0.0, "high": numpy.inf, "most": numpy.inf}
    options.update(changes)
    m, v = numpy.zeros_like(w), numpy.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        m = options["b1"] * m + (1 - options["b1"]) * g
        v = options["b2"] * v + (1 - options["b2"]) * g * g
        m_hat = m / (1 - options["b1"] ** t) if options["correct"] else m
        v_hat = v / (1 - options["b2"] ** t) if options["correct"] else v
        step = m_hat / (numpy.sqrt(v_hat) + options["eps"]) + decay * w
        ratio = 1.0
        if adapted and numpy.linalg.norm(w) > 0 and numpy.linalg.norm(step) > 0:
            ratio = min(max(numpy.linalg.norm(w), options["low"]), options["high"]) / numpy.linalg.norm(step)
            ratio = min(ratio, options["most"])
        w = w - rate(t - 1) * ratio * step
    return w


LAMB = [
    ({}, {}),
    ({"beta1": 0.5, "beta2": 0.7, "eps": 1e-2, "weight_decay": 0.3}, {"b1": 0.5, "b2": 0.7, "eps": 1e-2}),
    ({"bias_correction": False}, {"correct": False}),
    ({"adapt_vectors": True}, {}),
    ({"norm_min": 100.0}, {"low": 100.0}),
    ({"norm_max": 0.5}, {"high": 0.5}),
    ({"ratio_max": 0.2}, {"most": 0.2}),
]


@pytest.mark.parametrize(("settings", "options"), LAMB, ids=str)
def test_lamb_is_the_paper_s(settings: dict[str, Any], options: dict[str, Any]) -> None:
    start, steps = list(weights().values()), list(gradients())
    for count in range(1, STEPS + 1):
        ours = list(trained("lamb", steps=count, **settings).values())
        for place, decay in enumerate((settings.get("weight_decay", 0.01), 0.0)):
            expected = lamb(
                start[place].detach().numpy(),
                [step[place].numpy() for step in steps[:count]],
                decay=decay,
                adapted=place == 0 or "adapt_vectors" in settings,
                **options,
            )
            numpy.testing.assert_allclose(ours[place].numpy(), expected, rtol=1e-11, atol=1e-14)


def test_lamb_moves_a_matrix_of_zeros() -> None:
    parameter = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimizer = build("lamb").build([("policy.blocks.0.weight", parameter)], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.allclose(parameter, torch.full_like(parameter, -0.1), atol=1e-5), "the ratio of nothing is 1"


def test_lion_is_the_paper_s() -> None:
    settings = {"beta1": 0.7, "beta2": 0.95, "weight_decay": 0.2}
    ours = list(trained("lion", **settings).values())
    for place, decay in enumerate((0.2, 0.0)):
        w = list(weights().values())[place].detach().numpy()
        m = numpy.zeros_like(w)
        for step, grads in enumerate(gradients()):
            g = grads[place].numpy()
            w = w - rate(step) * (numpy.sign(0.7 * m + 0.3 * g) + decay * w)
            m = 0.95 * m + 0.05 * g
        numpy.testing.assert_allclose(ours[place].numpy(), w, rtol=1e-12)


ADAFACTOR = [{}, {"relative": False, "clip": 0.3}, {"decay_power": 0.5, "beta1": 0.7}, {"scale_floor": 2.0}]


@pytest.mark.parametrize("settings", ADAFACTOR, ids=str)
def test_adafactor_is_that_of_transformers(settings: dict[str, Any]) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    named = weights()
    theirs = optimization.Adafactor(
        named.values(),
        lr=0.1,
        eps=(1e-30, settings.get("scale_floor", 1e-3)),
        clip_threshold=settings.get("clip", 1.0),
        decay_rate=-settings.get("decay_power", 0.8),
        beta1=settings.get("beta1"),
        scale_parameter=settings.get("relative", True),
        relative_step=False,
    )
    expected = walk(named, theirs)
    numpy.testing.assert_allclose(numbers(trained("adafactor", **settings)), numbers(expected), rtol=1e-7)


def test_the_relative_step_of_adafactor_is_a_schedule() -> None:
    """10 000 updates of warm-up to 1e-2, then one over the square root, as transformers has it in its optimiser."""
    optimization = pytest.importorskip("transformers.optimization")
    theirs = optimization.Adafactor([nn.Parameter(torch.ones(1))], relative_step=True, warmup_init=True, lr=None)
    settings = TrainSection.model_validate(
        {"steps": 30000, "lr": 1e-2, "schedule": "inverse_sqrt", "warmup_steps": 10000, "min_lr_ratio": 0}
    )
    group = {**theirs.param_groups[0], "scale_parameter": False}
    for step in (0, 1, 99, 9998, 9999, 10000, 12345, 29999):
        ours = learning_rate(step, settings, 30000)
        assert ours == pytest.approx(theirs._get_lr(group, {"step": step + 1, "RMS": 1.0}), rel=1e-9)


@pytest.mark.parametrize("settings", [{}, {"nesterov": False}, {"momentum": 0.5, "newton_schulz_steps": 3}], ids=str)
@pytest.mark.parametrize("scale", ["rms", "spectral"])
def test_muon_is_torch_s_for_hidden_matrices_and_adamw_for_the_rest(settings: dict[str, Any], scale: str) -> None:
    """Torch's polynomial is in bfloat16, so ours is asked for that too."""
    named = weights(torch.float32)
    matrix, vector = named.values()
    muon = torch.optim.Muon(
        [matrix],
        lr=0.1,
        weight_decay=0.1,
        momentum=settings.get("momentum", 0.95),
        nesterov=settings.get("nesterov", True),
        ns_steps=settings.get("newton_schulz_steps", 5),
        adjust_lr_fn="match_rms_adamw" if scale == "rms" else "original",
    )
    adamw = torch.optim.AdamW([vector], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    for step, grads in enumerate(gradients(torch.float32)):
        for parameter, gradient, optimizer in zip((matrix, vector), grads, (muon, adamw), strict=True):
            parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.step()
    ours = trained("muon", dtype=torch.float32, arithmetic="bfloat16", scale=scale, **settings)
    ours_matrix, ours_vector = ours.values()
    numpy.testing.assert_allclose(ours_vector, vector.detach(), rtol=1e-5)
    moved = (matrix.detach() - next(iter(weights(torch.float32).values())).detach()).norm()
    assert (ours_matrix - matrix.detach()).norm() < 0.01 * moved


def test_muon_makes_steps_orthogonal_in_full_arithmetic() -> None:
    rule = build("muon", newton_schulz_steps=5)
    for shape in ((3, 7, 7), (2, 5, 9), (2, 9, 5)):
        values = torch.linalg.svdvals(rule.orthogonal(torch.randn(shape, dtype=torch.float64)))
        assert values.min() > 0.3 and values.max() < 1.3
    assert rule.orthogonal(torch.zeros(1, 2, 3)).abs().max() == 0


def test_muon_s_adamw_has_a_learning_rate_of_its_own() -> None:
    named = weights()
    made = build("muon", adamw_lr=0.01).build(named.items(), lr=0.1)
    assert [group.get("lr_factor") for group in made.param_groups] == [None, pytest.approx(0.1)]


def test_adamw_in_8_bits_is_adamw_but_for_rounding() -> None:
    """Small tensors are exact; large ones end near, and use the same codes after a restart."""
    exact, near, plain = trained("adamw8bit"), trained("adamw8bit", whole_below=0), trained("adamw")
    numpy.testing.assert_allclose(numbers(exact), numbers(plain), rtol=1e-12)
    start = numbers({name: parameter.detach() for name, parameter in weights().items()})
    error = numpy.linalg.norm(numbers(near) - numbers(plain)) / numpy.linalg.norm(numbers(plain) - start)
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_in_8_bits_are_near_and_come_back_the_same(signed: bool) -> None:
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 333, generator=random) * 10 ** torch.linspace(-9, 3, 333)
    mean = mean if signed else mean.abs()
    assert len(set(shares(signed))) == 256 and max(shares(signed)) == 1.0 and 0.0 in shares(signed)
    state = packed("mean", mean, signed=signed)
    back = unpacked("mean", state, mean, signed=signed)
    largest = torch.nn.functional.pad(mean.flatten(), (0, 25)).view(-1, 256).abs().amax(1).repeat_interleave(256)
    error = (back - mean).abs().flatten() / largest[: mean.numel()]
    assert error.max() < 0.013 if signed else error.max() < 0.007
    again = packed("mean", back, signed=signed)
    assert all(torch.equal(again[name], state[name]) for name in state), "what was stored is stored alike"
    assert torch.equal(unpacked("mean", packed("mean", 0 * mean, signed=signed), mean, signed=signed), 0 * mean)


SCHEDULE_FREE = [
    {},
    {"beta": 0.8, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.3},
    {"r": 2.0},
    {"lr_power": 1.0},
    {"variant": "sgd"},
    {"variant": "sgd", "beta": 0.95, "weight_decay": 0.3},
]


@pytest.mark.parametrize("settings", SCHEDULE_FREE, ids=str)
def test_schedule_free_is_its_authors(settings: dict[str, Any]) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    named = weights()
    shared = {"r": settings.get("r", 0.0), "weight_lr_power": settings.get("lr_power", 2.0)}
    decays = [settings.get("weight_decay", 0.1), 0.0]
    groups = [{"params": [one], "weight_decay": decay} for one, decay in zip(named.values(), decays, strict=True)]
    if settings.get("variant") == "sgd":
        theirs = schedulefree.SGDScheduleFree(groups, lr=0.1, momentum=settings.get("beta", 0.9), **shared)
    else:
        betas = (settings.get("beta", 0.9), settings.get("beta2", 0.999))
        theirs = schedulefree.AdamWScheduleFree(groups, lr=0.1, betas=betas, eps=settings.get("eps", 1e-8), **shared)
    theirs.train()
    expected = numbers(walk(named, theirs))
    named_here = weights()
    ours = build("schedule_free", **settings).build(named_here.items(), lr=0.1)
    numpy.testing.assert_allclose(numbers(walk(named_here, ours)), expected, rtol=1e-9)
    theirs.eval()
    averages = numbers({str(place): average for place, (_, average) in enumerate(ours.averages())})
    numpy.testing.assert_allclose(averages, numbers({k: p.detach() for k, p in named.items()}), rtol=1e-9)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"momentum": 0.5}, {"dampening": 0.5}, {"nesterov": True}, {"weight_decay": 0.5}],
    "adam": [{"beta1": 0.5}, {"beta2": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5}, {"amsgrad": True}],
    "adamw8bit": [
        *({"beta1": 0.5}, {"beta2": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5}, {"whole_below": 0}),
    ],
    "adamw": [{"beta1": 0.5}, {"beta2": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5}, {"amsgrad": True}],
    "adafactor": [
        *({"relative": False}, {"scale_floor": 9.0}, {"decay_power": 0.3}, {"clip": 0.1}, {"beta1": 0.5}),
        {"weight_decay": 0.5},
    ],
    "muon": [
        *({"momentum": 0.5}, {"nesterov": False}, {"newton_schulz_steps": 2}, {"scale": "spectral"}),
        *({"arithmetic": "bfloat16"}, {"weight_decay": 0.5}, {"adamw_lr": 0.01}),
        *({"beta1": 0.5}, {"beta2": 0.5}, {"eps": 0.1}),
    ],
    "schedule_free": [
        *({"variant": "sgd"}, {"beta": 0.5}, {"beta2": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5}),
        *({"r": 3.0}, {"lr_power": 0.0}),
    ],
    "lion": [{"beta1": 0.5}, {"beta2": 0.5}, {"weight_decay": 0.0}],
    "lamb": [
        *({"beta1": 0.5}, {"beta2": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5}, {"bias_correction": False}),
        *({"adapt_vectors": True}, {"norm_min": 9.0}, {"norm_max": 0.5}, {"ratio_max": 0.1}),
    ],
}
WITHOUT_EFFECT = {"fused"}
"""Which kernel runs must not change the result."""


@pytest.mark.parametrize("name", registry.names("optim"))
def test_every_option_changes_the_weights(name: str) -> None:
    fields = set(registry.component("optim", name).Config.model_fields)
    assert fields - WITHOUT_EFFECT == {key for case in OPTIONS[name] for key in case}, "an option without a test"
    plain = trained(name)
    for case in OPTIONS[name]:
        assert numpy.abs(numbers(trained(name, **case)) - numbers(plain)).max() > 1e-6, case


@pytest.mark.parametrize("name", registry.names("optim"))
def test_vectors_are_not_decayed(name: str) -> None:
    """With a gradient of zero only decay moves a weight."""
    named = weights()
    start = {key: parameter.detach().clone() for key, parameter in named.items()}
    optimizer = build(name, weight_decay=0.1).build(named.items(), lr=0.1)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    matrix, vector = named
    assert not torch.equal(named[matrix], start[matrix])
    assert torch.equal(named[vector], start[vector])


@pytest.mark.parametrize("name", registry.names("optim"))
def test_parameters_without_a_gradient_stay(name: str) -> None:
    named = weights()
    first, second = named.values()
    before = second.detach().clone()
    optimizer = build(name).build(named.items(), lr=0.1)
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, before)


@pytest.mark.parametrize("name", registry.names("optim"))
def test_the_plan_knows_the_size_of_the_state(name: str) -> None:
    """In float32, of a large matrix: bytes of all tensors in the state."""
    parameter = nn.Parameter(torch.randn(256, 512))
    for settings in ({}, *OPTIONS[name]):
        made = build(name, **settings)
        optimizer = made.build([("policy.blocks.0.mlp.up.weight", parameter)], lr=1e-3)
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert made.state_bytes(4, 1.0) == pytest.approx(size / parameter.numel(), abs=0.05), settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sgd", {"nesterov": True, "momentum": 0}),
        ("sgd", {"nesterov": True, "dampening": 0.1}),
        ("sgd", {"dampening": 0.1, "momentum": 0}),
        ("lamb", {"norm_min": 2, "norm_max": 1}),
    ],
)
def test_options_that_contradict_each_other_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="fix:"):
        build(name, **settings)


def test_long_lists_of_tensors_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.optim import stepper

    plain = trained("lamb")
    monkeypatch.setitem(stepper.PIECE, "cpu", 4)
    assert numpy.array_equal(numbers(trained("lamb")), numbers(plain))
