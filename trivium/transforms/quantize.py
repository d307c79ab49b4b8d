"""Quantised base: frozen linear layers in eight or four bits, below adapters that train (QLoRA).

    int8   one scale for each row of a weight          about 1/4 of the memory of float32
    nf4    blocks of 64 on a code of 16 numbers        about 1/8, 4.13 bits a weight

Weights become floating point whenever they are used, so an update takes longer. What is stored is the adapter, and how
its base was quantised; the base itself stays as it is on the disk. Merging puts the adapter into the quantised
weights made floating point, the ones it was trained on, and not into the original ones.

Dettmers et al. 2023 (arXiv 2305.14314).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from trivium.models.targets import Place
    from trivium.models.transformer import Transformer


class Quantize(Transform):
    """Keeps the weights of the base in few bits."""

    class Config(StrictModel):
        """Settings of a quantised base."""

        to: Literal["int8", "nf4"] = "nf4"
        """Eight bits, a scale for each row; or four, a scale for each 64 weights."""
        exclude: list[str] = Field(default_factory=list)
        """Layers that stay as they are, by names of ours or of Hugging Face; so do embeddings, heads and routers."""

    config: Config
    adapter = False
    changes_base = True

    def install(self, model: Transformer, *, seed: int) -> None:
        """Quantises the linear layers of the blocks."""
        from trivium.models.layers import Linear
        from trivium.models.quantized import quantize
        from trivium.models.targets import ALL, targets

        if model.transforms[:1] != [self]:
            raise ConfigError(
                "the base is quantised before anything is added to it",
                where=self.where,
                fix="put {name: quantize} first in transforms",
            )

        def can(place: Place) -> bool:
            return not place.head and not any(name.endswith(".router") for name in place.own)

        for place in targets(model, ALL, exclude=self.config.exclude, where=self.where, can=can):
            for name in place.own:
                layer = model.get_submodule(name)
                assert type(layer) is Linear
                quantize(layer, self.config.to)

    def finish(self, model: Transformer) -> None:
        """Lets go of the weights it was made from."""
        from trivium.models.quantized import quantized_layers

        for layer in quantized_layers(model).values():
            layer.exact = None
        # A model that was read from a file lies in a mapping of it, all of which stays while one embedding is in use.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()

    def merge(self, model: Transformer) -> None:
        """Makes what is still quantised floating point; the values stay what they were."""
        from trivium.models.quantized import quantized_layers

        for layer in quantized_layers(model).values():
            layer.make_dense()
