"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675).

    w <- w - lr * (sign(b1 m + (1 - b1) g) + weight_decay * w)
    m <- b2 m + (1 - b2) g

Every number moves by lr, so take a third to a tenth of AdamW's learning rate and as many times its weight decay.
Half of Adam's state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.lazy import torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper, own

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class Lion:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of Lion; the learning rate is `train.lr`."""

        beta1: float = Field(0.9, ge=0, lt=1)
        """Share of the momentum in the direction of a step."""
        beta2: float = Field(0.99, ge=0, lt=1)
        """Decay of the momentum itself."""
        weight_decay: float = Field(0.3, ge=0)
        """Decoupled decay of matrices and embeddings."""

    def __init__(self, config: Lion.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return each

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        return make_stepper(self, decay_groups(named, self.config.weight_decay), lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """One momentum."""
        return {"momentum": torch.zeros_like(parameter)}

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of all."""
        momenta = own([state["momentum"] for state in states])
        parameters, gradients = own(parameters), own(gradients)
        signs = torch._foreach_lerp(momenta, gradients, 1 - self.config.beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, signs, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, gradients, 1 - self.config.beta2)
