"""Classification: labels, or numbers, of whole texts, from a head on the model.

    one label       - sum_s w(y_s) log softmax(z_s)[y_s] / sequences
    several labels  - sum_s,k w_k y log sigmoid(z) + (1 - y) log sigmoid(-z) / labels that are known
    numbers         sum_s,k (z - y)^2 / numbers

z are the scores of the head on the pooled hidden states. What the labels mean, and their names, come from the data
(`data.labels`). Units: sequences, or single labels. Roles: the policy, whose language head is replaced.
Not: labels of tokens (`token_classification`), nor labels as generated text (`sft`).

Label smoothing: Szegedy et al. 2016 (arXiv 1512.00567).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.lazy import torch
from trivium.losses.labels import class_weights, full_precision, refuse_generation, with_segments

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.core.method import Context
    from trivium.data.dataset import Dataset
    from trivium.data.labelled import LabelledDataset


class Classification(Method):
    """One label, several labels, or numbers for each text."""

    class Config(StrictModel):
        """Settings of classification."""

        pooling: Literal["auto", "first", "last", "mean", "max"] = "auto"
        """Which hidden state stands for the text; auto: the last one of decoders, else what the family has."""
        head_dense: Literal["auto", "none", "tanh", "relu", "gelu"] = "auto"
        """A dense layer with this activation before the scores; auto: as the family has it."""
        dropout: float = Field(0.1, ge=0, lt=1)
        """Before the scores, in training."""
        class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
        """`balanced`: rare labels count as much as frequent ones; or a weight for each label, 1 where none is given."""
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of the target that is spread over all labels."""

    config: Config
    data_kind = "labels"

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """Scores for the labels of the training data."""
        data = cast("LabelledDataset", data)
        self.problem, self.labels = data.problem, data.labels
        self.class_weights = class_weights(
            self.config.class_weights, data.labels, data.counts, len(data), problem=data.problem
        )
        settings = {"pooling": self.config.pooling, "head_dense": self.config.head_dense}
        chosen = {name: value for name, value in settings.items() if value != "auto"}
        return {
            "head": "sequence",
            "labels": data.labels,
            "problem": data.problem,
            "head_dropout": self.config.dropout,
            **chosen,
        }

    def bind(self, context: Context) -> None:
        """Refuses what a model without a language head cannot do."""
        super().bind(context)
        refuse_generation(context.recipe, self.policy.module.config)

    def prepare(self, batch: Batch) -> Batch:
        """Tells the two texts of a pair apart, where the model can."""
        return with_segments(batch, self.policy.module.config.token_types)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Sequences, known labels, and their tokens; padding belongs to no sample and does not count."""
        number = len(batch.sample_ids)
        label = batch.fields["label"][:number]
        return {
            "sequences": float(number),
            "labels": float((~label.isnan()).sum()),
            "tokens": float(sum(batch.layout.lengths[:number])),
        }

    def loss(self, batch: Batch) -> Terms:
        """The loss of the problem, with accuracy or absolute error beside it."""
        from trivium.models.heads import pooled_tokens

        read = pooled_tokens(batch.layout, self.policy.module.config.pooling, batch.input_ids.device)
        scores = self.policy(batch, lambda hidden, head: head(hidden, batch.layout), only=read)
        scores = full_precision(scores)[: len(batch.sample_ids)]
        target = batch.fields["label"][: len(scores)]
        if self.problem == "single_label":
            return self.one_label(scores, target.to(torch.int64))
        if self.problem == "multi_label":
            return self.several_labels(scores, target.to(scores.dtype))
        difference = scores - target.to(scores.dtype)
        return {
            "squared_error": Term(difference.square().sum(), unit="labels"),
            "absolute_error": Term(difference.detach().abs().sum(), unit="labels", coefficient=0.0),
        }

    def one_label(self, scores: Tensor, target: Tensor) -> Terms:
        """Cross-entropy of scores [S, labels] and labels [S]."""
        weight = None if self.class_weights is None else scores.new_tensor(self.class_weights)
        loss = torch.nn.functional.cross_entropy(
            scores, target, weight, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        right = (scores.argmax(dim=1) == target).to(scores.dtype).sum()
        return {
            "cross_entropy": Term(loss, unit="sequences"),
            "accuracy": Term(right, unit="sequences", coefficient=0.0),
        }

    def several_labels(self, scores: Tensor, target: Tensor) -> Terms:
        """Binary cross-entropy of scores and targets [S, labels]; a target that is NaN is not known and not trained."""
        known = ~target.isnan()
        truth = target.nan_to_num()
        smoothed = truth * (1 - self.config.label_smoothing) + self.config.label_smoothing / 2
        weight = None if self.class_weights is None else scores.new_tensor(self.class_weights)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, smoothed, pos_weight=weight, reduction="none"
        )
        right = ((scores > 0) == (truth > 0.5)) & known
        return {
            "cross_entropy": Term((losses * known).sum(), unit="labels"),
            "accuracy": Term(right.to(scores.dtype).sum(), unit="labels", coefficient=0.0),
        }
