"""Prompt tuning: vectors before each sequence, in the place of embeddings, are all that trains.

The base reads [p_1 .. p_n, x_1 .. x_T]; the p are trained, everything else is frozen. In an encoder-decoder they stand
before the source. A head for labels reads the first token of an encoder, which is then p_1, as in PEFT.

Lester et al. 2021 (arXiv 2104.08691). It needs a high learning rate: the paper takes 0.3 with Adafactor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.transforms.virtual import VirtualTokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trivium.models.transform import Encodes
    from trivium.models.transformer import Transformer


class PromptTuning(VirtualTokens):
    """A soft prompt."""

    class Config(StrictModel):
        """Settings of prompt tuning."""

        tokens: int | None = Field(None, ge=1)
        """Virtual tokens; default 20, or as many as `text` has."""
        init: Literal["vocabulary", "random", "text"] = "vocabulary"
        """First values: embeddings drawn from the vocabulary, random ones of their size, or those of `text`."""
        text: str | None = None
        """With `init: text`: what the prompt begins as; repeated where it is shorter than `tokens`."""

        @model_validator(mode="after")
        def _text_for_text(self) -> Self:
            if (self.init == "text") != bool(self.text):
                raise ValueError("init: text and a text belong together: give both, or neither")
            return self

    config: Config
    peft_type = "PROMPT_TUNING"

    def __init__(self, config: PromptTuning.Config) -> None:
        super().__init__(config)
        self.ids: Sequence[int] = ()
        """Tokens of the text it begins as."""

    @property
    def count(self) -> int:
        """How many virtual tokens there are."""
        return len(self.loaded) if self.loaded is not None else self.config.tokens or len(self.ids) or 20

    def read(self, tokenizer: Encodes) -> None:
        """Turns the text it begins as into tokens."""
        if self.config.text is None:
            return
        self.ids = tokenizer.encode(self.config.text)
        if self.config.tokens is not None and len(self.ids) > self.config.tokens:
            raise ConfigError(
                "the text is longer than the soft prompt",
                where=f"{self.where}.tokens",
                value=f"{self.config.tokens}, the text has {len(self.ids)} tokens",
                fix=f"set tokens: {len(self.ids)}, delete it to have as many as the text, or shorten the text",
            )

    def first_vectors(self, model: Transformer, *, seed: int) -> nn.Module:
        """[tokens, D] by `init`."""
        from trivium.models.build import parameter_stream
        from trivium.models.virtual import Vectors

        stream, like = parameter_stream(seed, f"prompts.{self.name}"), model.embed.weight
        if self.config.init == "random":
            values: Any = torch.empty(self.count, model.config.embedding_width).normal_(generator=stream)
            values = values.to(like.device) * _spread(model)
        else:
            ids = torch.randint(model.config.vocab_size, (self.count,), generator=stream)
            if self.ids:
                ids = torch.tensor([self.ids[number % len(self.ids)] for number in range(self.count)])
            with torch.no_grad():
                values = model.embed_tokens(ids.to(like.device))
        return Vectors(values.detach().to(torch.promote_types(like.dtype, torch.float32)).clone())

    def prompt(self, model: Transformer) -> Tensor:
        """[tokens, D]."""
        made: Tensor = model.prompts[self.name]()
        return made

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's PromptTuningConfig; how it began matters no more."""
        return {**super().settings(model), "prompt_tuning_init": "RANDOM"}


def _spread(model: Transformer) -> Tensor:
    """Standard deviation of what the embedding gives."""
    with torch.no_grad():
        return model.embed.weight.float().std() * model.config.embedding_scale
