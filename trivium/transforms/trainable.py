"""Which parameters of the model train: the head, the last blocks, or those with certain names.

All others keep their values, bit for bit. With an adapter, these train beside it. Layers can be released one after
the other during the run, from the top (gradual unfreezing: Howard & Ruder 2018, arXiv 1801.06146).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer


class Trainable(Transform):
    """Trains a part of the model and freezes the rest."""

    class Config(StrictModel):
        """Settings of what trains."""

        head: bool = True
        """The head trains, and what stands between the last block and it. A head tied to the embedding trains both."""
        last_layers: int = Field(0, ge=0)
        """How many blocks train, counted from the last one."""
        embeddings: bool = False
        """Embeddings of tokens, positions and segments train."""
        patterns: list[str] = Field(default_factory=list)
        """Parameters that train besides, by name, `*` standing for anything: `blocks.3.*`, `*.bias`, `*norm*`."""
        unfreeze_every: int | None = Field(None, ge=1)
        """After so many updates each, one more block trains, from the last one down, in the end the embeddings too."""
        cached_features: bool = False
        """A linear probe: only the head for labels trains, and the body runs once over the data and no more."""

        @model_validator(mode="after")
        def _only_the_head_is_cached(self) -> Trainable.Config:
            more = self.last_layers or self.embeddings or self.patterns or self.unfreeze_every or not self.head
            if self.cached_features and more:
                raise ConfigError(
                    "features are cached where nothing but the head trains",
                    fix="leave out what else trains, or cached_features",
                )
            return self

    config: Config
    adapter = False

    def install(self, model: Transformer, *, seed: int) -> None:
        """Adds nothing; refuses what names nothing."""
        count = len(model.blocks)
        if self.config.last_layers > count:
            raise ConfigError(
                f"the model has only {count} blocks",
                where=f"{self.where}.last_layers",
                value=self.config.last_layers,
                fix="train fewer of them, or leave the transform out to train all",
            )
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.config.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    "no parameter has such a name",
                    where=f"{self.where}.patterns",
                    value=pattern,
                    fix=f"names are like {names[len(names) // 2]}; * stands for anything",
                )

    def trains(self, name: str, model: Transformer) -> bool:
        """By the settings."""
        config, first = self.config, name.split(".")[0]
        if any(fnmatchcase(name, pattern) for pattern in config.patterns):
            return True
        if first == "head":
            return config.head
        if first == "final_norm":
            return config.head and not config.cached_features
        later = config.unfreeze_every is not None
        if first == "embed":
            return config.embeddings or (config.head and model.tied) or later
        if first in ("position_embed", "token_type_embed", "embed_norm", "embed_projection"):
            return config.embeddings or later
        if first == "blocks":
            return later or int(name.split(".")[1]) >= len(model.blocks) - config.last_layers
        return False

    def trains_from(self, name: str, model: Transformer) -> int | None:
        """Block by block from the top, then the embeddings."""
        config = self.config
        if config.unfreeze_every is None or not self.trains(name, model):
            return None
        now = Trainable(config.model_copy(update={"unfreeze_every": None}))
        if now.trains(name, model):
            return None
        count = len(model.blocks)
        first = name.split(".")[0]
        below = count - int(name.split(".")[1]) if first == "blocks" else count + 1
        return config.unfreeze_every * (below - config.last_layers)
