"""Prefix tuning: keys and values before each sequence, of its own for each block, are all that trains.

In each block attention sees [k_1 .. k_n, keys of the tokens] and [v_1 .. v_n, values of the tokens]. The k and v are
trained as they are, or with `projection` made by a network of two layers from one vector for each virtual token. Of an
encoder-decoder the decoder has them.

Li & Liang 2021 (arXiv 2101.00190). Stored are the k and v alone, as PEFT does. PEFT reads the vectors of a file for
encoder-decoders in an order of its own, in which with an even number of blocks half of them are never looked at; so it
is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.lazy import torch
from trivium.transforms.virtual import VirtualTokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Transformer


class PrefixTuning(VirtualTokens):
    """Trained keys and values for each block."""

    class Config(StrictModel):
        """Settings of prefix tuning."""

        tokens: int = Field(20, ge=1)
        """Virtual tokens."""
        projection: bool = False
        """A network of two layers makes the keys and values while they train."""
        hidden_size: int | None = Field(None, ge=1)
        """Width inside that network; default: that of the keys."""

    config: Config
    peft_type = "PREFIX_TUNING"
    attention_only = True

    def check(self, config: ModelConfig) -> None:
        """Encoder and decoder must have as many blocks, for PEFT's format knows one number only."""
        super().check(config)
        if config.num_decoder_layers not in (None, config.num_layers):
            raise ConfigError(
                "a prefix needs an encoder and a decoder with equally many blocks",
                where=self.where,
                value=f"{config.num_layers} and {config.num_decoder_layers}",
                fix="take prompt_tuning or p_tuning",
            )
        if self.config.hidden_size is not None and not self.config.projection:
            raise ConfigError(
                "hidden_size is the width of a network, and there is none",
                where=f"{self.where}.hidden_size",
                value=self.config.hidden_size,
                fix="set projection: true, or delete this line",
            )

    def first_vectors(self, model: Transformer, *, seed: int) -> nn.Module:
        """Keys and values [tokens, 2 * L * K * C], small at first; or the network that makes them."""
        from torch.nn import Tanh

        from trivium.models.virtual import MLPEncoder, Vectors, start

        count, width, like = self.config.tokens, self.width(model.config), model.embed.weight
        module: nn.Module = Vectors(torch.empty(count, width))
        if self.config.projection:
            inside = model.config.num_kv_heads * model.config.head_dim
            module = MLPEncoder(count, inside, (self.config.hidden_size or inside, width), Tanh)
        std = 1.0 if self.config.projection else model.config.init_std
        return start(module, std=std, seed=seed, name=f"prompts.{self.name}", like=like)

    def prefix(self, model: Transformer) -> Tensor:
        """[tokens, L, 2, K, C]."""
        config = model.config
        made: Tensor = model.prompts[self.name]()
        vectors = made.view(len(made), 2 * config.num_layers, config.num_kv_heads, config.head_dim)
        if config.kind == "encoder_decoder":
            first = torch.arange(config.num_layers, device=made.device) * 4 % (2 * config.num_layers)
            vectors = vectors.index_select(1, torch.stack((first, first + 1), dim=1).flatten())
        return vectors.view(len(made), config.num_layers, 2, config.num_kv_heads, config.head_dim)

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's PrefixTuningConfig; the network is folded in."""
        return {**super().settings(model), "prefix_projection": False, "encoder_hidden_size": self.config.hidden_size}
