"""Schedule-free AdamW and SGD: an average of the weights instead of a falling learning rate (Defazio et al. 2024).

    y = (1 - beta) z + beta x         where the gradient is taken: the weights during training
    z <- z - lr * (d + weight_decay * y),   d = g / (sqrt(v^) + eps), or g with SGD
    x <- (1 - c) x + c z,             c = w_t / sum of all w so far,   w_t = t^r * (largest lr so far)^lr_power

x is the model: it is validated and sampled from, and it is what checkpoints and `final` hold. `train.schedule` must be
`constant`, warm-up included; learning rates are one to ten times those of the same optimiser with a schedule.
arXiv 2405.15682.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trivium.config import StrictModel
from trivium.lazy import torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper, own

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class ScheduleFree:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of the schedule-free optimisers; the learning rate is `train.lr`."""

        variant: Literal["adamw", "sgd"] = "adamw"
        """What the steps of z are."""
        beta: float = Field(0.9, gt=0, lt=1)
        """How near to the average the gradient is taken; longer runs like 0.95 or 0.98."""
        beta2: float = Field(0.999, ge=0, lt=1)
        """Of `adamw`: decay of the mean of the squared gradient."""
        eps: float = Field(1e-8, gt=0)
        """Of `adamw`: added to the denominator."""
        weight_decay: float = Field(0.1, ge=0)
        """Decay of matrices and embeddings, at y."""
        r: float = Field(0.0, ge=0)
        """Power of the update in the weights of the average; more forgets the beginning sooner."""
        lr_power: float = Field(2.0, ge=0)
        """Power of the largest learning rate in the weights of the average, so that warm-up counts little."""

    def __init__(self, config: ScheduleFree.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return each * (2 if self.config.variant == "adamw" else 1)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        return make_stepper(self, decay_groups(named, self.config.weight_decay), lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """z, which begins where the weights do."""
        state: dict[str, Any] = {"z": parameter.detach().clone(), "largest_lr": 0.0, "weight_sum": 0.0}
        if self.config.variant == "adamw":
            state["square"] = torch.zeros_like(parameter)
        return state

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of all."""
        lr, beta = group["lr"], self.config.beta
        targets = own([state["z"] for state in states])
        parameters, gradients = own(parameters), own(gradients)
        steps = self.directions(gradients, states)
        torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
        shares = [self.share(state, lr) for state in states]
        torch._foreach_lerp_(parameters, targets, shares)
        torch._foreach_add_(targets, steps, alpha=-lr)
        torch._foreach_mul_(steps, [lr * (beta * (1 - share) - 1) for share in shares])
        torch._foreach_add_(parameters, steps)

    def directions(self, gradients: list[Tensor], states: list[dict[str, Any]]) -> list[Tensor]:
        """New tensors: the gradients, divided as Adam does."""
        config = self.config
        if config.variant == "sgd":
            return [gradient.clone() for gradient in gradients]
        squares = own([state["square"] for state in states])
        torch._foreach_mul_(squares, config.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - config.beta2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [math.sqrt(1 - config.beta2 ** state["step"]) for state in states])
        torch._foreach_add_(below, config.eps)
        return list(torch._foreach_div(gradients, below))

    def share(self, state: dict[str, Any], lr: float) -> float:
        """c: what the new z counts in the average."""
        state["largest_lr"] = max(state["largest_lr"], lr)
        weight = state["step"] ** self.config.r * state["largest_lr"] ** self.config.lr_power
        state["weight_sum"] += weight
        return float(weight / state["weight_sum"]) if state["weight_sum"] else 0.0

    def average(self, parameter: Tensor, state: dict[str, Any]) -> Tensor:
        """x, from y and z."""
        return parameter.detach().lerp(state["z"], 1 - 1 / self.config.beta)
