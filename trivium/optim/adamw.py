"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- w - lr * (m^ / (sqrt(v^) + eps) + weight_decay * w)        (^ = bias-corrected)

Runs torch's fused kernel where there is one (CPU and CUDA); biases and norm weights are not decayed.
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


class AdamW:
    """Builds torch's AdamW with decay groups."""

    class Config(StrictModel):
        """Settings of AdamW; the learning rate is `train.lr`."""

        beta1: float = Field(0.9, ge=0, lt=1)
        """Decay of the mean of the gradient."""
        beta2: float = Field(0.95, ge=0, lt=1)
        """Decay of the mean of the squared gradient."""
        eps: float = Field(1e-8, gt=0)
        """Added to the denominator."""
        weight_decay: float = Field(0.1, ge=0)
        """Decoupled decay of matrices and embeddings."""
        amsgrad: bool = False
        """Divide by the largest mean of the squared gradient so far (Reddi et al. 2018, arXiv 1904.09237)."""
        fused: bool = True
        """One kernel for the whole update where torch has it; otherwise torch's loop over tensors."""

    def __init__(self, config: AdamW.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return each * (3 if self.config.amsgrad else 2)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        config = self.config
        groups = decay_groups(named, config.weight_decay)
        return without_compiler(torch.optim.AdamW)(
            groups,
            lr=lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            amsgrad=config.amsgrad,
            fused=config.fused and fusible(groups),
        )
