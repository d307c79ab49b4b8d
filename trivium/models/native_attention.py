"""Attention in float32 on the CPU by our kernel in C, with its derivative.

torch's kernel multiplies matrices of one head each, which are too small for the library of matrix products at the usual
widths of heads, and wants rows of one length. `attention.c` has products of its own for such shapes and takes sequences
of any lengths side by side: half of the time forwards and backwards, and neither padding nor copies. Results are those
of torch up to rounding, and do not depend on the number of threads. First derivatives only.

Shapes: T tokens, S sequences; query [T, H, C]; key, value [N, K, C]; result [T, H, C].
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from trivium.models.native import checked, library, pointer

if TYPE_CHECKING:
    from trivium.models.attention import Attend, Pattern

_TENSORS = ("query", "key", "value", "out", "logsums", "grad", "to_query", "to_key", "to_value")
_PLACES = ("start", "key_start", "prefix")
_STEPS = ("query_step", "key_step", "value_step", "grad_step")
_NUMBERS = ("sequences", "heads", "key_heads", "width", "causal", "window", "derives")

_LONGEST = 16384
"""Keys of a sequence; each thread holds copies of those of a head, which torch does without."""

Plan = tuple[Tensor, Tensor, Tensor | None, bool, int | None, float]
"""[S + 1] where each sequence begins among the queries and among the keys, [S] first keys that all of it sees; whether
it is causal, the window, and the scale."""


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_TENSORS, *_PLACES)),
        *((name, ctypes.c_int64) for name in (*_STEPS, *_NUMBERS)),
        ("scale", ctypes.c_float),
    )


class NativeAttention:
    """Sequences that look at themselves, or at as many others, by the kernel; `otherwise` where it cannot."""

    def __init__(
        self,
        lengths: Sequence[int],
        others: Sequence[int] | None,
        *,
        pattern: Pattern,
        otherwise: Callable[[], Attend],
        compiles: bool = False,
        prefixes: Sequence[int] = (),
    ) -> None:
        """lengths: of the queries of each sequence; others: of its keys, default: the same."""
        self.pattern, self.compiles, self._otherwise = pattern, compiles, otherwise
        start = _starts(lengths)
        prefix = torch.tensor(prefixes) if any(prefixes) else None
        self.places = start, start if others is None else _starts(others), prefix

    @cached_property
    def otherwise(self) -> Attend:
        """What attends where the kernel does not suit."""
        return self._otherwise()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`."""
        if dropout or not _suits(query, key, value):
            return self.otherwise(query, key, value, layer=layer, dropout=dropout)
        pattern = self.pattern
        scale = query.shape[-1] ** -0.5 if pattern.scale is None else pattern.scale
        rest = *self.places, pattern.causal, pattern.window, scale
        if torch.compiler.is_compiling():
            traced: tuple[Tensor, Tensor] = _traced(query, key, value, *rest)
            return traced[0]
        if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)):
            return _forward(query, key, value, rest, keep=False)[0]
        result: Tensor = _Native.apply(query, key, value, *rest)  # type: ignore[no-untyped-call]
        return result


def native_suits(device: torch.device, pattern: Pattern, lengths: Sequence[int]) -> bool:
    """Whether the kernel computes this pattern on this device, for sequences of so many keys."""
    plain = pattern.bias is None and pattern.softcap is None
    return device.type == "cpu" and plain and max(lengths, default=0) <= _LONGEST and kernel() is not None


@cache
def kernel() -> ctypes.CDLL | None:
    """The kernel; None where it cannot be had, or does not compute what it should."""
    return checked(_library(), _right)


@cache
def _library() -> ctypes.CDLL | None:
    """The kernel, unchecked."""
    loaded = library()
    if loaded is not None:
        loaded.trivium_attention.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        loaded.trivium_attention.restype = ctypes.c_int64
    return loaded


def _right() -> bool:
    """Whether it agrees with torch on two short sequences."""
    x, places = torch.arange(2 * 70 * 2 * 20.0).sin().view(140, 2, 20), (torch.tensor([0, 70, 140]),) * 2
    rows = x.view(2, 70, 2, 20).transpose(1, 2).requires_grad_()
    expected = scaled_dot_product_attention(rows, rows, rows, is_causal=True)
    (slope,) = torch.autograd.grad((expected * rows.detach()).sum(), rows)
    rest = *places, None, True, None, 20**-0.5
    out, logsums = _forward(x, x, x, rest, keep=True)
    assert logsums is not None
    slopes = torch.stack(_backward(x, x, x, x, out, logsums, rest)).sum(0)
    pairs = (out, expected), (slopes, slope)
    return all(torch.allclose(a, b.transpose(1, 2).reshape(x.shape), atol=1e-4) for a, b in pairs)


def _starts(lengths: Sequence[int]) -> Tensor:
    ends = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor(lengths, dtype=torch.int64), 0, out=ends[1:])
    return ends


def _suits(*tensors: Tensor) -> bool:
    """Plain float32 in memory, where nothing casts."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and not torch.is_autocast_enabled(
        "cpu"
    )


def _dense(x: Tensor) -> Tensor:
    """[T, H, C] whose heads stand beside each other in each token."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _run(plan: Plan, **tensors: Tensor | None) -> None:
    start, key_start, prefix, causal, window, scale = plan
    places = start, key_start, prefix
    found = _library()
    assert found is not None
    query, key = tensors["query"], tensors["key"]
    assert query is not None and key is not None
    numbers = (
        len(places[0]) - 1,
        query.shape[1],
        key.shape[1],
        query.shape[2],
        int(causal),
        window or 0,
        int("grad" in tensors),
    )
    work = _Attention(
        **{name: pointer(x) for name, x in (*tensors.items(), *zip(_PLACES, places, strict=True))},
        **{
            f"{name}_step": x.stride(0)
            for name in ("query", "key", "value", "grad")
            if (x := tensors.get(name)) is not None
        },
        **dict(zip(_NUMBERS, numbers, strict=True)),
        scale=scale,
    )
    if found.trivium_attention(ctypes.addressof(work), torch.get_num_threads()):
        raise MemoryError("no memory for the copies of keys and values of attention")


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """The result, and the log-sums [T, H] for the derivative where they are to be kept."""
    query, key, value = map(_dense, (query, key, value))
    out = query.new_empty(query.shape)
    logsums = query.new_empty(query.shape[:2]) if keep else None
    _run(plan, query=query, key=key, value=value, out=out, logsums=logsums)
    return out, logsums


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsums: Tensor,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grad, query, key, value = map(_dense, (grad, query, key, value))
    made = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    inputs = {"query": query, "key": key, "value": value, "grad": grad, "out": out, "logsums": logsums}
    results = dict(zip(("to_query", "to_key", "to_value"), made, strict=True))
    _run(plan, **inputs, **results)
    return made


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        out, logsums = _forward(query, key, value, rest, keep=True)
        ctx.save_for_backward(query, key, value, out, logsums)
        ctx.rest = rest
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsums = ctx.saved_tensors
        return *_backward(upstream[0], query, key, value, out, logsums, ctx.rest), *(None,) * len(ctx.rest)


@torch.library.custom_op("trivium::native_attention", mutates_args=())
def _traced(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    key_start: Tensor,
    prefix: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same as one operator, for torch.compile: the lengths are a tensor, read when it runs."""
    out, logsums = _forward(query, key, value, (start, key_start, prefix, causal, window, scale), keep=True)
    assert logsums is not None
    return out, logsums


@torch.library.custom_op("trivium::native_attention_backward", mutates_args=())
def _traced_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsums: Tensor,
    start: Tensor,
    key_start: Tensor,
    prefix: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, query, key, value, out, logsums, (start, key_start, prefix, causal, window, scale))


@_traced.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2])


@_traced_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, start, key_start, prefix, *ctx.pattern = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, start, key_start, prefix)


def _derive(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_traced_backward(grad, *ctx.saved_tensors, *ctx.pattern), *(None,) * 6


_traced.register_autograd(_derive, setup_context=_keep)
