"""FreeLB: train on adversarial noise in the embeddings, with every ascent step's gradient used for the weights.

    g = mean over K ascent steps of grad_w loss(x + d_k),   d_k+1 = project(d_k + step * grad_d / |grad_d|)

The noise d is kept inside a ball around zero for each sequence. Unit: trained tokens. Roles: the policy. Needs K
forward and backward passes for one micro-batch, so it declares `backward` and cannot run in a pipeline.

Zhu et al. 2020 (arXiv 1909.11764).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Accumulate, Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch, Layout
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class FreeLB(Method):
    """Free large-batch adversarial training on next-token prediction."""

    class Config(StrictModel):
        """Settings of FreeLB."""

        ascent_steps: int = Field(3, ge=1, le=64)
        """Passes over each micro-batch, K."""
        step_size: float = Field(0.1, gt=0)
        """Length of one ascent step, for each sequence."""
        radius: float = Field(0.2, gt=0)
        """Largest norm of the noise of one sequence."""
        initial: float = Field(0.05, ge=0)
        """Norm of the random noise of the first pass."""

    config: Config
    model_kinds = ("decoder",)

    def loss(self, batch: Batch) -> Terms:
        """The loss without noise, for validation."""
        return self.noisy_loss(batch, None)

    def noisy_loss(self, batch: Batch, noise: Tensor | None) -> Terms:
        """Negative log-likelihood with `noise` [T, D] added to the embeddings."""
        nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets), offset=noise)
        return {"nll": Term(nll, unit="tokens")}

    def backward(self, batch: Batch, accumulate: Accumulate) -> Terms:
        """K passes; returns the terms of the first one, which has only random noise."""
        steps = self.config.ascent_steps
        width = self.policy.module.config.embedding_width
        device, layout = batch.input_ids.device, batch.layout
        noise = torch.randn(batch.tokens, width, device=device, dtype=self.policy.module.embed.weight.dtype)
        noise = scale_to(noise, layout, self.config.initial)
        first: Terms | None = None
        for index in range(steps):
            noise = noise.detach().requires_grad_()
            terms = self.noisy_loss(batch, noise)
            first = first or {name: Term(term.sum.detach(), term.unit) for name, term in terms.items()}
            accumulate(terms, share=1 / steps, last=index == steps - 1)
            assert noise.grad is not None
            noise = within(
                noise.detach() + scale_to(noise.grad, layout, self.config.step_size), layout, self.config.radius
            )
        assert first is not None
        return first


def sequence_norms(values: Tensor, layout: Layout) -> Tensor:
    """[T, 1] norm of the [T, D] values of each token's whole sequence."""
    squares = layout.sum(values.square().sum(dim=1))
    return squares.sqrt()[layout.sequence_ids(values.device)][:, None]


def scale_to(values: Tensor, layout: Layout, length: float) -> Tensor:
    """The same direction with norm `length` for each sequence."""
    return values * (length / sequence_norms(values, layout).clamp_min(1e-12))


def within(values: Tensor, layout: Layout, radius: float) -> Tensor:
    """Each sequence's values drawn back to a norm of at most `radius`."""
    return values * (radius / sequence_norms(values, layout).clamp_min(1e-12)).clamp_max(1.0)
