"""IA3: learned factors on keys, values and inside the MLP; the fewest parameters of all adapters.

    y = l * (W x + b)      at keys and values        l [O], ones at the start
    y = W (l * x) + b      where the MLP goes down   l [I]

Merging multiplies the weights (and biases), and is exact. Liu et al. 2022 (arXiv 2205.05638).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ModelError
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.targets import Place
    from trivium.models.transformer import Transformer


class IA3(Transform):
    """Factors on the outputs of some linear layers and the inputs of others."""

    class Config(StrictModel):
        """Settings of IA3."""

        target: list[str] = Field(default_factory=lambda: ["attention.key", "attention.value"])
        """Layers whose outputs are scaled, by names of ours or of Hugging Face."""
        feedforward: list[str] = Field(default_factory=lambda: ["mlp.down"])
        """Layers whose inputs are scaled."""
        layers: list[int] | None = None
        """Numbers of the blocks it acts on, negative ones from the end; default: all."""

    config: Config
    peft_type = "IA3"

    def __init__(self, config: IA3.Config) -> None:
        from trivium.models.adapted import Rows

        super().__init__(config)
        self._rows = Rows()
        self.inputs: list[Place] = []
        self.outputs: list[Place] = []

    @property
    def rows(self) -> Any:
        return self._rows

    def install(self, model: Transformer, *, seed: int) -> None:
        """Factors of one; what the model computes stays the same."""
        from trivium.models.adapted import adapt
        from trivium.models.ia3 import ScaledInputs, ScaledOutputs
        from trivium.models.targets import targets

        config = self.config
        if not self.inputs and not self.outputs:
            both = [*config.target, *config.feedforward]
            targets(model, both, layers=config.layers, where=self.where)  # refuses what names nothing
            self.inputs = (
                targets(model, config.feedforward, layers=config.layers, where=self.where) if config.feedforward else []
            )
            chosen = targets(model, config.target, layers=config.layers, where=self.where) if config.target else []
            self.outputs = [place for place in chosen if place not in self.inputs]
        for place in self.outputs:
            for name in place.own:
                adapt(model, name, self.name, ScaledOutputs(model.get_submodule(name), self._rows))
        for place in self.inputs:
            shared = ScaledInputs.ones(model.get_submodule(place.own[0]))
            for name in place.own:
                adapt(model, name, self.name, ScaledInputs(shared, self._rows))

    def merge(self, model: Transformer) -> None:
        """Multiplies weights and biases."""
        from trivium.models.ia3 import merge_factors

        merge_factors(model, self.name)
        self.remove(model)

    def remove(self, model: Transformer) -> None:
        from trivium.models.adapted import release

        release(model, self.name)

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's IA3Config."""
        from trivium.models.targets import places, short_names

        everything = places(model)
        return {
            "target_modules": short_names([*self.outputs, *self.inputs], everything),
            "feedforward_modules": short_names(self.inputs, everything),
            "fan_in_fan_out": model.config.family == "gpt2",
        }

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ia3_l` [O, 1] or [1, I] of each place."""
        from trivium.models.adapter_checks import PEFT_PREFIX

        found = {}
        for place in self.outputs:
            parts = [weights[f"{name}.branches.{self.name}.factors"] for name in place.own]
            found[f"{PEFT_PREFIX}{place.file}.ia3_l"] = place.stack(parts)[:, None]
        for place in self.inputs:
            found[f"{PEFT_PREFIX}{place.file}.ia3_l"] = weights[f"{place.own[0]}.branches.{self.name}.factors"][None]
        return found

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """IA3 as PEFT stored it; the shape of a tensor says on which side it acts."""
        from trivium.models.adapter_checks import PEFT_PREFIX
        from trivium.models.targets import places

        self = cls(cls.Config())
        for place in places(model):
            tensor = tensors.get(f"{PEFT_PREFIX}{place.file}.ia3_l")
            if tensor is not None:
                (self.inputs if tensor.shape[:1] == (1,) else self.outputs).append(place)
        if not self.inputs and not self.outputs:
            raise ModelError(
                "no layer of the base has the names of this adapter",
                value=", ".join(list(tensors)[:2]),
                fix="give the base it was trained on",
            )
        return self

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`."""
        from trivium.models.adapter_checks import PEFT_PREFIX, misfit

        found: dict[str, Tensor] = {}
        for place in [*self.outputs, *self.inputs]:
            whole = tensors[f"{PEFT_PREFIX}{place.file}.ia3_l"].flatten()
            names = [f"{name}.branches.{self.name}.factors" for name in place.own]
            if place in self.inputs:
                found |= {name: whole for name in names}
            elif len(whole) != sum(place.sizes):
                raise misfit(place.file, len(whole), sum(place.sizes))
            else:
                found |= zip(names, place.unstack(whole), strict=True)
        return found
