"""AdapterFusion: every token chooses, by attention, among what several trained adapters make of it.

    mixed = added + sum_n softmax_n(query(x) . key(a_n)) value(a_n)       a_n: what adapter n adds

The adapters come from their folders and stay frozen; only query, key and value train. Stored in AdapterHub's format.

Pfeiffer et al. 2021 (arXiv 2005.00247).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer


class AdapterFusion(Transform):
    """Attention over the outputs of several bottleneck adapters."""

    class Config(StrictModel):
        """Settings of AdapterFusion."""

        adapters: list[str] = Field(min_length=2)
        """Folders of bottleneck adapters of the same base; they stay frozen."""
        query_before_norm: bool = False
        """The query is made of the output of the branch, not of what the adapters read."""
        residual_in_value: bool = False
        """The values hold the output of the branch too."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Of the scores, in training."""

    config: Config
    peft_type = "FUSION"

    def __init__(self, config: AdapterFusion.Config) -> None:
        super().__init__(config)
        self.members: tuple[str, ...] = ()

    def install(self, model: Transformer, *, seed: int) -> None:
        """Query, key and value in each slot that all of the adapters share."""
        import torch

        from trivium.models.adapter_folder import put_adapter
        from trivium.models.bottleneck import sites, slot, start

        names = self.members or tuple(put_adapter(model, folder, frozen=True) for folder in self.config.adapters)
        self.members = names
        for name, block, where in sites(model):
            own = slot(block, where) if block.slots is not None and where in block.slots else None
            if own is None or not set(names) & set(own.adapters):
                continue
            if not set(names) <= set(own.adapters) or any(own.adapters[each].form.parallel for each in names):  # type: ignore[union-attr]
                raise ConfigError(
                    "only sequential adapters at the same places can be fused",
                    where=f"{self.where}.adapters",
                    value=list(names),
                )
            own.fusion, own.fused = self.module(model), names
            start(own.fusion, "bert", seed=seed, name=f"{name}.{where}.{self.name}", like=next(model.parameters()))
            if own.fusion.value.weight.device.type != "meta":
                with torch.no_grad():  # as the paper: the mean of the adapters at the start
                    own.fusion.value.weight.fill_(1e-6).fill_diagonal_(1.0)

    def module(self, model: Transformer) -> Any:
        """The fusion of one slot."""
        from trivium.models.bottleneck import Fusion

        config = self.config
        return Fusion(
            model.config.hidden_size,
            query_before_norm=config.query_before_norm,
            residual_in_value=config.residual_in_value,
            dropout=config.dropout,
        )

    def remove(self, model: Transformer) -> None:
        from trivium.models.bottleneck import sites, slot

        for _, block, where in list(sites(model)):
            if block.slots is not None and where in block.slots:
                slot(block, where).fusion, slot(block, where).fused = None, ()

    def settings(self, model: Transformer) -> dict[str, Any]:
        """AdapterHub's configuration."""
        from trivium.models.adapterhub import write_fusion

        return write_fusion(self.members, model, self.config.model_dump())

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Under AdapterHub's names."""
        return {file: weights[own] for file, own in self.names(model)}

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`."""
        return {own: tensors[file] for file, own in self.names(model)}

    def names(self, model: Transformer) -> list[tuple[str, str]]:
        """(name in the file, name here) of each parameter."""
        from trivium.models.adapterhub import fusion_names

        return fusion_names(model, self.members, self.added)

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """The fusion that AdapterHub stored, of adapters that are applied already."""
        from trivium.models.adapterhub import read_fusion

        members, settings = read_fusion(raw)
        self = cls(cls.Config(adapters=list(members), **settings))
        self.members = members
        return self
