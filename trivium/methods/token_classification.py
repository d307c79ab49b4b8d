"""Token classification: a tag for each word, from a head on every hidden state.

    loss = - sum_t w(y_t) log softmax(z_t)[y_t] / number of tagged tokens

Tagged are the first tokens of the words, or all of them (`data.labels.every_piece`). Unit: tokens, the tagged ones.
Roles: the policy, whose language head is replaced. Not: structured decoding (a CRF); tags are chosen one by one.

Label smoothing: Szegedy et al. 2016 (arXiv 1512.00567).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from trivium.config import StrictModel
from trivium.core.method import Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import IGNORE, Batch
from trivium.lazy import torch
from trivium.losses.labels import class_weights, full_precision, refuse_generation

if TYPE_CHECKING:
    from trivium.core.method import Context
    from trivium.data.dataset import Dataset
    from trivium.data.labelled import LabelledDataset


class TokenClassification(Method):
    """A tag for each word."""

    class Config(StrictModel):
        """Settings of token classification."""

        head_dense: Literal["auto", "none", "tanh", "relu", "gelu"] = "auto"
        """A dense layer with this activation before the scores; auto: as the family has it."""
        dropout: float = Field(0.1, ge=0, lt=1)
        """Before the scores, in training."""
        class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
        """`balanced`: rare tags count as much as frequent ones; or a weight for each tag, 1 where none is given."""
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of the target that is spread over all tags."""

    config: Config
    data_kind = "tokens"

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """Scores for the tags of the training data."""
        data = cast("LabelledDataset", data)
        self.outside = data.labels.index("O") if "O" in data.labels else -1
        self.class_weights = class_weights(self.config.class_weights, data.labels, data.counts, len(data))
        dense = {} if self.config.head_dense == "auto" else {"head_dense": self.config.head_dense}
        return {"head": "token", "labels": data.labels, "head_dropout": self.config.dropout, **dense}

    def bind(self, context: Context) -> None:
        """Refuses what a model without a language head cannot do."""
        super().bind(context)
        refuse_generation(context.recipe, self.policy.module.config)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Tagged tokens, and those of them that are inside of something."""
        tagged = batch.targets != IGNORE
        inside = tagged & (batch.targets != self.outside)
        return {"tokens": float(tagged.sum()), "entity_tokens": float(inside.sum())}

    def loss(self, batch: Batch) -> Terms:
        """Cross-entropy of the tags; accuracy over all of them, and over those that are not O."""
        scores = full_precision(self.policy(batch, lambda hidden, head: head(hidden)))
        weight = None if self.class_weights is None else scores.new_tensor(self.class_weights)
        loss = torch.nn.functional.cross_entropy(
            scores,
            batch.targets,
            weight,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )
        right = scores.argmax(dim=1) == batch.targets
        inside = right & (batch.targets != self.outside)
        return {
            "cross_entropy": Term(loss, unit="tokens"),
            "accuracy": Term(right.to(scores.dtype).sum(), unit="tokens", coefficient=0.0),
            "entity_accuracy": Term(inside.to(scores.dtype).sum(), unit="entity_tokens", coefficient=0.0),
        }
