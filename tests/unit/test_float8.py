"""FP8: what is rounded to eight bits and what is not; imitated on the CPU, where torchao is installed."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from tests.unit.test_run import interrupt_at, lines
from trivium.config import resolve
from trivium.core import float8
from trivium.core.engine import check_precision
from trivium.core.float8 import EMULATE, to_float8
from trivium.core.machines import describe_here
from trivium.data.batch import Layout
from trivium.errors import ConfigError, Interrupted
from trivium.losses.tokens import token_loss
from trivium.models.build import build_model, preset

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra fp8"),
]
CPU = torch.device("cpu")
LENGTHS = (33, 7, 24, 1)
Changed = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATE, "1")


def model(name: str = "llama-1m", **changes: Any) -> Any:
    return build_model(preset(name, {"vocab_size": 400, "num_layers": 2, **changes}), seed=0)


def loss_and_gradients(made: Any, *, half: bool) -> tuple[float, Tensor]:
    """Mean loss of a packed micro-batch, and all gradients as one vector."""
    ids = torch.randint(0, 400, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    made.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        total = made(ids, Layout(LENGTHS), then=lambda hidden, head: token_loss(hidden, head, ids.roll(-1))) / len(ids)
    total.backward()
    return total.item(), torch.cat([p.grad.flatten() for p in made.parameters()])


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As numbers of eight bits with one scale say it."""
    scale = torch.finfo(dtype).max / x.abs().max().double()
    return (x.float() * scale.float()).to(dtype).float() / scale.float()


@pytest.mark.parametrize("tokens", [16, 48, 37, 1])
@pytest.mark.parametrize("emulate", ["1", "0"])
def test_a_layer_rounds_as_the_formats_say(tokens: int, emulate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by torch's own product of such matrices, which a GPU takes and which the CPU has too, if slowly."""
    monkeypatch.setenv(EMULATE, emulate)
    made = model("gpt2-1m")
    to_float8(made, CPU)
    layer = made.blocks[0].mlp.up
    source = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, layer.in_features, generator=source).bfloat16().float().requires_grad_()
    upstream = torch.randn(tokens, layer.out_features, generator=source).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.backward(upstream)
    forward, back = torch.float8_e4m3fn, torch.float8_e5m2
    near, w, g = rounded(x.detach(), forward), rounded(layer.weight.detach(), forward), rounded(upstream, back)
    expected = (near @ w.t() + layer.bias.detach(), g @ w, g.t() @ near, upstream.float().sum(0))
    for ours, theirs in zip((y.detach(), x.grad, layer.weight.grad, layer.bias.grad), expected, strict=True):
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 4e-3  # the results are bf16
    assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32


def test_losses_and_gradients_stay_near_those_of_float32() -> None:
    """The loss within 1e-3; the gradient, of which e5m2 keeps two binary digits, within a fifth."""
    plain = model(intermediate_size=352)
    eight = copy.deepcopy(plain)
    to_float8(eight, CPU)
    reference, half, found = (
        loss_and_gradients(plain, half=False),
        loss_and_gradients(plain, half=True),
        loss_and_gradients(eight, half=True),
    )
    off = [float((gradient - reference[1]).norm() / reference[1].norm()) for _, gradient in (half, found)]
    assert found[0] == pytest.approx(reference[0], rel=1e-3)
    assert 4 * off[0] < off[1] < 0.2
    again = loss_and_gradients(eight, half=True)
    assert again[0] == found[0] and torch.equal(again[1], found[1])


def test_without_autocast_the_layers_are_plain() -> None:
    """Text is generated, and models are compared, in the precision of the weights."""
    plain = model(intermediate_size=352)
    eight = copy.deepcopy(plain)
    to_float8(eight, CPU)
    one, two = (loss_and_gradients(made, half=False) for made in (plain, eight))
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    assert torch.allclose(one[1], two[1], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_compiled_blocks_are_one_graph_and_compute_the_same() -> None:
    """More blocks than torch compiles one function for, and numbers of tokens that do and do not divide by 16."""
    from torch._dynamo.utils import counters

    eager = model(intermediate_size=352, num_layers=10)
    to_float8(eager, CPU)
    compiled = copy.deepcopy(model(intermediate_size=352, num_layers=10))
    to_float8(compiled, CPU)
    torch.compiler.reset()
    counters.clear()
    for block in compiled.all_blocks:
        block.compile()
    one, two = (loss_and_gradients(made, half=True) for made in (eager, compiled))
    assert one[0] == pytest.approx(two[0], rel=1e-3)
    assert float((one[1] - two[1]).norm() / one[1].norm()) < 0.2
    assert counters["stats"]["unique_graphs"] < len(compiled.blocks)


def test_parameters_stay_what_they_are() -> None:
    made = model("t5-1m")
    before = dict(made.named_parameters())
    keys = list(made.state_dict())
    to_float8(made, CPU)
    assert list(made.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in made.named_parameters())
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_no_tokens_at_all() -> None:
    made = model("gpt2-1m")
    to_float8(made, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert made.blocks[0].mlp.up(torch.zeros(0, 128)).shape == (0, 512)


@pytest.mark.parametrize(
    ("name", "changes", "reason", "where"),
    [
        ("llama-1m", {"intermediate_size": 344}, float8.SIZES, "mlp."),
        ("mixtral-1m", {}, float8.EXPERTS, "moe."),
        ("t5-1m", {}, float8.OUTSIDE, "head"),
    ],
)
def test_what_is_left_in_bf16(name: str, changes: dict[str, Any], reason: str, where: str) -> None:
    made = model(name, **changes)
    found = to_float8(made, CPU)
    linear = {name for name, part in made.named_modules() if isinstance(part, nn.Linear)}
    assert set(found.float8) | set(found.bf16) == linear and not set(found.float8) & set(found.bf16)
    assert {name for name, why in found.bf16.items() if why == reason} == {name for name in linear if where in name}
    assert all(".attention." in name or ".cross." in name or ".mlp." in name for name in found.float8)
    assert reason in found.words and f"{len(found.float8)} of {len(linear)} linear" in found.words
    if name != "t5-1m":  # needs a source
        assert math.isfinite(loss_and_gradients(made, half=True)[0])


def test_a_model_in_which_nothing_suits_is_refused() -> None:
    changes = {"hidden_size": 72, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 100}
    with pytest.raises(ConfigError, match="can multiply in FP8") as caught:
        to_float8(model(**changes), CPU)
    assert "train.precision=bf16" in str(caught.value) and len(str(caught.value).splitlines()) <= 5
    assert not to_float8(model(**changes), CPU, trains=False).float8, "a frozen model runs as it can"


def test_a_model_with_an_adapter_is_refused() -> None:
    from trivium.models.transform import apply_transforms
    from trivium.transforms.lora import LoRA

    made = model()
    apply_transforms(made, [LoRA(LoRA.Config(rank=2))], seed=0)
    with pytest.raises(ConfigError, match="LoRA changes"):
        to_float8(made, CPU)


@pytest.mark.parametrize(
    ("device", "capability", "switch", "words"),
    [
        ("cpu", None, "0", "device cpu has no FP8"),
        ("mps", None, "1", "device mps has no FP8"),
        ("cuda", (8, 6), "0", "this GPU has no FP8"),
        ("cuda", (8, 6), "1", None),
        ("cuda", (8, 9), "0", None),
        ("cuda", (9, 0), "0", None),
        ("cpu", None, "1", None),
    ],
)
def test_hardware_without_fp8_is_refused(
    device: str,
    capability: tuple[int, int] | None,
    switch: str,
    words: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(EMULATE, switch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if words is None:
        check_precision("fp8", torch.device(device))
        return
    with pytest.raises(ConfigError, match=words) as caught:
        check_precision("fp8", torch.device(device))
    message = str(caught.value)
    assert "train.precision" in message and "bf16" in message and EMULATE in message and len(message.splitlines()) <= 5


def test_this_machine_is_measured_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(describe_here(device="cpu", precision="fp8").peak_tflops) == {"bf16", "fp8"}
    monkeypatch.setenv(EMULATE, "0")
    with pytest.raises(ConfigError, match="no FP8"):
        describe_here(device="cpu", precision="fp8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe = make_world(tmp_path_factory.mktemp("float8"), "clm")
    recipe["train"].update(steps=6, checkpoint_every=2, validate_every=3, sample_every=3, threads=1, precision="fp8")
    return recipe


@pytest.fixture
def changed(world: dict[str, Any], request: pytest.FixtureRequest) -> Changed:
    """The recipe under the name of the test, with changes to `train`."""

    def make(name: str = "", **train: Any) -> dict[str, Any]:
        return {**world, "name": f"{request.node.name}{name}", "train": {**world["train"], **train}}

    return make


def losses(run: Any) -> list[float]:
    return [line["loss"] for line in lines(run.folder / "metrics.jsonl")]


def test_a_run_trains_near_float32_and_saves_full_weights(changed: Changed, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses of training and validation within 2 % of those in float32, and other than those in bf16."""
    transformers = pytest.importorskip("transformers")
    run = tv.train(changed())
    said = capsys.readouterr().err
    full, half = (tv.train(changed(precision, precision=precision)) for precision in ("fp32", "bf16"))
    assert losses(run) == pytest.approx(losses(full), rel=0.02)
    assert losses(run) != losses(full) and losses(run) != losses(half)
    assert "policy: emulated" in said and "12 of 13 linear layers multiply in FP8" in said
    found = json.loads((run.folder / "float8.json").read_text())["policy"]
    assert len(found["float8"]) == 12 and found["emulated"] and set(found["bf16"]) == {"head"}
    assert not (half.folder / "float8.json").exists()
    assert run.final is not None
    ours, theirs = tv.load(run.final), transformers.AutoModelForCausalLM.from_pretrained(run.final)
    assert {parameter.dtype for parameter in ours.module.parameters()} == {torch.float32}
    ids = torch.randint(3, 400, (2, 17))
    with torch.no_grad():
        assert float((ours.module(ids) - theirs.eval()(ids).logits).abs().max()) < 1e-4


def test_a_run_that_was_stopped_ends_bit_identical(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = fingerprint(tv.train(changed("-calm")).folder)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            tv.train(changed())
    assert fingerprint(tv.train(changed()).folder) == calm


def test_saving_memory_changes_no_number(changed: Changed) -> None:
    plain = losses(tv.train(changed(steps=3)))
    for option, value in (("activation_checkpointing", "block"), ("offload", "activations"), ("offload", "optimizer")):
        assert losses(tv.train(changed(f"-{value}", steps=3, **{option: value}))) == plain, value


def test_a_frozen_copy_of_the_start_is_rounded_alike(tmp_path: Path) -> None:
    """Before its first update a policy prefers nothing more than its reference does: the loss of DPO is log 2."""
    recipe = make_world(tmp_path, "dpo")
    recipe["model"]["config"].update(dropout=0.0, embedding_dropout=0.0)
    run = tv.train({**recipe, "train": {"steps": 1, "batch_size": 4, "precision": "fp8", "threads": 1}})
    assert losses(run)[0] == pytest.approx(math.log(2), rel=1e-6)
    assert set(json.loads((run.folder / "float8.json").read_text())) == {"policy", "reference"}


def test_the_switch_is_no_part_of_a_recipe(monkeypatch: pytest.MonkeyPatch, changed: Changed) -> None:
    monkeypatch.setenv(EMULATE, "0")
    assert resolve(changed()).recipe.train.precision == "fp8"
    with pytest.raises(ConfigError, match="no FP8"):
        tv.train(changed())
