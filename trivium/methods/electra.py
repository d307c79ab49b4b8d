"""Replaced-token detection: a small generator fills holes, and the model finds the tokens that are not the real ones.

    loss = - sum_t in hidden log g(x_t | x with holes) / hidden tokens
           + weight * sum_t BCE(score_t, replaced_t) / tokens

Every token teaches the model, not only the hidden 15 %. The generator learns by masked language modelling; what it
draws is data, and no gradient flows through it. A token that it happens to draw right counts as not replaced. Units:
hidden tokens, tokens. Roles: the policy (discriminator, an encoder whose head gives one score for each token), and the
generator, a narrower model with random weights or a folder; both are moved by one optimiser. The draw is a function of
numbers that come with the sample, so it does not depend on how the batch was split. Not: embeddings shared between
the two, which the paper has; they are as wide in both.

Clark et al. 2020 (arXiv 2003.10555).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Context, Method, Role
from trivium.core.terms import Term, Terms
from trivium.data.batch import IGNORE, Batch
from trivium.data.corruption.example import Example
from trivium.data.corruption.masking import Masking, mask_tokens
from trivium.data.sides import text_frame
from trivium.lazy import torch
from trivium.tokenizers.special import mask_id
from trivium.tokenizers.words import ordinary

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

    from trivium.data.dataset import Dataset
    from trivium.data.table import Ints
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer

KEPT = 0.15
"""Share of the hidden tokens that the generator is shown as they are, as in the paper's code; the others are masked."""


class Electra(Method):
    """Finding the tokens that a generator put in."""

    class Config(StrictModel):
        """Settings of replaced-token detection."""

        rate: float = Field(0.15, gt=0, lt=1)
        """Share of the tokens that the generator fills in."""
        weight: float = Field(50.0, gt=0)
        """Weight of the discriminator's loss; the generator's is much larger for each token."""
        generator: str | None = None
        """Model folder of the generator; default: a narrower copy of the model's shape, with random weights."""
        generator_size: float = Field(0.25, gt=0, le=1)
        """Width of that generator relative to the model's; a quarter to a half is best."""

    config: Config
    bare = True
    model_kinds = ("encoder",)
    generator_shape: Mapping[str, Any] | None = None

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """One score for each token."""
        return {"head": "detector"}

    def roles(self) -> dict[str, Role]:
        """Discriminator and generator."""
        shape = {"head": "masked", **(self.generator_shape or {})}
        path = self.config.generator
        return {"policy": Role(), "generator": Role(path=path) if path else Role(config=shape)}

    def margin(self, tokenizer: Tokenizer) -> int:
        """The frame of a piece."""
        return text_frame(tokenizer).size

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """The tokenizer must have a mask token; the shape of the generator follows from the model's."""
        super().check(recipe, tokenizer, model)
        mask_id(tokenizer)
        self.generator_shape = narrower(model, self.config.generator_size)

    def bind(self, context: Context) -> None:
        """Reads the tables of the vocabulary."""
        super().bind(context)
        self.frame = text_frame(context.tokenizer)
        self.masking = Masking(
            mask_id(context.tokenizer), ordinary(context.tokenizer), self.config.rate, (1 - KEPT, 0.0)
        )

    def example(self, ids: Ints, random: Generator) -> Example:
        """A piece with holes, and a number for each position by which the generator draws."""
        made = mask_tokens(self.frame.around(ids), random, self.masking)
        return replace(made, fields={"noise": random.random(len(made.inputs))})

    def weights(self, batch: Batch) -> Mapping[str, float]:
        """Hidden tokens, and all tokens that are no padding."""
        return {"hidden": float(batch.trained_tokens()), "tokens": float(real_tokens(batch))}

    def loss(self, batch: Batch) -> Terms:
        """Both losses; and the share of the tokens that were told right, beside that of the replaced ones."""

        def filled(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
            drawn = losses.sample_tokens(hidden, head, batch.targets, batch.fields["noise"])
            return losses.token_loss(hidden, head, batch.targets), drawn

        nll, drawn = self.context.roles["generator"](batch, filled, only_targets=True)
        hidden = batch.targets != IGNORE
        shown = torch.where(hidden, drawn, batch.input_ids)
        count = real_tokens(batch)
        replaced = (hidden & (drawn != batch.targets))[:count]
        scores = self.policy(replace(batch, input_ids=shown), lambda hidden, head: head(hidden).squeeze(1))[:count]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        detection = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, replaced.to(scores.dtype), reduction="sum"
        )
        right = (scores > 0) == replaced
        return {
            "generator": Term(nll, unit="hidden"),
            "detection": Term(detection, unit="tokens", coefficient=self.config.weight),
            "accuracy": Term(right.to(scores.dtype).sum(), unit="tokens", coefficient=0.0),
            "replaced": Term(replaced.to(scores.dtype).sum(), unit="tokens", coefficient=0.0),
        }


def real_tokens(batch: Batch) -> int:
    """Tokens of samples; padding stands behind them."""
    return sum(batch.layout.lengths[: len(batch.sample_ids)])


def narrower(model: ModelConfig, size: float) -> dict[str, Any]:
    """The fields of a model of the same depth and `size` times the width; heads and narrow embeddings keep theirs."""
    heads = max(1, round(model.num_heads * size))
    whole = model.num_heads * model.head_dim == model.hidden_size
    return {
        **({} if model.embedding_size is None else {"embedding_size": model.embedding_size}),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": model.head_dim,
        "hidden_size": heads * model.head_dim if whole else max(1, round(model.hidden_size * size)),
        "intermediate_size": max(1, round(model.intermediate_size * size)),
    }
