"""LoRA: a trained change of low rank beside frozen linear layers.

    y = W x + scale * B (A dropout(x))        A [rank, I] random, B [O, rank] zero at the start

scale is alpha / rank, with `rslora` alpha / sqrt(rank). Layers that the file format keeps as one tensor (GPT-2's
`c_attn`) share A, as in PEFT. Merging adds scale * B A to W.

Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ModelError
from trivium.lazy import torch
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
        """Layers it acts on: `all-linear`, or names of ours or of Hugging Face (`q_proj`, `attention.query`)."""
        exclude: list[str] = Field(default_factory=list)
        """Layers of `target` that are left out."""
        layers: list[int] | None = None
        """Numbers of the blocks it acts on, negative ones from the end; default: all."""
        rslora: bool = False
        """Divides alpha by the root of the rank, so that high ranks learn as fast as low ones."""

    config: Config
    peft_type = "LORA"

    def __init__(self, config: LoRA.Config) -> None:
        from trivium.models.adapted import Rows

        super().__init__(config)
        self._rows = Rows()
        self.places: list[Place] = []

    @property
    def rows(self) -> Any:
        return self._rows

    @property
    def scale(self) -> float:
        """Factor of the change."""
        return self.config.alpha / (math.sqrt(self.config.rank) if self.config.rslora else self.config.rank)

    def install(self, model: Transformer, *, seed: int) -> None:
        """A branch at each target; what the model computes stays the same."""
        from trivium.models.adapted import adapt
        from trivium.models.lora import LoRABranch
        from trivium.models.targets import targets

        config = self.config
        self.places = self.places or targets(
            model, config.target, exclude=config.exclude, layers=config.layers, where=self.where
        )
        for place in self.places:
            layers = [model.get_submodule(name) for name in place.own]
            down = LoRABranch.new_down(layers[0], config.rank, seed=seed, name=f"{place.own[0]}.{self.name}")
            for name, layer in zip(place.own, layers, strict=True):
                adapt(model, name, self.name, LoRABranch(layer, down, self.scale, config.dropout, self._rows))

    def merge(self, model: Transformer) -> None:
        """Adds the change to the weights of the base."""
        from trivium.models.adapted import AdaptedLinear, branches_of
        from trivium.models.lora import LoRABranch

        with torch.no_grad():
            for name, branch in branches_of(model, self.name).items():
                layer = model.get_submodule(name)
                assert isinstance(branch, LoRABranch) and isinstance(layer, AdaptedLinear)
                layer.weight += branch.change().to(layer.weight.dtype)
        self.remove(model)

    def remove(self, model: Transformer) -> None:
        from trivium.models.adapted import release

        release(model, self.name)

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's LoraConfig."""
        from trivium.models.targets import places, short_names

        config = self.config
        return {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": short_names(self.places, places(model)),
            "use_rslora": config.rslora,
            "fan_in_fan_out": model.config.family == "gpt2",
            "bias": "none",
        }

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`lora_A` [rank, I] and `lora_B` [O, rank] of each place."""
        from trivium.models.adapter_folder import PEFT_PREFIX

        found = {}
        for place in self.places:
            names = [f"{name}.branches.{self.name}" for name in place.own]
            found[f"{PEFT_PREFIX}{place.file}.lora_A.weight"] = weights[f"{names[0]}.down"]
            found[f"{PEFT_PREFIX}{place.file}.lora_B.weight"] = place.stack([weights[f"{name}.up"] for name in names])
        return found

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """LoRA as PEFT stored it; the places are those that the file has tensors for."""
        from trivium.models.adapter_folder import PEFT_PREFIX
        from trivium.models.targets import places

        if (
            raw.get("use_dora")
            or raw.get("bias", "none") != "none"
            or raw.get("rank_pattern")
            or raw.get("alpha_pattern")
        ):
            raise ModelError("this kind of LoRA is not supported", where="adapter_config.json")
        config = cls.Config(
            rank=raw["r"],
            alpha=raw.get("lora_alpha", 8),
            dropout=raw.get("lora_dropout", 0.0),
            rslora=raw.get("use_rslora", False),
        )
        self = cls(config)
        self.places = [place for place in places(model) if f"{PEFT_PREFIX}{place.file}.lora_A.weight" in tensors]
        return self

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`."""
        from trivium.models.adapter_folder import PEFT_PREFIX

        found: dict[str, Tensor] = {}
        for place in self.places:
            names = [f"{name}.branches.{self.name}" for name in place.own]
            ups = place.unstack(tensors[f"{PEFT_PREFIX}{place.file}.lora_B.weight"])
            down = tensors[f"{PEFT_PREFIX}{place.file}.lora_A.weight"]
            found |= {f"{name}.down": down for name in names}
            found |= {f"{name}.up": up for name, up in zip(names, ups, strict=True)}
        return found
