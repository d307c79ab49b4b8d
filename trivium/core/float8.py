"""FP8: matrix products of the blocks in eight bits (Micikevicius et al. 2022, arXiv:2209.05433).

In a linear layer, what goes forwards (inputs, weights) is rounded to e4m3 and what comes back (gradients) to e5m2, and
a product of two such matrices is summed up in float32. Each matrix has one scale, found anew each time, that puts its
largest number at the end of the type's range (dynamic tensorwise scaling). All else is as in bf16: autocast, with
weights and their gradients in float32.

torchao does it (`convert_to_float8_training`). Here it is decided which layers it may have, and they are kept from
meeting what they cannot do. Parameters stay the same objects under the same names, so nothing that is stored changes.

A scale is one of a whole micro-batch, so unlike in the other precisions the rounding of a token depends on the others.

Shapes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.errors import ConfigError
from trivium.models import kernels
from trivium.models.layers import Linear

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

EMULATE = "TRIVIUM_FP8_EMULATE"
"""Set to 1, this variable of the environment lets processors without FP8 round to it and multiply in float32."""
MULTIPLE = 16
"""What every dimension of a product must divide by, but the rows of its first matrix."""
CAPABILITY = (8, 9)
"""Of the first GPUs with FP8 (Ada; then Hopper, Blackwell)."""

OUTSIDE = "outside the blocks"
EXPERTS = "in a mixture of experts, whose routers are sensitive and whose experts may get no tokens"
CHANGED = "changed by an adapter, or quantised"
SIZES = f"of sizes that are no multiples of {MULTIPLE}"


@dataclass(frozen=True)
class Float8Layers:
    """Linear layers by name: those in FP8, and those left in bf16 with the reason."""

    float8: tuple[str, ...]
    bf16: dict[str, str]
    emulated: bool

    @property
    def words(self) -> str:
        """One line for people."""
        reasons = Counter(self.bf16.values())
        left = "".join(f", {count} {reason}" for reason, count in reasons.items())
        how = "emulated in float32, which is slow; " if self.emulated else ""
        total = len(self.float8) + len(self.bf16)
        return (
            f"{how}{len(self.float8)} of {total} linear layers multiply in FP8 (e4m3, gradients e5m2); "
            f"in bf16 stay: embeddings{left}"
        )


def has_float8(device: torch.device) -> bool:
    """Whether the device multiplies in FP8 (on AMD's GPUs, which have other types, it is not proven)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def emulates_float8(device: torch.device) -> bool:
    """Whether the device imitates FP8, because the environment asks for it."""
    return device.type in ("cpu", "cuda") and os.environ.get(EMULATE) == "1" and not has_float8(device)


def refuse_without_float8(device: torch.device) -> None:
    """ConfigError where there is no FP8, and nobody asked for an imitation."""
    if has_float8(device) or emulates_float8(device):
        return
    what = "this GPU" if device.type == "cuda" else f"the device {device.type}"
    raise ConfigError(
        f"{what} has no FP8 arithmetic (it needs an NVIDIA GPU of compute capability 8.9: Ada, Hopper, Blackwell)",
        where="train.precision",
        value="fp8",
        fix=f"set train.precision=bf16; {EMULATE}=1 in the environment imitates FP8, slowly, to try it out",
    )


def to_float8(model: Transformer, device: torch.device, *, trains: bool = True) -> Float8Layers:
    """Gives the layers that suit to torchao, in place; before the model is sharded.

    trains: a model that trains is refused if nothing in it suits, or if adapters or quantised layers belong to it.
    """
    if trains:
        refuse_changed(model)
    left = reasons_against(model)
    found = Float8Layers(
        float8=tuple(name for name, reason in left.items() if reason is None),
        bf16={name: reason for name, reason in left.items() if reason is not None},
        emulated=emulates_float8(device),
    )
    if trains and not found.float8:
        refuse(f"none of the {len(left)} linear layers can multiply in FP8: {' / '.join(set(found.bf16.values()))}")
    with _without_warnings():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    wanted = set(found.float8)
    convert_to_float8_training(
        model,
        module_filter_fn=lambda _, name: name in wanted,
        config=Float8LinearConfig(emulate=found.emulated),
    )
    for name in found.float8:
        _guard(model.get_submodule(name))
    return found


def refuse_changed(model: Transformer) -> None:
    """ConfigError for a model whose layers are no plain ones, also if its folder made them so."""
    changed = [transform for transform in model.transforms if transform.adapter or transform.changes_base]
    if changed:
        refuse(f"FP8 is not made for layers that {type(changed[0]).__name__} changes")


def refuse(problem: str) -> None:
    """ConfigError about the precision."""
    raise ConfigError(problem, where="train.precision", value="fp8", fix="set train.precision=bf16")


def reasons_against(model: Transformer) -> dict[str, str | None]:
    """Linear layer by name -> why it stays in bf16; None if it need not."""
    inside = {part for block in model.all_blocks for part in block.modules()}
    experts = {part for block in model.all_blocks if block.moe is not None for part in block.moe.modules()}

    def reason(layer: nn.Linear) -> str | None:
        if layer not in inside:
            return OUTSIDE
        if layer in experts:
            return EXPERTS
        if type(layer) is not Linear:
            return CHANGED
        return SIZES if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE else None

    return {name: reason(layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def _guard(layer: nn.Module) -> None:
    """Lets the layer of torchao run under autocast only, for any number of tokens.

    Without autocast, as when text is generated, it is the plain layer. torchao looks at the autocast of GPUs alone, so
    the input is cast here. The gradient of the weight sums over tokens, whose number must divide by 16 too: rows of
    zeros add nothing to it. A tensor without numbers has no largest one.
    """
    in_float8 = layer.forward

    def forward(x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        tokens = x.shape[0]
        if not torch.is_autocast_enabled(x.device.type) or not tokens:
            return kernels.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
        x = x.to(torch.get_autocast_dtype(x.device.type))
        if tokens % MULTIPLE:
            x = F.pad(x, (0, 0, 0, -tokens % MULTIPLE))
        y: Tensor = in_float8(x)
        return y[:tokens] if tokens % MULTIPLE else y

    layer.forward = forward


@contextmanager
def _without_warnings() -> Iterator[None]:
    """torchao says of each library for GPUs that it cannot be loaded where there is none; none is needed here."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
