"""Adam, with weight decay as part of the gradient (Kingma & Ba 2015, arXiv 1412.6980).

    g <- g + weight_decay * w
    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- w - lr * m^ / (sqrt(v^) + eps)        (^ = bias-corrected)

Not AdamW: here large gradients are decayed less. Use `adamw` unless a published setting asks for this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trivium.config import StrictModel
from trivium.lazy import torch
from trivium.optim.groups import decay_groups, fusible
from trivium.optim.stepper import without_compiler

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Adam:
    """Builds torch's Adam with decay groups."""

    class Config(StrictModel):
        """Settings of Adam; the learning rate is `train.lr`."""

        beta1: float = Field(0.9, ge=0, lt=1)
        """Decay of the mean of the gradient."""
        beta2: float = Field(0.999, ge=0, lt=1)
        """Decay of the mean of the squared gradient."""
        eps: float = Field(1e-8, gt=0)
        """Added to the denominator."""
        weight_decay: float = Field(0.0, ge=0)
        """Added to the gradient of matrices and embeddings."""
        amsgrad: bool = False
        """Divide by the largest mean of the squared gradient so far (Reddi et al. 2018, arXiv 1904.09237)."""
        fused: bool = True
        """One kernel for the whole update where torch has it; otherwise torch's loop over tensors."""

    def __init__(self, config: Adam.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return each * (3 if self.config.amsgrad else 2)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        config = self.config
        groups = decay_groups(named, config.weight_decay)
        return without_compiler(torch.optim.Adam)(
            groups,
            lr=lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            amsgrad=config.amsgrad,
            fused=config.fused and fusible(groups),
        )
