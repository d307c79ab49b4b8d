"""Sequence to sequence: an encoder reads a text, a decoder writes another; translation, summaries, any text to text.

    loss = - sum_t [(1 - e) log p(y_t | y_<t, x) + e mean_v log p(v | y_<t, x)] / number of target tokens

with e = `label_smoothing`. The decoder reads the true target while it learns (teacher forcing). Unit: tokens (of
targets). Roles: the policy, an encoder-decoder. Data: pairs. Not: the same with a decoder alone, which is `sft`.

Sutskever et al. 2014 (arXiv 1409.3215); label smoothing: Szegedy et al. 2016 (arXiv 1512.00567).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trivium import losses
from trivium.config import StrictModel
from trivium.core.method import Context, Method
from trivium.core.terms import Term, Terms
from trivium.data.batch import Batch
from trivium.data.corruption.example import Example, taught
from trivium.data.sides import text_frame
from trivium.lazy import torch

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor, nn

    from trivium.data.table import Ints
    from trivium.tokenizers.tokenizer import Tokenizer


class SequenceToSequence(Method):
    """Supervised text to text."""

    class Config(StrictModel):
        """Settings of sequence to sequence."""

        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of each target that is spread over the vocabulary; 0.1 is usual for translation."""

    config: Config
    data_kind = "pairs"
    model_kinds = ("encoder_decoder",)

    def margin(self, tokenizer: Tokenizer) -> int:
        """The frame of the source; the target stands in its own already."""
        return text_frame(tokenizer).size

    def bind(self, context: Context) -> None:
        """Looks up the frame and the start token."""
        super().bind(context)
        self.frame = text_frame(context.tokenizer)
        self.start = self.policy.module.config.start_id or 0

    def example(self, source: Ints, target: Ints, random: Generator) -> Example:
        """A pair; nothing about it is random."""
        return taught(self.frame.around(source), target, start=self.start)

    def loss(self, batch: Batch) -> Terms:
        """The smoothed loss, and the plain one beside it."""
        smoothing = self.config.label_smoothing

        def both(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                plain = losses.token_loss(hidden, head, batch.targets)
            return losses.token_loss(hidden, head, batch.targets, label_smoothing=smoothing), plain

        if not smoothing:
            nll = self.policy(batch, lambda hidden, head: losses.token_loss(hidden, head, batch.targets))
            return {"nll": Term(nll, unit="tokens")}
        smoothed, nll = self.policy(batch, both)
        return {"smoothed": Term(smoothed, unit="tokens"), "nll": Term(nll, unit="tokens", coefficient=0.0)}
