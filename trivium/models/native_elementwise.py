"""Element-wise parts of training in float32 on the CPU by our kernels in C.

torch's operators go over memory once for each of the five to ten steps of a formula; `elementwise.c` goes once. Results
are those of torch up to rounding, and do not depend on the number of threads. `trivium.models.kernels` and
`trivium.losses.tokens` call these where `suits` says so; derivatives are put together there.

Shapes: T tokens or rows, D width, I width inside the MLP, V vocabulary.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models.native import checked, library, pointer

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""In the order of the enumeration in vectors.h; the kernels know no others."""
_SHARE = 8192
"""Numbers that are worth another thread."""


@cache
def kernel() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be had, or do not compute what they should."""
    return checked(_library(), _right)


@cache
def _library() -> ctypes.CDLL | None:
    """The kernels, unchecked."""
    loaded = library()
    if loaded is None:
        return None
    address, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    for name, arguments in {
        "rms_norm": [address] * 4 + [number, number, real, number],
        "rms_norm_backward": [address] * 6 + [number] * 3,
        "gated": [address] * 3 + [number] * 3,
        "gated_backward": [address] * 6 + [number] * 3,
        "turn": [address] * 4 + [number] * 7,
        "softmax": [address] * 5 + [number] * 3,
    }.items():
        function = getattr(loaded, f"trivium_{name}")
        function.argtypes, function.restype = arguments, None
    loaded.trivium_rms_norm_sums.argtypes, loaded.trivium_rms_norm_sums.restype = [number], number
    return loaded


def _right() -> bool:
    """Whether each of them agrees with torch on a few numbers."""
    x, other = torch.arange(3 * 38.0).sin().view(3, 38), torch.arange(3 * 38.0).cos().view(3, 38)
    weight, goal = other[0].contiguous(), torch.tensor([[5], [37], [0]])
    a, b, w = (each.clone().requires_grad_() for each in (x, other, weight))
    normed, gate = F.rms_norm(a, w.shape, w, 1e-5), F.silu(a) * b
    to_x, to_weight = torch.autograd.grad((normed * other).sum(), (a, w))
    to_gate, to_up = torch.autograd.grad((gate * other).sum(), (a, b))
    found, inverse = rms_norm(x, weight, 1e-5)
    slopes = rms_norm_backward(other, x, weight, inverse)
    gates = gated_backward(other, x, other, "silu", remake=True)
    there = turn(x.view(3, 1, 38), other, weight.expand(3, 38)[:, :19])
    turned = torch.cat((x[:, :19] * other[:, :19] - x[:, 19:] * weight[:19], 0 * x[:, 19:]), 1)
    turned[:, 19:] = x[:, 19:] * other[:, 19:] + x[:, :19] * weight[:19]
    chances = x.clone()
    picked, _, entropy = softmax_(chances, goal)
    logs = x.log_softmax(1)
    pairs: list[tuple[Tensor | None, ...]] = [
        (found, normed),
        (slopes[0], to_x),
        (slopes[1], to_weight),
        (gates[0], to_gate),
        (gates[1], to_up),
        (gates[2], gate),
        (there.view(3, 38), turned),
        (chances, logs.exp()),
        (picked, logs.gather(1, goal)),
        (entropy, -(logs * logs.exp()).sum(1, keepdim=True)),
    ]
    plain = F.silu(a), F.gelu(a), F.gelu(a, approximate="tanh"), F.relu(a)
    for kind, expected in zip(ACTIVATIONS, plain, strict=True):
        slope, _, again = gated_backward(other, x, None, kind, remake=True)
        pairs += [(again, expected), (slope, *torch.autograd.grad((expected * other).sum(), a))]
    return all(torch.allclose(one, two, atol=1e-5) for one, two in pairs if one is not None and two is not None)


def suits(*tensors: Tensor) -> bool:
    """Whether all are plain float32 side by side in memory on the CPU, and there are kernels."""
    return all(map(_plain, tensors)) and kernel() is not None


def _plain(x: Tensor) -> bool:
    whole = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    return whole and type(x) in (Tensor, nn.Parameter)


def _call(name: str, *arguments: Tensor | float | None, numbers: int) -> None:
    """Runs a kernel with as many threads as `numbers` numbers are worth."""
    threads = max(1, min(torch.get_num_threads(), numbers // _SHARE))
    given = (pointer(x) if x is None or isinstance(x, Tensor) else x for x in arguments)
    getattr(_library(), f"trivium_{name}")(*given, threads)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., D] / sqrt(mean(x^2) + eps) * weight [D], and the factor [..., 1] of each row."""
    width = x.shape[-1]
    out, inverse = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
    _call("rms_norm", x, weight, out, inverse, inverse.numel(), width, eps, numbers=x.numel())
    return out, inverse


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
    *,
    wants_weight: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x [..., D] and of the weight [D], from `grad` [..., D] and what `rms_norm` said."""
    rows, width = inverse.numel(), x.shape[-1]
    to_x = torch.empty_like(x)
    sums = x.new_empty(_library().trivium_rms_norm_sums(rows), width) if wants_weight else None  # type: ignore
    _call("rms_norm_backward", grad, x, weight, inverse, to_x, sums, rows, width, numbers=x.numel())
    return to_x, None if sums is None else sums[0].clone()


def gated(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * up; without up activation(gate)."""
    out = torch.empty_like(gate)
    _call("gated", gate, up, out, gate.numel(), ACTIVATIONS.index(activation), numbers=gate.numel())
    return out


def gated_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    activation: str,
    *,
    remake: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of gate and up, if there is one; with `remake` the result of `gated` once more."""
    to_gate, to_up, out = (torch.empty_like(gate) if made else None for made in (True, up is not None, remake))
    kind, count = ACTIVATIONS.index(activation), gate.numel()
    _call("gated_backward", grad, gate, up, to_gate, to_up, out, count, kind, numbers=count)
    return to_gate, to_up, out  # type: ignore[return-value]


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Each pair (x_i, x_{i + C/2}) turned by its angle, or back; x [T, H, C], cos [T, ..., C], sin [T, ..., C/2]."""
    out = torch.empty_like(x)
    tokens, heads, width = x.shape
    numbers = tokens, heads, width, x.stride(0), x.stride(1), int(back)
    _call("turn", x, cos, sin.contiguous(), out, *numbers, numbers=x.numel())
    return out


def softmax_(logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Makes logits [T, V] probabilities, and says of each row, [T, 1]: the log-probability of its goal [T, 1], 1 if no
    other token is likelier, and the entropy in nats."""
    picked, right, entropy = (logits.new_empty(len(logits), 1) for _ in range(3))
    goal = goal.contiguous()
    _call("softmax", logits, goal, picked, right, entropy, *logits.shape, numbers=logits.numel())
    return picked, right, entropy
