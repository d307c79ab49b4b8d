"""Masked language modelling: predict hidden tokens from what stands on both sides of them.

    loss = - sum_t in hidden log p(x_t | x with holes) / number of hidden tokens

Of the tokens, 15 % are hidden: 80 % of those are shown as the mask token, 10 % as any other, 10 % as they are. Each
piece of a document stands in the tokenizer's frame ([CLS] text [SEP]) and is hidden anew each epoch. Only hidden
positions pass the head. Unit: tokens (the hidden ones). Roles: the policy, an encoder. Starts from random weights or
goes on from a model folder. Not: next-sentence prediction, nor replaced-token detection (`electra`).

Devlin et al. 2019 (arXiv 1810.04805). New masks each epoch: Liu et al. 2019 (arXiv 1907.11692). Spans: Joshi et al.
2020 (arXiv 1907.10529).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Context, Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.data.corruption.example import Example
from trivium.data.corruption.masking import Masking, mask_spans, mask_tokens, mask_words
from trivium.data.sides import text_frame
from trivium.errors import ConfigError
from trivium.tokenizers.special import mask_id
from trivium.tokenizers.words import ordinary, word_table

if TYPE_CHECKING:
    from numpy.random import Generator

    from trivium.data.dataset import Dataset
    from trivium.data.table import Ints
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer


class MaskedLanguageModelling(Method):
    """Prediction of hidden tokens on documents."""

    class Config(StrictModel):
        """Settings of masked language modelling."""

        rate: float = Field(0.15, gt=0, lt=1)
        """Share of the tokens that are hidden; always at least one."""
        unit: Literal["token", "word", "span"] = "token"
        """What is hidden together: single tokens, whole words, or spans of 1 to 10 words, 3.8 on average."""
        mask_share: float = Field(0.8, ge=0, le=1)
        """Share of the hidden tokens that are shown as the mask token."""
        random_share: float = Field(0.1, ge=0, le=1)
        """Share of the hidden tokens that are shown as another token; the rest is shown as it is."""

        @model_validator(mode="after")
        def _at_most_all(self) -> MaskedLanguageModelling.Config:
            if self.mask_share + self.random_share > 1 + 1e-9:
                raise ConfigError(
                    "mask_share and random_share are more than everything together",
                    value=f"{self.mask_share} + {self.random_share}",
                    fix="let them add up to 1 at most; what is left over is shown as it is",
                )
            return self

    config: Config
    bare = True
    model_kinds = ("encoder",)

    def head(self, data: Dataset) -> Mapping[str, Any]:
        """Logits behind a dense layer, as BERT has them."""
        return {"head": "masked"}

    def margin(self, tokenizer: Tokenizer) -> int:
        """The frame of a piece."""
        return text_frame(tokenizer).size

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """The tokenizer must have a mask token."""
        super().check(recipe, tokenizer, model)
        mask_id(tokenizer)

    def bind(self, context: Context) -> None:
        """Reads the tables of the vocabulary."""
        super().bind(context)
        tokenizer, config = context.tokenizer, self.config
        self.frame = text_frame(tokenizer)
        self.words = word_table(tokenizer)
        self.masking = Masking(
            mask_id(tokenizer), ordinary(tokenizer), config.rate, (config.mask_share, config.random_share)
        )

    def example(self, ids: Ints, random: Generator) -> Example:
        """A piece in its frame, with holes."""
        ids = self.frame.around(ids)
        if self.config.unit == "token":
            return mask_tokens(ids, random, self.masking)
        hide = mask_words if self.config.unit == "word" else mask_spans
        return hide(ids, random, self.masking, starts=self.words.starts(ids))

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of the hidden tokens."""
        nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets), only_targets=True)
        return {"nll": Term(nll, unit="tokens")}
