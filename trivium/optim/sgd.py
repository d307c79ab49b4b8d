"""SGD: stochastic gradient descent, with momentum (Sutskever et al. 2013, ICML).

    g <- g + weight_decay * w;  m <- momentum * m + (1 - dampening) * g        (the first m is g)
    w <- w - lr * m             or, with Nesterov's momentum, w - lr * (g + momentum * m)

Weight decay is part of the gradient here, as in torch: its pull grows with the learning rate and with momentum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.optim.groups import decay_groups, fusible
from trivium.optim.stepper import without_compiler

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class SGD:
    """Builds torch's SGD with decay groups."""

    class Config(StrictModel):
        """Settings of SGD; the learning rate is `train.lr`."""

        momentum: float = Field(0.9, ge=0, lt=1)
        """Share of the last step that is kept; 0 needs no state."""
        dampening: float = Field(0.0, ge=0, lt=1)
        """How much less than 1 a new gradient counts in the momentum."""
        nesterov: bool = False
        """Look ahead along the momentum."""
        weight_decay: float = Field(0.0, ge=0)
        """Added to the gradient of matrices and embeddings."""
        fused: bool = True
        """One kernel for the whole update where torch has it; otherwise torch's loop over tensors."""

        @model_validator(mode="after")
        def _nesterov_needs_momentum(self) -> SGD.Config:
            if self.nesterov and (not self.momentum or self.dampening):
                raise ConfigError(
                    "Nesterov's momentum needs momentum, and no dampening",
                    fix="set train.optimizer.momentum=0.9 and train.optimizer.dampening=0",
                )
            if self.dampening and not self.momentum:
                raise ConfigError("dampening has no effect without momentum", fix="set train.optimizer.momentum=0.9")
            return self

    def __init__(self, config: SGD.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter."""
        return each if self.config.momentum else 0

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        config = self.config
        groups = decay_groups(named, config.weight_decay)
        return without_compiler(torch.optim.SGD)(
            groups,
            lr=lr,
            momentum=config.momentum,
            dampening=config.dampening,
            nesterov=config.nesterov,
            fused=config.fused and fusible(groups, sharded=False),
        )
