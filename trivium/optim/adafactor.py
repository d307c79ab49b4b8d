"""Adafactor: Adam with almost no state (Shazeer & Stern 2018, arXiv 1804.04235).

    b2 = 1 - t^-decay_power
    V <- b2 V + (1 - b2) (G^2 + eps)     kept as means of rows R and columns C only:  V = R C / mean(R)
    U = G / sqrt(V);  U <- U / max(1, rms(U) / clip)
    W <- W - lr * max(scale_floor, rms(W)) * U            ("relative"; otherwise without the scale of W)

Vectors keep all of V. The relative step of the paper, min(1e-2, 1 / sqrt(t)) after a warm-up of 10 000 updates, is
`schedule: inverse_sqrt`, `lr: 1e-2`, `warmup_steps: 10000`, `min_lr_ratio: 0` with `relative: true`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.lazy import torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper, sharded_like, whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

EPS = 1e-30
"""Added to the squared gradient, as in the paper."""


class Adafactor:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of Adafactor; the learning rate is `train.lr`, of each matrix's own size if `relative`."""

        relative: bool = True
        """Steps in proportion to the root mean square of the weights: take 1e-2 for `train.lr`, not AdamW's."""
        scale_floor: float = Field(1e-3, gt=0)
        """Root mean square that weights have at least, for `relative`."""
        decay_power: float = Field(0.8, gt=0, le=1)
        """How slowly old squares are forgotten: the decay in update t is 1 - t^-power."""
        clip: float = Field(1.0, gt=0)
        """Largest root mean square of a step before it is scaled."""
        beta1: float = Field(0.0, ge=0, lt=1)
        """Decay of a mean of the steps; 0 keeps none, and saves its memory."""
        weight_decay: float = Field(0.0, ge=0)
        """Decoupled decay of matrices and embeddings."""

    def __init__(self, config: Adafactor.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter: rows and columns are about a hundredth of a matrix."""
        return each * (0.01 + (self.config.beta1 > 0))

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        return make_stepper(self, decay_groups(named, self.config.weight_decay), lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """Means of rows and columns, on every rank; of a vector, of every number."""
        if parameter.ndim >= 2:
            *rest, rows, columns = parameter.shape
            state = {"rows": parameter.new_zeros(*rest, rows), "columns": parameter.new_zeros(*rest, columns)}
            state = {name: whole(mean) for name, mean in state.items()}
        else:
            state = {"square": torch.zeros_like(parameter)}
        if self.config.beta1:
            state["mean"] = torch.zeros_like(parameter)
        return state

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of each."""
        config = self.config
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            forget = state["step"] ** -config.decay_power
            step = self.divided(gradient, state, forget)
            step = step / (rms(step) / config.clip).clamp(min=1.0)
            size = group["lr"] * (rms(parameter).clamp(min=config.scale_floor) if config.relative else 1.0)
            step = step * size
            if config.beta1:
                step = state["mean"].lerp_(step, 1 - config.beta1)
            parameter.sub_(parameter * (size * group["weight_decay"])).sub_(step)

    def divided(self, gradient: Tensor, state: dict[str, Any], forget: float) -> Tensor:
        """The gradient over the root of its mean square, laid out like the gradient."""
        if "square" in state:
            state["square"].lerp_(gradient.square() + EPS, forget)
            divided: Tensor = gradient * state["square"].rsqrt()
            return divided
        full = whole(gradient)
        square = full.square() + EPS
        rows = state["rows"].lerp_(square.mean(-1), forget)
        columns = state["columns"].lerp_(square.mean(-2), forget)
        scale = (rows / rows.mean(-1, keepdim=True)).rsqrt()
        return sharded_like(full * scale.unsqueeze(-1) * columns.rsqrt().unsqueeze(-2), gradient)


def rms(tensor: Tensor) -> Tensor:
    """The root mean square of all numbers, over all shards."""
    norm: Tensor = whole(torch.linalg.vector_norm(tensor))
    return norm / math.sqrt(tensor.numel())
