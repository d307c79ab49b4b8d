"""LoRA: a trained change of low rank beside frozen linear layers and embeddings.

    y = W x + scale * B (A dropout(x))        A [rank, I] random, B [O, rank] zero at the start

scale is alpha / rank, with `rslora` alpha / sqrt(rank). With `dora` the rows of W + scale B A keep lengths of their
own, which train. Layers that the file format keeps as one tensor (GPT-2's `c_attn`) share A, as in PEFT. Merging is
exact. `pissa` and `olora` start from parts of W, which are taken off again, so that the base stays as it is; they are
stored as plain LoRA of twice the rank.

Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732); DoRA: Liu et al. 2024 (arXiv
2402.09353); LoRA+: Hayou et al. 2024 (arXiv 2402.12354); PiSSA: Meng et al. 2024 (arXiv 2404.02948).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from trivium.config import StrictModel
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.targets import Place
    from trivium.models.transformer import Transformer


class LoRA(Transform):
    """Low-rank adapters of linear layers."""

    class Config(StrictModel):
        """Settings of LoRA."""

        rank: int = Field(8, ge=1)
        """Rank of the change."""
        alpha: float = Field(16.0, gt=0)
        """Scale of the change, divided by the rank."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Of the input of the change, in training."""
        target: str | list[str] = "all-linear"
        """Layers it acts on: `all-linear`, or names, ours or of Hugging Face (`q_proj`, `attention.query`, `embed`)."""
        exclude: list[str] = Field(default_factory=list)
        """Layers of `target` that are left out."""
        layers: list[int] | None = None
        """Numbers of the blocks it acts on, negative ones from the end; default: all."""
        rank_pattern: dict[str, int] = Field(default_factory=dict)
        """Ranks of layers with certain names; the first that fits counts."""
        alpha_pattern: dict[str, float] = Field(default_factory=dict)
        """The same for alpha."""
        rslora: bool = False
        """Divides alpha by the root of the rank, so that high ranks learn as fast as low ones."""
        dora: bool = False
        """Lets the length of each row of a weight train by itself."""
        init: Literal["uniform", "gaussian", "pissa", "olora", "loftq"] = "uniform"
        """Start: random A (two spreads), the largest parts of W, its QR, or what quantising the base took away."""
        bias: Literal["none", "lora_only", "all"] = "none"
        """Which biases of the base train beside it: those of its layers, or all."""
        tokens: list[int] = Field(default_factory=list)
        """Ids of tokens whose rows of the embedding (and of a head tied to it) train: those added to a vocabulary."""
        lr_ratio: float = Field(1.0, gt=0)
        """How many times as fast as A the matrices B learn (LoRA+; 16 is usual)."""

    config: Config
    peft_type = "LORA"

    def __init__(self, config: LoRA.Config) -> None:
        from trivium.models.adapted import Rows

        super().__init__(config)
        self._rows = Rows()
        self.places: list[Place] = []
        self.ranks: dict[str, int] = {}
        self.alphas: dict[str, float] = {}

    @property
    def rows(self) -> Any:
        return self._rows

    def scale(self, place: Place) -> float:
        """Factor of the change at a place."""
        rank = self.ranks[place.file]
        return self.alphas[place.file] / (math.sqrt(rank) if self.config.rslora else rank)

    def install(self, model: Transformer, *, seed: int) -> None:
        """A branch at each target; what the model computes stays the same, but for `loftq`, which comes nearer to W."""
        from trivium.models.lora_places import check_places, install_branches
        from trivium.models.targets import by_pattern, targets

        config = self.config
        if not self.places:
            self.places = targets(
                model, config.target, exclude=config.exclude, layers=config.layers, where=self.where, embeddings=True
            )
            self.ranks = by_pattern(self.places, config.rank_pattern, config.rank, where=f"{self.where}.rank_pattern")
            self.alphas = by_pattern(
                self.places, config.alpha_pattern, config.alpha, where=f"{self.where}.alpha_pattern"
            )
        check_places(self, model)
        install_branches(self, model, seed=seed)

    def trains(self, name: str, model: Transformer) -> bool:
        """A head for labels, and the biases asked for."""
        return self.stores(name) or super().trains(name, model)

    def stores(self, name: str) -> bool:
        """The biases that train, which PEFT's file has beside A and B."""
        if not name.endswith(".bias") or self.config.bias == "none":
            return False
        own = {layer for place in self.places for layer in place.own}
        return self.config.bias == "all" or name.removesuffix(".bias") in own

    def lr_factor(self, name: str) -> float:
        """The matrices B of linear layers learn faster."""
        return self.config.lr_ratio if name.endswith(".up") and not name.startswith("embed.") else 1.0

    def merge(self, model: Transformer) -> None:
        """Puts the change into the weights of the base."""
        from trivium.models.lora_places import merge_branches

        merge_branches(self, model)
        self.remove(model)

    def remove(self, model: Transformer) -> None:
        from trivium.models.adapted import release
        from trivium.models.token_rows import release_head

        release(model, self.name)
        if self.config.tokens:
            release_head(model)

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's LoraConfig."""
        from trivium.models.targets import patterns, places, short_names

        config = self.config
        double = 2 if config.init in ("pissa", "olora") else 1
        own = {file: rank * double for file, rank in self.ranks.items()}
        root = math.sqrt(double) if config.rslora else double  # the scale stays what it was
        rank, ranks = patterns(own, config.rank * double)
        alpha, alphas = patterns({file: alpha * root for file, alpha in self.alphas.items()}, config.alpha * root)
        return {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "lora_dropout": config.dropout,
            "target_modules": short_names(self.places, places(model, embeddings=True)),
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "fan_in_fan_out": model.config.family == "gpt2",
            "bias": config.bias,
            "init_lora_weights": True,
            "trainable_token_indices": config.tokens or None,
        }

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`lora_A` [rank, I] and `lora_B` [O, rank] of each place, magnitudes and biases."""
        from trivium.models.lora_places import to_file

        return to_file(self, model, weights)

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """LoRA as PEFT stored it; the places are those that the file has tensors for."""
        from trivium.models.lora_places import places_in, refuse_variants, tokens_in
        from trivium.models.targets import fits_pattern, places

        refuse_variants(raw)
        config = cls.Config(
            rank=raw.get("r", 8),
            alpha=raw.get("lora_alpha", 8),
            dropout=raw.get("lora_dropout", 0.0),
            rslora=raw.get("use_rslora") or False,
            dora=raw.get("use_dora") or False,
            bias=raw.get("bias", "none"),
            alpha_pattern=raw.get("alpha_pattern") or {},
            rank_pattern=raw.get("rank_pattern") or {},
            tokens=tokens_in(raw, model),
        )
        self = cls(config)
        self.ranks = places_in(model, tensors)
        self.places = [place for place in places(model, embeddings=True) if place.file in self.ranks]
        for place in self.places:
            fitting = (a for name, a in config.alpha_pattern.items() if fits_pattern(name, place.file))
            self.alphas[place.file] = next(fitting, config.alpha)
        return self

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`."""
        from trivium.models.lora_places import from_file

        return from_file(self, model, tensors)
