"""Causal language modelling: predict each token from those before it.

    loss = - sum_t log p(x_t | x_<t) / number of tokens

Unit: tokens, over all micro-batches and ranks. Roles: the policy, a decoder. Documents packed into one row do not see
each other. With `fim_rate` a share of the pieces is rearranged so that the model learns to fill in a middle; with
`prefix_lm` the beginning of each piece is read in both directions and only the rest is predicted.
Not: masked or span-corruption objectives, which are methods of their own.

Bengio et al. 2003; Radford et al. 2018. Middle: Bavarian et al. 2022 (arXiv 2207.14255). Prefix: Raffel et al. 2020
(arXiv 1910.10683).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Context, Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.data.corruption.example import Example, next_token, prefix_lm, tokens
from trivium.data.corruption.middle import Marks, fill_in_the_middle
from trivium.errors import ConfigError
from trivium.tokenizers.special import middle_ids

if TYPE_CHECKING:
    from numpy.random import Generator

    from trivium.data.table import Ints
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer


class CausalLanguageModelling(Method):
    """Next-token prediction on documents."""

    class Config(StrictModel):
        """Settings of causal language modelling."""

        fim_rate: float = Field(0.0, ge=0, le=1)
        """Share of the pieces whose middle is moved to the end; 0.5 costs ordinary prediction next to nothing."""
        spm_rate: float = Field(0.5, ge=0, le=1)
        """Share of those in the order suffix, prefix, middle; the others begin with the prefix."""
        prefix_lm: bool = False
        """The first tokens of each piece, uniformly many, see each other and are not predicted."""

        @model_validator(mode="after")
        def _one_of_them(self) -> CausalLanguageModelling.Config:
            if self.prefix_lm and self.fim_rate:
                raise ConfigError(
                    "a prefix that is read in both directions and a moved middle exclude each other",
                    fix="set method.fim_rate=0 or method.prefix_lm=false",
                )
            return self

    config: Config
    model_kinds = ("decoder",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.fim_rate or config.prefix_lm:
            self.example = self.rearranged

    def margin(self, tokenizer: Tokenizer) -> int:
        """The three marks of a moved middle."""
        return 3 if self.config.fim_rate else 0

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """The tokenizer must have the marks."""
        super().check(recipe, tokenizer, model)
        if self.config.fim_rate:
            middle_ids(tokenizer)

    def bind(self, context: Context) -> None:
        """Looks up the marks."""
        super().bind(context)
        if self.config.fim_rate:
            self.marks = Marks(*middle_ids(context.tokenizer))

    def rearranged(self, ids: Ints, random: Generator) -> Example:
        """A piece with its prefix, or with its middle moved; BOS stays first and EOS last."""
        if self.config.prefix_lm:
            return prefix_lm(ids, random)
        tokenizer = self.context.tokenizer
        first = int(ids[0] == tokenizer.bos_id)
        last = len(ids) - int(ids[-1] == tokenizer.eos_id)
        moved = fill_in_the_middle(
            ids[first:last], random, marks=self.marks, rate=self.config.fim_rate, spm_rate=self.config.spm_rate
        )
        return next_token(tokens(ids[:first], moved, ids[last:]))

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of every target."""
        nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets), only_targets=True)
        return {"nll": Term(nll, unit="tokens")}
