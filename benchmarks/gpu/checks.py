"""Every path of a GPU against float32 on the CPU: how far apart, and how far they may be."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from texts import write_texts
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (33, 7, 64, 64, 1, 130)
"""Of the sequences in a packed micro-batch: several, some equal, one of a single token."""


@dataclass(frozen=True)
class Check:
    """off: the largest difference found, in the words of `what`; limit: what is allowed; note: which path ran.

    left_out: this device cannot do it, the note says why.
    """

    name: str
    off: float
    limit: float
    note: str = ""
    left_out: bool = False

    @property
    def good(self) -> bool:
        """Whether it is close enough; what is not a number is not."""
        return self.left_out or self.off <= self.limit

    @property
    def line(self) -> str:
        """For people."""
        if self.left_out:
            return f"left out: {self.name}, {self.note}"
        return f"{'ok  ' if self.good else 'FAIL'} {self.name}: {self.off:.2e} of {self.limit:.0e}  {self.note}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "good": self.good}


class LeftOut(Exception):
    """Says why a device cannot do what is to be checked."""


def without_float8(device: torch.device) -> str:
    """Why nothing can be said about FP8 here; empty if something can."""
    from trivium.core.float8 import emulates_float8, has_float8

    if importlib.util.find_spec("torchao") is None:
        return "there is no torchao"
    return "" if has_float8(device) or emulates_float8(device) else "the device has no FP8"


def run_checks(device: str) -> list[Check]:
    """All of them, each printed as it is done; one that raises has failed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for name, check in CHECKS.items():
        try:
            off, limit, note = check(torch.device(device))
            found.append(Check(name, off, limit, note))
        except LeftOut as reason:
            found.append(Check(name, 0.0, 0.0, str(reason), left_out=True))
        except Exception:
            found.append(Check(name, float("nan"), 0.0, traceback.format_exc()[-600:]))
        print(found[-1].line, flush=True)
    return found


def model(**changes: Any) -> Any:
    """A small llama in float32 on the CPU; heads of 64, as large models have."""
    from trivium.models.build import build_model, preset

    shape = {"hidden_size": 256, "num_heads": 4, "num_kv_heads": 2, "num_layers": 3, "vocab_size": 1000}
    return build_model(preset("llama-1m", {**shape, "max_positions": 512, "intermediate_size": 512, **changes}), seed=0)


def batch() -> tuple[Tensor, Any]:
    """Random tokens, and how they lie."""
    from trivium.data.batch import Layout

    return torch.randint(0, 1000, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0)), Layout(LENGTHS)


def loss_and_gradients(
    made: Any, device: torch.device, *, half: bool = False, run: Callable[..., Any] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of the batch, and the gradient of each parameter on the CPU in float32."""
    from trivium.losses.tokens import token_loss

    ids, layout = batch()
    ids = ids.to(device)
    targets = ids.roll(-1)
    made.zero_grad()
    with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
        total = (run or made)(ids, layout, then=lambda hidden, head: token_loss(hidden, head, targets)) / len(ids)
    total.backward()
    gradients = {name: p.grad.float().cpu() for name, p in made.named_parameters() if p.grad is not None}
    return total.item(), gradients


def apart(ours: tuple[float, dict[str, Tensor]], reference: tuple[float, dict[str, Tensor]]) -> float:
    """The largest of: relative difference of the losses, relative distance of the gradients as one vector."""
    loss = abs(ours[0] / reference[0] - 1)
    one, two = (torch.cat([each[1][name].flatten() for name in reference[1]]) for each in (ours, reference))
    return max(loss, float((one - two).norm() / two.norm()))


def on(device: torch.device, **changes: Any) -> tuple[Any, Any]:
    """(the same model on the CPU, on the device)."""
    made = model(**changes)
    return made, copy.deepcopy(made).to(device)


def float32(device: torch.device) -> tuple[float, float, str]:
    """Float32 on the device, without TF32."""
    cpu, gpu = on(device)
    return apart(loss_and_gradients(gpu, device), loss_and_gradients(cpu, torch.device("cpu"))), 1e-4, ""


def bfloat16(device: torch.device) -> tuple[float, float, str]:
    """Autocast: arithmetic in bf16, weights and gradients in float32."""
    cpu, gpu = on(device)
    found = loss_and_gradients(gpu, device, half=True)
    kept = {p.dtype for p in gpu.parameters()} | {p.grad.dtype for p in gpu.parameters() if p.grad is not None}
    assert kept == {torch.float32}, f"weights or gradients are {kept}"
    return apart(found, loss_and_gradients(cpu, torch.device("cpu"))), 3e-2, "weights and gradients are float32"


def compiled(device: torch.device) -> tuple[float, float, str]:
    """torch.compile of the blocks, in bf16, beside the same eager."""
    from trivium.core.method import Role, RoleModel

    cpu, gpu = on(device)
    role = RoleModel("policy", gpu, Role())
    role.compile()
    found = loss_and_gradients(gpu, device, half=True, run=gpu)
    return apart(found, loss_and_gradients(cpu, torch.device("cpu"))), 3e-2, ""


def eight_bits(device: torch.device) -> tuple[float, float, str]:
    """FP8 in the blocks, beside float32: gradients in e5m2 have two binary digits, which is an eighth at most."""
    from trivium.core.float8 import to_float8

    if reason := without_float8(device):
        raise LeftOut(reason)
    cpu, gpu = on(device)
    layers = to_float8(gpu, device)
    found = loss_and_gradients(gpu, device, half=True)
    kept = {p.dtype for p in gpu.parameters()} | {p.grad.dtype for p in gpu.parameters() if p.grad is not None}
    assert kept == {torch.float32}, f"weights or gradients are {kept}"
    return apart(found, loss_and_gradients(cpu, torch.device("cpu"))), 0.2, layers.words


def recomputed(device: torch.device) -> tuple[float, float, str]:
    """Activation checkpointing beside the same without: the same numbers."""
    _, gpu = on(device)
    plain = loss_and_gradients(gpu, device)
    gpu.checkpoint_activations(1)
    return apart(loss_and_gradients(gpu, device), plain), 1e-6, ""


def attention(device: torch.device) -> tuple[float, float, str]:
    """Rows of several lengths in bf16 and their gradients, causal, windowed and in both directions, grouped heads."""
    from trivium.data.batch import Layout
    from trivium.models.attention import Pattern, plan_attention, varlen_reason

    worst, source = 0.0, torch.Generator().manual_seed(0)
    for pattern in (Pattern(), Pattern(window=16), Pattern(causal=False), Pattern(scale=0.2)):
        shapes = ((4, 64), (2, 64), (2, 64))
        values = [torch.randn(sum(LENGTHS), *shape, generator=source).bfloat16().float() for shape in shapes]
        results = []
        for where, dtype in ((torch.device("cpu"), torch.float32), (device, torch.bfloat16)):
            q, k, v = (x.to(where, dtype).detach().requires_grad_() for x in values)
            out = plan_attention(Layout(LENGTHS), pattern=pattern, device=where)(q, k, v, layer=0, dropout=0.0)
            (out.float() * torch.arange(64, device=where)).sum().backward()
            results.append([x.float().cpu() for x in (out, q.grad, k.grad, v.grad)])
        worst = max([worst, *(((a - b).norm() / b.norm()).item() for b, a in zip(*results, strict=True))])
    reason = varlen_reason(device)
    return worst, 2e-2, "one kernel for all lengths" if not reason else f"without the kernel: {reason}"


def fused_loss(device: torch.device) -> tuple[float, float, str]:
    """The loss in chunks with its gradient made in the forward pass, beside torch's cross-entropy in float32."""
    from trivium.losses.tokens import token_loss

    source = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3000, 128, generator=source), 0.1 * torch.randn(5000, 128, generator=source)
    targets = torch.randint(0, 5000, (3000,), generator=source)
    found = []
    for where, fused in ((torch.device("cpu"), False), (device, True)):
        head = torch.nn.Linear(128, 5000, bias=False, device=where)
        head.weight.data.copy_(weight)
        x, goal = hidden.to(where).requires_grad_(), targets.to(where)
        total = token_loss(x, head, goal) if fused else F.cross_entropy(head(x), goal, reduction="sum")
        total.backward()
        found.append((total.item(), {"x": x.grad.cpu(), "w": head.weight.grad.cpu()}))
    return apart(found[1], found[0]), 1e-4, ""


def decoding(*, captured: bool) -> Callable[[torch.device], tuple[float, float, str]]:
    """Greedy text with the cache, prompts of several lengths at once: the share of tokens that differ from a CPU's.

    captured: by CUDA graphs, and twice, since the first text captures what the second one only replays. One prompt
    grows beyond the width of the first capture. It is an error if a GPU takes the plain way instead.
    """

    def check(device: torch.device) -> tuple[float, float, str]:
        from trivium.inference.engine import generate_ids
        from trivium.inference.request import Sampling
        from trivium.models.graphs import decoding_words

        cpu, gpu = on(device)
        ids, layout = batch()
        prompts = [ids[start:end].tolist() for start, end in layout.spans()] + [ids[:250].tolist()]
        before = os.environ.get("TRIVIUM_CUDA_GRAPHS")
        os.environ["TRIVIUM_CUDA_GRAPHS"] = "1" if captured else "0"
        try:
            texts = []
            for one in (cpu.eval(), *[gpu.eval()] * (1 + captured)):
                done = generate_ids(one, prompts, max_new_tokens=16, sampling=Sampling(temperature=0), eos_ids=())
                texts.append([token for completion in done for token in completion.ids])
            words = decoding_words(gpu)
        finally:
            os.environ.pop("TRIVIUM_CUDA_GRAPHS")
            os.environ |= {} if before is None else {"TRIVIUM_CUDA_GRAPHS": before}
        if captured and device.type == "cuda" and words.startswith("without"):
            raise RuntimeError(words)
        reference, *found = texts
        differ = [sum(a != b for a, b in zip(text, reference, strict=True)) for text in found]
        return max(differ) / len(reference), 0.0, f"float32; {words}"

    return check


def whole_runs(device: torch.device) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(name, changes, processes) of short runs of the trainer; the first is the reference."""
    kind = device.type
    yield "cpu, fp32", {"engine": {"device": "cpu"}}, 0
    yield "bf16", {"engine": {"device": kind}, "train": {"precision": "bf16"}}, 0
    yield "fsdp2, bf16, one process", {"engine": {"device": kind, "name": "fsdp2"}, "train": {"precision": "bf16"}}, 1
    yield "bf16, compiled", {"engine": {"device": kind}, "train": {"precision": "bf16", "compile": "on"}}, 0
    yield "fp8", {"engine": {"device": kind}, "train": {"precision": "fp8"}}, 0
    yield "fp8, compiled", {"engine": {"device": kind}, "train": {"precision": "fp8", "compile": "on"}}, 0


def training(which: str) -> Callable[[torch.device], tuple[float, float, str]]:
    """Ten updates of the whole trainer beside ten on the CPU in float32: the largest difference of a loss."""

    def check(device: torch.device) -> tuple[float, float, str]:
        if "fp8" in which and (reason := without_float8(device)):
            raise LeftOut(reason)
        runs = {name: (changes, processes) for name, changes, processes in whole_runs(device)}
        reference, found = (trained(name, *runs[name]) for name in ("cpu, fp32", which))
        pairs = zip(found, reference, strict=True)
        return max(abs(a / b - 1) for a, b in pairs), 2e-2, f"loss {reference[0]:.3f} to {reference[-1]:.3f}"

    return check


def trained(name: str, changes: dict[str, Any], processes: int) -> list[float]:
    """The losses of a run in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_texts(place, words=60_000)
        # Sizes that FP8 can multiply: the preset's own MLP is not one of them.
        shape = {"vocab_size": 600, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 352}
        settings = {
            "name": "run",
            "runs": str(place / "runs"),
            "method": "clm",
            "model": {"preset": "llama-1m", "config": shape},
            "tokenizer": str(place / "tokenizer"),
            "data": {"train": str(place / "train.jsonl"), "sequence_length": 64},
            "engine": changes["engine"],
            "train": {"steps": 10, "batch_size": 8, "lr": 1e-3, "compile": "off", **changes.get("train", {})},
        }
        (place / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
        start = [sys.executable, "-m"]
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"] if processes else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [*start, "trivium", "train", str(place / "run.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-500:]}")
        lines = (place / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines if json.loads(line)["kind"] == "train"]


CHECKS: dict[str, Callable[[torch.device], tuple[float, float, str]]] = {
    "float32": float32,
    "bf16 arithmetic, float32 weights": bfloat16,
    "FP8 arithmetic, float32 weights": eight_bits,
    "attention over several lengths": attention,
    "fused loss": fused_loss,
    "torch.compile": compiled,
    "activation checkpointing": recomputed,
    "greedy decoding by plain blocks": decoding(captured=False),
    "greedy decoding by CUDA graphs": decoding(captured=True),
    "a run in bf16": training("bf16"),
    "a run in bf16, FSDP2 with one process": training("fsdp2, bf16, one process"),
    "a run in bf16, compiled": training("bf16, compiled"),
    "a run in fp8": training("fp8"),
    "a run in fp8, compiled": training("fp8, compiled"),
}
