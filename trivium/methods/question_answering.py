"""Extractive question answering: where in the context the answer begins and ends.

    loss = - sum_s (log softmax_t(z_t)[begin] + log softmax_t(z'_t)[end]) / (2 * windows)

Both distributions are over the tokens of one window: the question with a piece of its context. A window without the
answer points to its first token ([CLS]), or to its last one where the tokenizer has none such. Unit: sequences, the
windows. Roles: the policy, whose language head is replaced. Not: answers that do not stand in the text (`sft`).

Devlin et al. 2019 (arXiv 1810.04805), section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.lazy import torch
from trivium.losses.labels import full_precision, log_normaliser, refuse_generation, with_segments

if TYPE_CHECKING:
    from trivium.core.method import Context
    from trivium.data.dataset import Dataset


class QuestionAnswering(Method):
    """Begin and end of the answer in a context."""

    class Config(StrictModel):
        """Settings of question answering."""

        dropout: float = Field(0.0, ge=0, lt=1)
        """Before the scores, in training."""

    config: Config
    data_kind = "questions"

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """Two scores for each token."""
        return {"head": "span", "head_dropout": self.config.dropout}

    def bind(self, context: Context) -> None:
        """Refuses what a model without a language head cannot do."""
        super().bind(context)
        refuse_generation(context.recipe, self.policy.module.config)

    def prepare(self, batch: Batch) -> Batch:
        """Tells question and context apart, where the model can."""
        return with_segments(batch, self.policy.module.config.token_types)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Windows and their tokens; padding belongs to no sample and does not count."""
        number = len(batch.sample_ids)
        return {"sequences": float(number), "tokens": float(sum(batch.layout.lengths[:number]))}

    def loss(self, batch: Batch) -> Terms:
        """Cross-entropy of both ends; how often both are right."""
        scores = full_precision(self.policy(batch, lambda hidden, head: head(hidden)))
        number, device = len(batch.sample_ids), scores.device
        starts = torch.tensor(batch.layout.starts()[:number], dtype=torch.int64, device=device)
        ends = torch.stack([batch.fields[name][:number].to(torch.int64) for name in ("start", "end")], dim=1)
        wanted = scores.gather(0, starts[:, None] + ends)
        normaliser = log_normaliser(scores, batch.layout)[:number]
        # The highest score of a sequence is found through its place: equal to it means chosen.
        highest = scores.detach().new_full((batch.layout.sequences, 2), -torch.inf)
        owners = batch.layout.sequence_ids(device)[:, None].expand_as(scores)
        highest = highest.scatter_reduce(0, owners, scores.detach(), "amax")[:number]
        right = (wanted.detach() >= highest).all(dim=1)
        return {
            "cross_entropy": Term((normaliser - wanted).sum() / 2, unit="sequences"),
            "exact": Term(right.to(scores.dtype).sum(), unit="sequences", coefficient=0.0),
        }
