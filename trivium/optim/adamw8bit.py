"""AdamW whose two means are kept in 8 bits (Dettmers et al. 2022, arXiv 2110.02861).

The step is that of `adamw`. Between updates each 256 numbers of a mean are stored as their largest absolute value and,
for each number, the nearest of 256 shares of it: powers of ten down to 1e-6, each with twice as many values between it
and the next as the power below. Small tensors stay whole. A quarter of AdamW's state; the rounding changes little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.lazy import is_sharded, torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

BLOCK = 256
"""Numbers that share one scale."""


class AdamW8bit:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of AdamW in 8 bits; the learning rate is `train.lr`."""

        beta1: float = Field(0.9, ge=0, lt=1)
        """Decay of the mean of the gradient."""
        beta2: float = Field(0.95, ge=0, lt=1)
        """Decay of the mean of the squared gradient."""
        eps: float = Field(1e-8, gt=0)
        """Added to the denominator."""
        weight_decay: float = Field(0.1, ge=0)
        """Decoupled decay of matrices and embeddings."""
        whole_below: int = Field(4096, ge=0)
        """Tensors with fewer numbers keep their means in full."""

    def __init__(self, config: AdamW8bit.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter of a large matrix."""
        return 2 * (1 + 4 / BLOCK)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters; ConfigError if they are sharded."""
        groups = decay_groups(named, self.config.weight_decay)
        if any(is_sharded(parameter) for group in groups for parameter in group["params"]):
            raise ConfigError(
                "means in 8 bits cannot be cut into shards",
                where="train.optimizer",
                value="adamw8bit",
                fix="set engine.name=ddp, or train.optimizer=adafactor or lion, which need little state too",
            )
        return make_stepper(self, groups, lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """Means of zero, as codes and scales, or whole."""
        if parameter.numel() < self.config.whole_below:
            return {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        zero = torch.zeros_like(parameter)
        return {**packed("mean", zero, signed=True), **packed("square", zero, signed=False)}

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of each."""
        config, lr = self.config, group["lr"]
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            whole = "mean" in state
            mean = state["mean"] if whole else unpacked("mean", state, parameter, signed=True)
            square = state["square"] if whole else unpacked("square", state, parameter, signed=False)
            mean.lerp_(gradient, 1 - config.beta1)
            square.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
            if not whole:
                state.update(packed("mean", mean, signed=True) | packed("square", square, signed=False))
            below = (square / (1 - config.beta2 ** state["step"])).sqrt_().add_(config.eps)
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.addcdiv_(mean, below, value=-lr / (1 - config.beta1 ** state["step"]))


@cache
def shares(signed: bool) -> tuple[float, ...]:
    """The 256 shares of the largest value that can be stored, in order."""
    found = [0.0, 1.0]
    for power in range(7):
        count = 2 ** (power if signed else power + 1)
        values = [10.0 ** (power - 6) * (0.1 + 0.9 * (place + 0.5) / count) for place in range(count)]
        found += values + ([-value for value in values] if signed else [])
    return tuple(sorted(found))


def packed(name: str, mean: Tensor, *, signed: bool) -> dict[str, Tensor]:
    """Codes [blocks, 256] and scales [blocks, 1] of all numbers, the last block filled up with zeros."""
    flat = torch.nn.functional.pad(mean.flatten().float(), (0, -mean.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(shares(signed), device=mean.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(flat / scales.clamp(min=torch.finfo(torch.float32).tiny), between, out_int32=True)
    return {f"{name}_codes": codes.to(torch.uint8), f"{name}_scales": scales}


def unpacked(name: str, state: dict[str, Any], like: Tensor, *, signed: bool) -> Tensor:
    """The numbers of `packed`, in the shape of `like`."""
    levels = torch.tensor(shares(signed), device=like.device)
    flat = levels[state[f"{name}_codes"].int()] * state[f"{name}_scales"]
    mean: Tensor = flat.view(-1)[: math.prod(like.shape)].view(like.shape).to(like.dtype)
    return mean
