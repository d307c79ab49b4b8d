"""Embeddings: vectors of texts that lie close where the texts belong together.

    ranking  - sum_i log exp(s(a_i, p_i) / t) / sum_c exp(s(a_i, c) / t)  / pairs     c: all positives and negatives
    cosent   log(1 + sum over pairs i, j with score i > score j of exp((s_j - s_i) / t))
    cosine   sum_i (s(a_i, p_i) - score_i)^2 / pairs

s is the cosine (or the product) of two vectors. Rows with a score use `cosent`, all others `ranking`; a text alone is
its own positive, read twice under different dropout (SimCSE). All texts of the update are compared, whatever its
micro-batches and ranks. With `matryoshka` the same loss is added for the first numbers of each vector. Unit: pairs.
Roles: the policy. What is left is a folder that sentence-transformers loads. Not: texts with labels
(`supervised_contrastive`).

Ranking: Henderson et al. 2017 (arXiv 1705.00652), van den Oord et al. 2018 (arXiv 1807.03748); SimCSE: Gao et al. 2021
(arXiv 2104.08821); Matryoshka: Kusupati et al. 2022 (arXiv 2205.13147); cached gradients: Gao et al. 2021
(arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.core.terms import Term, Terms
from trivium.core.vectors import VectorMethod, dense_layer, fingerprints, places, refuse_no_dropout, twice
from trivium.data.batch import Batch
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.losses import contrastive
from trivium.losses.labels import full_precision
from trivium.models.sentences import PASSAGE, QUERY, Dense, Sentences, take_dense

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.core.method import Context
    from trivium.data.dataset import Dataset
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer


class Embedding(VectorMethod):
    """Vectors from pairs, triplets, scored pairs or texts alone."""

    class Config(StrictModel):
        """Settings of embeddings; `train.batch_size` is how many pairs are compared."""

        objective: Literal["auto", "ranking", "cosent", "cosine"] = "auto"
        """What is optimised; auto: `cosent` for rows with a score, `ranking` for all others."""
        similarity: Literal["cosine", "dot"] = "cosine"
        """What compares two vectors."""
        temperature: float = Field(0.05, gt=0)
        """What similarities are divided by (1 / scale)."""
        symmetric: bool = False
        """Ranking also of the anchors for each positive; the mean of both counts."""
        false_negative_margin: float | None = Field(None, ge=0)
        """Candidates more like the anchor than its positive by more than this do not count; default: all count."""
        keep_duplicates: bool = False
        """Let candidates count as negatives that have the same text as the positive, or belong to the same anchor."""
        pooling: Literal["auto", "first", "last", "mean", "max"] = "auto"
        """Which hidden state stands for the text; auto: as in the folder, else the last of decoders, the mean."""
        dense: Literal["auto", "none", "linear", "tanh", "relu", "gelu"] = "auto"
        """A layer with this activation behind the pooling; auto: as in the folder, else none."""
        dense_size: int | None = Field(None, ge=1, le=1 << 16)
        """Width of that layer; default: that of the model."""
        keep_dense: bool = True
        """Whether the layer is part of the finished folder; SimCSE without labels drops it."""
        normalize: bool | None = None
        """Whether the vectors of the finished folder have length 1; default: where the cosine compares them."""
        matryoshka: list[int] = Field(default_factory=list)
        """Lengths to which vectors shall be cut; the whole is always trained."""
        matryoshka_weights: list[float] = Field(default_factory=list)
        """Weights of these lengths beside the whole, whose weight is 1; default: 1 each."""
        dropout: float | None = Field(None, ge=0, lt=1)
        """Dropout of all layers in this training; default: that of the model."""

        @model_validator(mode="after")
        def _what_belongs_together(self) -> Embedding.Config:
            if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
                raise ConfigError(
                    "method.matryoshka_weights has not one weight for each length of method.matryoshka",
                    value=f"{len(self.matryoshka_weights)} weights, {len(self.matryoshka)} lengths",
                    fix="give as many as there are lengths, or none",
                )
            if min([1, *self.matryoshka]) < 1 or min([1.0, *self.matryoshka_weights]) <= 0:
                raise ConfigError("lengths and weights of method.matryoshka must be above 0", value=self.matryoshka)
            return self

    config: Config
    data_kind = "similar"

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """Settles the dense layer, and refuses lengths that are none."""
        super().check(recipe, tokenizer, model)
        self.activation, self.size = dense_layer(self.start, self.config.dense, self.config.dense_size)
        if self.activation == "none" and (self.config.dense_size or not self.config.keep_dense):
            raise ConfigError(
                "there is no dense layer, so method.dense_size and keep_dense have no effect",
                where="method.dense",
                value=self.config.dense,
                fix="set method.dense=linear, or delete them",
            )
        whole = model.hidden_size if self.activation == "none" else self.size or model.hidden_size
        for length in self.config.matryoshka:
            if length >= whole:
                raise ConfigError(
                    f"the vectors have {whole} numbers, so they are not cut to this length",
                    where="method.matryoshka",
                    value=length,
                    fix="name shorter ones; the whole is always trained",
                )

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """A vector; and what the rows allow is settled here."""
        counts = data.fields["texts"]
        scored, self.alone = "score" in data.fields, bool(counts.min() == 1)
        self.objective = self.config.objective
        if self.objective == "auto":
            self.objective = "cosent" if scored else "ranking"
        if self.alone != bool(counts.max() == 1) or (self.objective != "ranking") != scored:
            raise ConfigError(
                f"the objective {self.objective} does not fit the rows",
                where="method.objective",
                value=f"{int(counts.min())} to {int(counts.max())} texts a row, {'with' if scored else 'no'} scores",
                fix="scored pairs are for cosent and cosine, other rows for ranking; texts alone do not mix with pairs",
            )
        if self.objective == "cosine" and float(abs(data.fields["score"]).max()) > 1:
            raise ConfigError(
                "the cosine of two vectors lies between -1 and 1, scores lie outside",
                where="data.similar.score_max",
                value=float(data.fields["score"].max()),
                fix="divide them by the largest: data.similar.score_max=5",
            )
        self.refuse_without_effect()
        return {
            "head": "embedding",
            "labels": (),
            "problem": "single_label",
            "pooling": self.pooling,
            "head_dense": self.activation,
            "head_size": self.size,
            "head_projection": 0,
            "head_bias": True,
            "head_dropout": 0.0,
        }

    def refuse_without_effect(self) -> None:
        """Settings of ranking beside another objective."""
        ranked = ("symmetric", "false_negative_margin", "keep_duplicates")
        changed = [
            name for name in ranked if getattr(self.config, name) != type(self.config).model_fields[name].default
        ]
        useless = changed if self.objective != "ranking" else []
        if self.objective == "cosine" and self.config.temperature != 0.05:
            useless.append("temperature")
        if useless:
            raise ConfigError(f"method.{useless[0]} has no effect: the objective is {self.objective}", fix="delete it")

    def bind(self, context: Context) -> None:
        """Goes on with the dense layer of the folder, and refuses two readings without any difference."""
        super().bind(context)
        module, settings = self.policy.module, context.recipe.data.similar
        take_dense(module, self.start)
        if self.alone:
            refuse_no_dropout(module.config, self.config.dropout)
        if settings.passage_prefix and (self.alone or self.objective != "ranking"):
            raise ConfigError(
                "there are no passages: both texts of a row are alike",
                where="data.similar.passage_prefix",
                value=settings.passage_prefix,
                fix="delete this line; query_prefix stands before both",
            )

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Pairs, and tokens as often as they are read; padding belongs to no sample and does not count."""
        tokens = sum(batch.layout.lengths[: len(places(batch))]) * (2 if self.alone else 1)
        return {"pairs": float(len(batch.sample_ids)), "tokens": float(tokens)}

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """For each text: its vector [n, E], its place in its row [n], which text it is [n], and the score [n]."""
        place = places(batch)
        score = batch.fields.get("score", batch.fields["texts"])[: len(place)]
        text = fingerprints(batch)[: len(place)]
        read = batch
        if self.alone:
            read, score, text = twice(batch, len(place)), score.repeat(2), text.repeat(2)
            place = [*place, *(1 for _ in place)]
        vectors = self.policy(read, lambda hidden, head: head(hidden, read.layout))
        vectors = full_precision(vectors)[: len(place)]
        where = torch.tensor(place, dtype=torch.int64, device=vectors.device)
        return {"vectors": vectors, "place": where, "text": text, "score": score.to(vectors.dtype)}

    def joint(self, parts: Mapping[str, Tensor]) -> Terms:
        """The loss of whole vectors, and of their first numbers."""
        sides = [parts["place"] == 0, parts["place"] == 1, parts["place"] > 1]
        known = contrastive.known_pairs(*(parts["text"][side] for side in sides))
        terms: Terms = {}
        for size, weight in self.lengths(parts["vectors"].shape[1]):
            anchors, positives, negatives = (parts["vectors"][side][:, :size] for side in sides)
            suffix = "" if size == parts["vectors"].shape[1] else f"@{size}"
            if self.objective == "ranking":
                loss, right = self.ranking(anchors, torch.cat([positives, negatives]), known)
                terms[f"accuracy{suffix}"] = Term(right, unit="pairs", coefficient=0.0)
            else:
                loss = self.scored(anchors, positives, parts["score"][sides[0]])
            terms[f"{self.objective}{suffix}"] = Term(loss, unit="pairs", coefficient=weight)
        return terms

    def lengths(self, whole: int) -> Iterator[tuple[int, float]]:
        """(numbers of a vector that are compared, weight of their loss)."""
        yield whole, 1.0
        given = self.config.matryoshka
        yield from zip(given, self.config.matryoshka_weights or [1.0] * len(given), strict=True)

    def ranking(self, anchors: Tensor, candidates: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """(summed loss, how many anchors are most like their positive)."""
        similarity = contrastive.similarities(anchors, candidates, self.config.similarity)
        ignored = torch.zeros_like(known) if self.config.keep_duplicates else known
        if self.config.false_negative_margin is not None:
            ignored = ignored | contrastive.false_negatives(similarity, self.config.false_negative_margin)
        loss = contrastive.ranking(similarity / self.config.temperature, ignored, symmetric=self.config.symmetric)
        return loss.sum(), contrastive.found(similarity, ignored).sum()

    def scored(self, anchors: Tensor, positives: Tensor, score: Tensor) -> Tensor:
        """The summed loss of pairs with a score; `order` gives one number for all of them."""
        similarity = contrastive.of_pairs(anchors, positives, self.config.similarity)
        if self.objective == "cosine":
            return (similarity - score).square().sum()
        return contrastive.order(similarity, score, temperature=self.config.temperature) * len(score)

    def layout(self, weights: Mapping[str, Tensor]) -> Sentences:
        """Pooling, the dense layer if it is kept, and the prefixes of the data."""
        settings = self.context.recipe.data.similar
        given = {QUERY: settings.query_prefix, PASSAGE: settings.passage_prefix}
        found = super().layout(weights)
        dense = self.activation != "none" and self.config.keep_dense
        layer = Dense(weights["head.dense.weight"], weights["head.dense.bias"], self.activation) if dense else None
        return replace(
            found,
            dense=(layer,) if layer else (),
            normalize=self.config.similarity == "cosine" if self.config.normalize is None else self.config.normalize,
            prompts={**found.prompts, **{name: text for name, text in given.items() if text}},
            similarity=self.config.similarity,
            dimensions=tuple(sorted(self.config.matryoshka, reverse=True)),
        )
