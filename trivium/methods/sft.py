"""Supervised fine-tuning: predict the answer tokens of instruction data.

    loss = - sum over answer tokens of log p(x_t | x_<t) / number of answer tokens

Which tokens are answers comes from the spans of the chat template (the assistant's content and its end token) or from
the `completion` field. Unit: trained tokens. Roles: the policy.
Not: preference learning.

Wei et al. 2022 (arXiv 2109.01652); NEFTune noise: Jain et al. 2023 (arXiv 2310.05914).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class SupervisedFineTuning(Method):
    """Next-token prediction on the answers of instruction data."""

    class Config(StrictModel):
        """Settings of supervised fine-tuning."""

        neftune_alpha: float = Field(0.0, ge=0)
        """Noise added to the input embeddings while training, uniform with norm alpha / sqrt(tokens * width)."""

    config: Config
    data_kind = "instructions"
    model_kinds = ("decoder",)

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of every answer token."""
        nll = self.policy(
            batch,
            lambda hidden, head: losses.token_loss(hidden, head, batch.targets),
            offset=self.noise(batch),
            only_targets=True,
        )
        return {"nll": Term(nll, unit="tokens")}

    def noise(self, batch: Batch) -> Tensor | None:
        """[T, D] NEFTune noise, scaled by the length of each token's own sequence; None when off or validating."""
        module = self.policy.module
        if not self.config.neftune_alpha or not module.training:
            return None
        width = module.config.hidden_size
        device = batch.input_ids.device
        lengths = torch.tensor(batch.layout.lengths, device=device)[batch.layout.sequence_ids(device)]
        magnitude = self.config.neftune_alpha / (lengths * width).sqrt()
        return (torch.rand(batch.tokens, width, device=device) * 2 - 1) * magnitude[:, None]
