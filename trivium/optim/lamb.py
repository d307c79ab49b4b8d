"""LAMB: Adam whose step is as long, in each matrix, as the matrix itself times lr (You et al. 2020, arXiv 1904.00962).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    r = m^ / (sqrt(v^) + eps) + weight_decay * w                       (^ = bias-corrected)
    w <- w - lr * ratio * r,    ratio = phi(|w|) / |r|,    phi(z) = min(max(z, norm_min), norm_max)

The ratio is 1 where one of the norms is 0. Made for very large batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper, whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Lamb:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of LAMB; the learning rate is `train.lr`."""

        beta1: float = Field(0.9, ge=0, lt=1)
        """Decay of the mean of the gradient."""
        beta2: float = Field(0.999, ge=0, lt=1)
        """Decay of the mean of the squared gradient."""
        eps: float = Field(1e-6, gt=0)
        """Added to the denominator."""
        weight_decay: float = Field(0.01, ge=0)
        """Decay of matrices and embeddings, inside of the trust ratio."""
        bias_correction: bool = True
        """Make up for means that begin at 0; without it, warm up the learning rate."""
        adapt_vectors: bool = False
        """Trust ratios for biases and norm weights too; otherwise they move as Adam moves them."""
        norm_min: float = Field(0.0, ge=0)
        """Norm that a matrix has at least, for the ratio."""
        norm_max: float | None = Field(None, gt=0)
        """Norm that a matrix has at most, for the ratio; 10 in the first version of the paper."""
        ratio_max: float | None = Field(None, gt=0)
        """Largest trust ratio."""

        @model_validator(mode="after")
        def _bounds_in_order(self) -> Lamb.Config:
            if self.norm_max is not None and self.norm_min > self.norm_max:
                raise ConfigError(
                    "train.optimizer.norm_min is larger than norm_max", value=self.norm_min, fix="swap them"
                )
            return self

    def __init__(self, config: Lamb.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return 2 * each

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        groups = decay_groups(named, self.config.weight_decay)
        for group in groups:
            group["adapted"] = self.config.adapt_vectors or group["params"][0].ndim >= 2
        return make_stepper(self, groups, lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """Adam's two means."""
        return {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of all."""
        config, lr = self.config, group["lr"]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - config.beta1)
        torch._foreach_mul_(squares, config.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - config.beta2)
        first, second = (self.corrections(beta, states) for beta in (config.beta1, config.beta2))
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [math.sqrt(one) for one in second])
        torch._foreach_add_(below, config.eps)
        steps = torch._foreach_div(means, below)
        torch._foreach_div_(steps, first)
        torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
        if group["adapted"]:
            for step, ratio in zip(steps, self.ratios(parameters, list(steps)), strict=True):
                step.mul_(ratio)
        torch._foreach_add_(parameters, steps, alpha=-lr)

    def corrections(self, beta: float, states: list[dict[str, Any]]) -> list[float]:
        """What the means are divided by."""
        return [1 - beta ** state["step"] if self.config.bias_correction else 1.0 for state in states]

    def ratios(self, parameters: list[Tensor], steps: list[Tensor]) -> Tensor:
        """The trust ratio of each tensor, over all of its shards."""
        config = self.config
        weights, lengths = (
            torch.stack([whole(torch.linalg.vector_norm(one)) for one in tensors]) for tensors in (parameters, steps)
        )
        ratios = weights.clamp(config.norm_min, config.norm_max) / lengths
        ratios = torch.where((weights > 0) & (lengths > 0), ratios, 1.0)
        return ratios if config.ratio_max is None else ratios.clamp(max=config.ratio_max)
