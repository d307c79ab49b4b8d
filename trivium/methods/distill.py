"""Distillation: match the teacher's distribution over the next token, next to the data itself.

    loss = alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * NLL        per token; T = temperature

Unit: trained tokens. Roles: the student (policy) and a frozen teacher with the same vocabulary. Logits are formed for a
chunk of tokens at a time. Not: hidden-state or attention matching, cached teachers, or different tokenizers.

Hinton et al. 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Method, Role, frozen_forward
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Distillation(Method):
    """Word-level distillation from a teacher's logits."""

    class Config(StrictModel):
        """Settings of distillation."""

        teacher: str
        """Model folder of the teacher; it must share the student's tokenizer."""
        temperature: float = Field(2.0, gt=0)
        """Softens both distributions; the gradient is scaled back by its square."""
        alpha: float = Field(0.5, ge=0, le=1)
        """Share of the teacher's term; the rest is the ordinary loss."""

    config: Config
    model_kinds = ("decoder",)

    def roles(self) -> dict[str, Role]:
        """The student and its frozen teacher."""
        return {"policy": Role(), "teacher": Role(trainable=False, path=self.config.teacher)}

    def prepare(self, batch: Batch) -> Batch:
        """Adds the teacher's final hidden states [T, D_teacher]; its logits are formed chunk by chunk later."""
        hidden = frozen_forward(self.context.roles["teacher"], batch, lambda hidden, head: hidden)
        return batch.with_fields(teacher=hidden)

    def loss(self, batch: Batch) -> Terms:
        """Both terms from one forward pass of the student."""
        teacher_head = self.context.roles["teacher"].module.head

        def both(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
            divergence = losses.token_divergence(
                hidden, head, batch.fields["teacher"], teacher_head, batch.targets, self.config.temperature
            )
            return divergence, losses.token_loss(hidden, head, batch.targets)

        divergence, nll = self.policy(batch, both)
        scale = self.config.temperature**2
        return {
            "divergence": Term(divergence, unit="tokens", coefficient=self.config.alpha * scale),
            "nll": Term(nll, unit="tokens", coefficient=1 - self.config.alpha),
        }
