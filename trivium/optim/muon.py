"""Muon: the momentum of each hidden matrix, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    m <- momentum * m + (1 - momentum) g;  u = m, or with Nesterov's momentum momentum * m + (1 - momentum) g
    o = U V^T of u = U S V^T, about: five steps of a polynomial (Newton-Schulz) on u / |u|
    w <- w - lr * (scale * o + weight_decay * w)

scale: `rms` is 0.2 sqrt(max(rows, columns)), so that a step is as long as one of AdamW and takes its learning rate (Liu
et al. 2025, arXiv 2502.16982); `spectral` is sqrt(max(1, rows / columns)), which takes about 0.02.

Embeddings, head, biases and norm weights are no hidden matrices: AdamW moves them, with a learning rate of its own.
Under FSDP2 every rank makes the whole matrix orthogonal: exact, but no faster than one rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trivium.config import StrictModel
from trivium.lazy import torch
from trivium.optim.groups import decay_groups
from trivium.optim.stepper import make_stepper, sharded_like, whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""a, b, c of x -> a x + b x^3 + c x^5, which takes singular values to between 0.7 and 1.2."""
_HIDDEN = re.compile(r"\bblocks\.\d+\.")


class Muon:
    """The rule and its settings."""

    class Config(StrictModel):
        """Settings of Muon; the learning rate is `train.lr`."""

        momentum: float = Field(0.95, ge=0, lt=1)
        """Decay of the mean of the gradient."""
        nesterov: bool = True
        """Look ahead along the momentum."""
        newton_schulz_steps: int = Field(5, ge=1, le=20)
        """Steps of the polynomial; more come closer to orthogonal, and cost more."""
        scale: Literal["rms", "spectral"] = "rms"
        """Length of a step: that of AdamW, or that of the paper, which needs a learning rate of about 0.02."""
        arithmetic: Literal["auto", "float32", "bfloat16"] = "auto"
        """Of the polynomial: by default bfloat16 on a GPU, and the type of the weights on a CPU."""
        weight_decay: float = Field(0.1, ge=0)
        """Decoupled decay of matrices and embeddings."""
        adamw_lr: float | None = Field(None, gt=0)
        """Peak learning rate of what AdamW moves; default: `train.lr`."""
        beta1: float = Field(0.9, ge=0, lt=1)
        """Of AdamW: decay of the mean of the gradient."""
        beta2: float = Field(0.95, ge=0, lt=1)
        """Of AdamW: decay of the mean of the squared gradient."""
        eps: float = Field(1e-8, gt=0)
        """Of AdamW: added to the denominator."""

    def __init__(self, config: Muon.Config) -> None:
        self.config = config

    def state_bytes(self, each: int, hidden: float) -> float:
        """Bytes of state for each parameter; `hidden` is the share of hidden matrices."""
        return each * (2 - hidden)

    def build(self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float) -> Optimizer:
        """The optimiser for these named parameters."""
        named = list(named)
        hidden = [one for one in named if one[1].ndim >= 2 and _HIDDEN.search(one[0])]
        rest = [one for one in named if one[1].ndim < 2 or not _HIDDEN.search(one[0])]
        groups = decay_groups(hidden, self.config.weight_decay)
        others = decay_groups(rest, self.config.weight_decay)
        for group in groups:
            group["hidden"] = True
        for group in others:
            group["hidden"] = False
            group["lr_factor"] = 1.0 if self.config.adamw_lr is None else self.config.adamw_lr / lr
        return make_stepper(self, groups + others, lr=lr)

    def start(self, parameter: Tensor) -> dict[str, Any]:
        """The momentum; `update` adds what AdamW needs besides."""
        return {"mean": torch.zeros_like(parameter)}

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """One step of all, of this or that kind."""
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        (self.turn if group["hidden"] else self.adamw)(parameters, gradients, states, group["lr"])

    def turn(self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], lr: float) -> None:
        """Muon's own step; matrices of one shape go through the polynomial together."""
        config = self.config
        means = [state["mean"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - config.momentum)
        moves = means
        if config.nesterov:  # a copy and a change in place: torch 2.11 cannot do both in one for sharded tensors
            moves = list(torch._foreach_mul(gradients, 1))
            torch._foreach_lerp_(moves, means, config.momentum)
        alike: dict[Any, list[int]] = {}
        for place, move in enumerate(moves):
            alike.setdefault(move.shape, []).append(place)
        for shape, places in alike.items():
            rows, columns = shape[-2:]
            stacked = torch.stack([whole(moves[place]) for place in places])
            turned = self.orthogonal(stacked.view(-1, rows, columns)).view(stacked.shape)
            scale = 0.2 * math.sqrt(max(rows, columns)) if config.scale == "rms" else math.sqrt(max(1, rows / columns))
            for place, matrix in zip(places, turned.unbind(), strict=True):
                parameter = parameters[place]
                parameter.add_(sharded_like(matrix.to(parameter.dtype), parameter), alpha=-lr * scale)

    def orthogonal(self, x: Tensor) -> Tensor:
        """[N, R, C] -> the nearest matrices with singular values of about 1."""
        config = self.config
        if config.arithmetic != "auto" or x.device.type != "cpu":
            x = x.to(torch.float32 if config.arithmetic == "float32" else torch.bfloat16)
        tall = x.shape[-2] > x.shape[-1]
        if tall:
            x = x.mT
        x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        a, b, c = POLYNOMIAL
        for _ in range(config.newton_schulz_steps):
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
        result: Tensor = x.mT if tall else x
        return result

    def adamw(self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], lr: float) -> None:
        """AdamW's step; the weights have decayed."""
        config = self.config
        for parameter, state in zip(parameters, states, strict=True):
            state.setdefault("square", torch.zeros_like(parameter))
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - config.beta1)
        torch._foreach_mul_(squares, config.beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - config.beta2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, [math.sqrt(1 - config.beta2 ** state["step"]) for state in states])
        torch._foreach_add_(below, config.eps)
        steps = torch._foreach_div(means, below)
        torch._foreach_mul_(steps, [-lr / (1 - config.beta1 ** state["step"]) for state in states])
        torch._foreach_add_(parameters, steps)
