"""Supervised fine-tuning: predict the answer tokens of instruction data.

    loss = - sum over answer tokens of log p(x_t | x_<t) / number of answer tokens

Which tokens are answers comes from the spans of the chat template (the assistant's content and its end token) or from
the `completion` field. Where tokens count differently (`weight` of a message, `data.chat.prompt_loss_weight`), it is

    loss = - sum over tokens of w_t log p(x_t | x_<t) / sum over tokens of w_t

Unit: trained tokens, or the sum of their weights. Roles: the policy. Not: preference learning.

Reported beside it, for each trained token and without weights: nll, accuracy (the target is the likeliest token) and
the entropy of the prediction in nats.

Wei et al. 2022 (arXiv 2109.01652); NEFTune noise: Jain et al. 2023 (arXiv 2310.05914).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class SupervisedFineTuning(Method):
    """Next-token prediction on the answers of instruction data."""

    class Config(StrictModel):
        """Settings of supervised fine-tuning."""

        neftune_alpha: float = Field(0.0, ge=0)
        """Noise added to the input embeddings while training, uniform with norm alpha / sqrt(tokens * width)."""
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of the target that is spread over the whole vocabulary."""
        z_loss: float = Field(0.0, ge=0)
        """Factor of the square of the log of the softmax's denominator, which keeps logits small; 1e-4 is usual."""

    config: Config
    data_kind = "instructions"
    model_kinds = ("decoder",)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Trained tokens, and the sum of their weights where they have any."""
        counts = dict(super().weights(batch))
        if "weights" in batch.fields:
            counts["weights"] = float(batch.fields["weights"].sum(dtype=torch.float64))
        return counts

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of every answer token, and what is reported beside it."""
        weights = batch.fields.get("weights")
        smoothing, z_loss = self.config.label_smoothing, self.config.z_loss

        def compute(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
            measures = torch.zeros(3, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
            loss = losses.token_loss(
                hidden,
                head,
                batch.targets,
                weights=weights,
                label_smoothing=smoothing,
                z_loss=z_loss,
                measures=measures,
            )
            return loss, measures

        loss, (nll, correct, entropy) = self.policy(batch, compute, offset=self.noise(batch), only_targets=True)
        reported = {"accuracy": Term(correct, "tokens", 0.0), "entropy": Term(entropy, "tokens", 0.0)}
        if weights is None and not smoothing and not z_loss:
            return {"nll": Term(loss, "tokens"), **reported}
        unit = "tokens" if weights is None else "weights"
        return {"objective": Term(loss, unit), "nll": Term(nll, "tokens", 0.0), **reported}

    def noise(self, batch: Batch) -> Tensor | None:
        """[T, D] NEFTune noise, scaled by the length of each token's own sequence; None when off or validating."""
        module = self.policy.module
        if not self.config.neftune_alpha or not module.training:
            return None
        width = module.config.embedding_width
        device = batch.input_ids.device
        lengths = torch.tensor(batch.layout.lengths, device=device)[batch.layout.sequence_ids(device)]
        magnitude = self.config.neftune_alpha / (lengths * width).sqrt()
        return (torch.rand(batch.tokens, width, device=device) * 2 - 1) * magnitude[:, None]
