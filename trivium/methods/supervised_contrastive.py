"""Supervised contrastive learning: vectors of texts with one label come close, all others part.

    contrast  = - sum_i 1/|P(i)| sum_{p in P(i)} log exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)  / texts
    joint       (1 - weight) * cross-entropy of a classifier on the same hidden state + weight * contrast

z are vectors of length 1 from a projection head that is dropped afterwards; P(i) are the other texts of the update with
the label of text i. All texts of the update are compared, whatever its micro-batches and ranks. Unit: texts. Roles: the
policy. What is left is a folder of vectors; with `classifier` it also scores the labels. Not: pairs of texts
(`embedding`).

Khosla et al. 2020 (arXiv 2004.11362); joint: Gunel et al. 2021 (arXiv 2011.01403); weights of hard negatives:
Robinson et al. 2021 (arXiv 2010.04592); a classifier afterwards on few rows: Tunstall et al. 2022 (arXiv 2209.11055).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.core.terms import Term, Terms
from trivium.core.vectors import VectorMethod, refuse_no_dropout, twice
from trivium.data.batch import Batch
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.losses import contrastive
from trivium.losses.labels import full_precision, with_segments
from trivium.losses.logistic import fit_logistic

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.core.method import Context
    from trivium.data.dataset import Dataset
    from trivium.data.labelled import LabelledDataset
    from trivium.models.config import ModelConfig
    from trivium.models.sentences import Sentences
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer


class SupervisedContrastive(VectorMethod):
    """Vectors that tell labels apart, and a classifier on them if one is wanted."""

    class Config(StrictModel):
        """Settings of supervised contrastive learning; `train.batch_size` is how many texts are compared."""

        temperature: float = Field(0.1, gt=0)
        """What similarities are divided by; smaller looks at the nearest texts only."""
        hardness: float = Field(0.0, ge=0)
        """How much more negatives count that are alike; 0: all count the same."""
        views: Literal[1, 2] = 1
        """How often each text of an update is read, each time under other dropout."""
        projection: int = Field(128, ge=0, le=1 << 16)
        """Width of the projection that is compared in training and dropped afterwards; 0: what is kept is compared."""
        classifier: Literal["none", "joint", "logistic"] = "none"
        """A head for the labels: none, trained together, or fitted to the finished vectors of the training data."""
        weight: float = Field(0.5, gt=0, lt=1)
        """Of `joint`: the share of the contrastive loss, the rest is cross-entropy."""
        penalty: float = Field(1.0, gt=0)
        """Of `logistic`: strength of the penalty on its weights."""
        pooling: Literal["auto", "first", "last", "mean", "max"] = "auto"
        """Which hidden state stands for the text; auto: as in the folder, else the last of decoders, the mean."""
        normalize: bool = True
        """Whether the vectors of the finished folder have length 1."""
        dropout: float | None = Field(None, ge=0, lt=1)
        """Dropout of all layers in this training; default: that of the model."""

        @model_validator(mode="after")
        def _what_belongs_together(self) -> SupervisedContrastive.Config:
            for owner, name in (("joint", "weight"), ("logistic", "penalty")):
                if name in self.model_fields_set and self.classifier != owner:
                    default = type(self).model_fields[name].default
                    if getattr(self, name) != default:
                        raise ConfigError(
                            f"method.{name} has no effect: the classifier is {self.classifier}",
                            fix=f"set method.classifier={owner}, or delete method.{name}",
                        )
            return self

    config: Config
    data_kind = "labels"

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """Refuses a classifier that no rank could fit."""
        super().check(recipe, tokenizer, model)
        if self.config.classifier == "logistic" and recipe.engine.name in ("fsdp2", "tensor"):
            raise ConfigError(
                f"the classifier is fitted by one process, and under {recipe.engine.name} none has the whole model",
                where="method.classifier",
                value="logistic",
                fix="set engine.name=ddp or single, or method.classifier=joint",
            )

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """A vector with a projection, and scores where they are trained together."""
        data = cast("LabelledDataset", data)
        if data.problem != "single_label":
            raise ConfigError(
                "texts are compared by one label each",
                where="data.labels",
                value=data.problem,
                fix="set data.labels.problem=single_label, or use the method classification",
            )
        self.data, self.labels = data, data.labels
        return {
            "head": "embedding",
            "labels": data.labels if self.config.classifier == "joint" else (),
            "problem": "single_label",
            "pooling": self.pooling,
            "head_dense": "relu" if self.config.projection else "none",
            "head_size": None,
            "head_projection": self.config.projection,
            "head_bias": True,
            "head_dropout": 0.1 if self.config.dropout is None else self.config.dropout,
        }

    def bind(self, context: Context) -> None:
        """Refuses two readings without any difference."""
        super().bind(context)
        if self.config.views == 2:
            refuse_no_dropout(self.policy.module.config, self.config.dropout)

    def prepare(self, batch: Batch) -> Batch:
        """Tells the two texts of a pair apart, where the model can."""
        return with_segments(batch, self.policy.module.config.token_types)

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Texts, as often as they are read, and their tokens; padding belongs to no sample and does not count."""
        number, views = len(batch.sample_ids), self.config.views
        tokens = views * sum(batch.layout.lengths[:number])
        return {"sequences": float(views * number), "tokens": float(tokens)}

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """For each text: what is compared [n, P], its label [n], and the scores [n, K] of `joint`."""
        number = len(batch.sample_ids)
        label = batch.fields["label"][:number].to(torch.int64).repeat(self.config.views)
        read = twice(batch, number) if self.config.views == 2 else batch
        scored = self.config.classifier == "joint"

        def then(hidden: Tensor, head: Any) -> tuple[Tensor, ...]:
            pooled = head.pooled(hidden, read.layout)
            return (head.projected(pooled), head.scores(pooled)) if scored else (head.projected(pooled),)

        found = [full_precision(each)[: len(label)] for each in self.policy(read, then)]
        return {"vectors": found[0], "label": label, **({"scores": found[1]} if scored else {})}

    def joint(self, parts: Mapping[str, Tensor]) -> Terms:
        """The contrastive loss, and cross-entropy beside it."""
        label = parts["label"]
        contrast = contrastive.supervised(
            parts["vectors"], label, temperature=self.config.temperature, hardness=self.config.hardness
        )
        if self.config.classifier != "joint":
            return {"contrast": Term(contrast.sum(), unit="sequences")}
        scores = parts["scores"]
        entropy = torch.nn.functional.cross_entropy(scores, label, reduction="sum")
        right = (scores.argmax(dim=1) == label).to(scores.dtype).sum()
        return {
            "contrast": Term(contrast.sum(), unit="sequences", coefficient=self.config.weight),
            "cross_entropy": Term(entropy, unit="sequences", coefficient=1 - self.config.weight),
            "accuracy": Term(right, unit="sequences", coefficient=0.0),
        }

    def kept(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
        """The body, and the classifier where there is one; the projection goes."""
        from trivium.models.folder import with_head

        body, kept = super().kept(config, weights)
        if self.config.classifier == "none":
            return body, kept
        names = ("weight", "bias")
        if self.config.classifier == "joint":
            scores = [weights[f"head.out.{name}"] for name in names]
        else:
            scores = list(fit_logistic(*self.features(), len(self.labels), penalty=self.config.penalty))
        head = {"head": "sequence", "labels": self.labels, "problem": "single_label", "pooling": self.pooling}
        classifier = with_head(config, {**head, "head_dense": "none", "head_bias": True, "head_dropout": 0.0})
        named = {f"head.out.{name}": value.cpu() for name, value in zip(names, scores, strict=True)}
        return classifier, {**kept, **named}

    def layout(self, weights: Mapping[str, Tensor]) -> Sentences:
        """The pooled hidden state, at length 1 if so set."""
        return replace(super().layout(weights), normalize=self.config.normalize)

    def features(self) -> tuple[Tensor, Tensor]:
        """([N, D] pooled hidden states, [N] labels) of all training data."""
        from trivium.data.loader import Loader

        length = self.context.recipe.data.sequence_length
        loader = Loader(self.data, rows=8, micro_rows=8, sequence_length=length, packing="best_fit", seed=0)
        module = self.policy.module
        training = module.training
        module.eval()
        found = []
        with torch.no_grad():
            for batch in loader.evaluation():
                batch = self.prepare(batch.to(self.context.device))
                segments = {"token_types": batch.fields["token_types"]} if "token_types" in batch.fields else {}
                pooled = module(
                    batch.input_ids,
                    batch.layout,
                    then=lambda hidden, head, layout=batch.layout: head.pooled(hidden, layout),
                    **segments,
                )
                found.append((full_precision(pooled), batch.fields["label"].to(torch.int64)))
        module.train(training)
        vectors, labels = zip(*found, strict=True)
        return torch.cat(vectors), torch.cat(labels)
