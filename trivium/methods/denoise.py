"""Denoising: an encoder reads a damaged text, a decoder writes what is missing, or the whole of it.

    loss = - sum_t log p(y_t | y_<t, damaged x) / number of target tokens

`t5` takes out spans (15 % of the tokens, 3 on average) and asks for them; `bart` hides spans of Poisson length (30 %)
behind one mask each, shuffles sentences, and asks for the text; `ul2` mixes seven kinds of holes. Each piece of a
document is damaged anew each epoch. Unit: tokens (of targets). Roles: the policy, an encoder-decoder.

Raffel et al. 2020 (arXiv 1910.10683); Lewis et al. 2020 (arXiv 1910.13461); Tay et al. 2022 (arXiv 2205.05131).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Context, Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.data.corruption.example import Example, taught
from trivium.data.corruption.infilling import damage
from trivium.data.corruption.spans import corrupt_spans, noise_counts
from trivium.data.corruption.ul2 import MIXTURE, MODES, mixture_of_denoisers
from trivium.data.sides import target_frame, text_frame
from trivium.tokenizers.special import mask_id, mode_ids, sentinel_ids
from trivium.tokenizers.words import sentence_ends

if TYPE_CHECKING:
    from numpy.random import Generator

    from trivium.data.table import Ints
    from trivium.models.config import ModelConfig
    from trivium.recipe import Recipe
    from trivium.tokenizers.tokenizer import Tokenizer


class Denoising(Method):
    """Restoring damaged documents."""

    class Config(StrictModel):
        """Settings of denoising."""

        objective: Literal["t5", "bart", "ul2"] = "t5"
        """What is damaged how, see above."""
        rate: float | None = Field(None, gt=0, lt=1)
        """t5, bart: share of the tokens that are missing; default 0.15 for t5, 0.3 for bart."""
        mean_length: float = Field(3.0, ge=1)
        """t5, bart: tokens in a span, on average."""
        roll: bool = True
        """t5, ul2: spans anywhere; otherwise a text always ends in one, as with T5's defaults, and one too short for
        two spans only ever loses its end."""
        permute_sentences: float = Field(1.0, ge=0, le=1)
        """bart: share of the sentences that change places."""
        delete: float = Field(0.0, ge=0, lt=1)
        """bart: share of the tokens that vanish without a mask."""
        rotate: float = Field(0.0, ge=0, le=1)
        """bart: share of the texts that begin in their middle."""
        mode_tokens: bool = True
        """ul2: a token in front of the source says what kind of damage it is."""

    config: Config
    bare = True
    model_kinds = ("encoder_decoder",)

    def margin(self, tokenizer: Tokenizer) -> int:
        """The frame, a span that lies over the end, and the mode."""
        return max(text_frame(tokenizer).size, target_frame(tokenizer).size) + 2

    def check(self, recipe: Recipe, tokenizer: Tokenizer, model: ModelConfig) -> None:
        """The tokenizer must have the special tokens, and enough of them for the longest piece."""
        super().check(recipe, tokenizer, model)
        if self.config.objective == "bart":
            mask_id(tokenizer)
            return
        length = recipe.data.sequence_length - self.margin(tokenizer)
        holes = [(kind.rate, kind.mean_length) for kind in MIXTURE if kind.mean_length is not None]
        if self.config.objective == "t5":
            holes = [(self.config.rate or 0.15, self.config.mean_length)]
        spans = max(noise_counts(length, rate=rate, mean_length=mean)[1] for rate, mean in holes)
        sentinel_ids(tokenizer, least=spans + self.config.roll)
        if self.config.objective == "ul2" and self.config.mode_tokens:
            mode_ids(tokenizer)

    def bind(self, context: Context) -> None:
        """Looks up the special tokens."""
        super().bind(context)
        tokenizer, config = context.tokenizer, self.config
        self.frames = text_frame(tokenizer), target_frame(tokenizer)
        self.start = self.policy.module.config.start_id or 0
        if config.objective == "bart":
            self.damage = partial(
                damage,
                mask_id=mask_id(tokenizer),
                ends=sentence_ends(tokenizer),
                rate=config.rate or 0.3,
                mean_length=config.mean_length,
                permute=config.permute_sentences,
                delete=config.delete,
                rotated=config.rotate,
            )
        elif config.objective == "ul2":
            modes = dict(zip(MODES, mode_ids(tokenizer), strict=True)) if config.mode_tokens else None
            self.damage = partial(
                mixture_of_denoisers, sentinels=sentinel_ids(tokenizer), modes=modes, roll=config.roll
            )
        else:
            self.damage = partial(
                corrupt_spans,
                sentinels=sentinel_ids(tokenizer),
                rate=config.rate or 0.15,
                mean_length=config.mean_length,
                roll=config.roll,
            )

    def example(self, ids: Ints, random: Generator) -> Example:
        """A damaged piece, and what the decoder is to write."""
        made = self.damage(ids, random)
        source, target = self.frames
        return taught(source.around(made.source), target.around(made.target), start=self.start)

    def loss(self, batch: Batch) -> Terms:
        """Negative log-likelihood of the target."""
        nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets))
        return {"nll": Term(nll, unit="tokens")}
