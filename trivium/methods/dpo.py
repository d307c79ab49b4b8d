"""Direct preference optimisation: raise the chosen answer over the rejected one, relative to a frozen reference.

    loss = - log sigmoid(beta * [(log p(c) - log r(c)) - (log p(j) - log r(j))])      (c chosen, j rejected)

p is the policy, r the reference: the policy as it was at the start. Unit: pairs. Data: two sequences for each sample,
chosen then rejected, always in the same micro-batch; only answer tokens count. Label smoothing is the conservative
variant. Not: a reward model, nor methods without a reference.

Rafailov et al. 2023 (arXiv 2305.18290).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method, Role, RoleModel
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class DirectPreferenceOptimisation(Method):
    """The DPO loss on pairs."""

    class Config(StrictModel):
        """Settings of DPO."""

        beta: float = Field(0.1, gt=0)
        """Strength of the pull towards the reference."""
        label_smoothing: float = Field(0.0, ge=0, lt=0.5)
        """Assumed share of pairs whose preference is the wrong way round."""
        reference: str | None = None
        """Model folder of the reference; default: the model that training starts from."""

    config: Config
    data_kind = "preferences"
    model_kinds = ("decoder",)

    def roles(self) -> dict[str, Role]:
        """The policy and its frozen reference."""
        return {"policy": Role(), "reference": Role(trainable=False, path=self.config.reference)}

    def prepare(self, batch: Batch) -> Batch:
        """Adds the reference log-probability of each sequence, [S]."""
        return batch.with_fields(reference=sequence_logprobs(self.context.roles["reference"], batch))

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Pairs and trained tokens; the padding sequence of a static batch is no pair."""
        return {"pairs": float(len(batch.sample_ids)), "tokens": float(batch.trained_tokens())}

    def loss(self, batch: Batch) -> Terms:
        """The preference loss, with accuracy and margin reported beside it."""
        pairs = len(batch.sample_ids)
        rewards = self.config.beta * (sequence_logprobs(self.policy, batch) - batch.fields["reference"])
        margin = rewards[0 : 2 * pairs : 2] - rewards[1 : 2 * pairs : 2]
        smoothing = self.config.label_smoothing
        logsigmoid = torch.nn.functional.logsigmoid
        preference = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
        return {
            "preference": Term(preference.sum(), unit="pairs"),
            "accuracy": Term((margin > 0).to(margin.dtype).sum(), unit="pairs", coefficient=0.0),
            "margin": Term(margin.detach().sum(), unit="pairs", coefficient=0.0),
        }


def sequence_logprobs(role: RoleModel, batch: Batch) -> Tensor:
    """[S] summed log-probability of the targets of each sequence."""
    logprobs: Tensor = role(
        batch, lambda hidden, head: losses.token_logprobs(hidden, head, batch.targets), only_targets=True
    )
    return batch.layout.sum(logprobs)
