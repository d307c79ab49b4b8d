"""Bottleneck adapters: small trained networks after, or beside, the branches of a frozen model.

    sequential  added + scale * up(act(down(x)))         after the MLP (Pfeiffer), or after both branches (Houlsby)
    parallel    added + scale * up(act(down(stream)))    beside a branch, with a scale of its own (He)

Stored in AdapterHub's format. With `stack_on`, they stand behind other adapters, which stay frozen (MAD-X).
Not merged: they are no change of the weights of the base.

Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2021 (arXiv 2005.00247), He et al. 2022 (arXiv 2110.04366).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.errors import ConfigError, ModelError
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

Place = Literal["attention", "cross", "mlp"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "leaky_relu"]


class BottleneckAdapters(Transform):
    """Sequential or parallel bottleneck adapters."""

    class Config(StrictModel):
        """Settings of bottleneck adapters; the defaults are Pfeiffer's."""

        places: list[Place] = Field(default=["mlp"], min_length=1)
        """Branches that have one: `attention`, `cross` (attention to a source), `mlp`; Houlsby has all of them."""
        parallel: bool = False
        """Beside the branch, reading what enters the block, instead of behind it."""
        reduction: float | None = Field(16.0, gt=0)
        """Width of the model divided by that of the bottleneck."""
        width: int | None = Field(None, ge=1)
        """Width of the bottleneck, instead of `reduction`."""
        activation: Activation = "relu"
        """Non-linearity of the bottleneck."""
        reads: Literal["auto", "branch", "sum"] = "auto"
        """A sequential one reads the output of the branch, or its (normalised) sum with the residual stream; auto: the
        sum where only the MLP has one, as Pfeiffer, else the branch, as Houlsby."""
        scale: float | Literal["learned", "channel"] = 1.0
        """Factor of the output; `learned` trains one factor, `channel` one for each dimension."""
        norm_before: bool = False
        """A norm of its own before the bottleneck."""
        norm_after: bool = False
        """A norm of its own behind the bottleneck."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Of the output, in training."""
        init: Literal["zero", "bert", "houlsby"] = "zero"
        """First values: `zero` leaves the model as it was; the others are normal with deviation 0.02 and 0.01."""
        leave_out: list[int] = Field(default_factory=list)
        """Numbers of blocks without adapters; of an encoder-decoder, those of the encoder come first."""
        stack_on: list[str] = Field(default_factory=list)
        """Folders of adapters of the same base that stand before it and stay frozen."""

        @model_validator(mode="after")
        def _one_width(self) -> BottleneckAdapters.Config:
            if self.width is not None and "reduction" in self.model_fields_set and self.reduction is not None:
                raise ConfigError("width and reduction both say how narrow the bottleneck is", fix="give one of them")
            if self.width is None and self.reduction is None:
                raise ConfigError("the bottleneck has no width", fix="give reduction or width")
            return self

    config: Config
    peft_type = "BOTTLENECK"

    def __init__(self, config: BottleneckAdapters.Config) -> None:
        from trivium.models.adapted import Rows

        super().__init__(config)
        self._rows = Rows()
        self.residual_before_norm = False

    @property
    def rows(self) -> Any:
        return self._rows

    def install(self, model: Transformer, *, seed: int) -> None:
        """A bottleneck in each slot that is called for."""
        from trivium.models.adapter_folder import put_adapter
        from trivium.models.bottleneck import Bottleneck, slot, start

        for folder in self.config.stack_on:
            put_adapter(model, folder, frozen=True)
        form, like = self.form(model), next(model.parameters())
        for name, block, where in self.sites(model):
            own = Bottleneck(model.config.hidden_size, form, self._rows)
            start(own, self.config.init, seed=seed, name=f"{name}.{where}.{self.name}", like=like)
            slot(block, where).adapters[self.name] = own

    def sites(self, model: Transformer) -> list[tuple[str, Any, str]]:
        """The places that have one; ConfigError where the settings name none."""
        from trivium.models.bottleneck import sites

        everything = list(sites(model))
        blocks = list(dict.fromkeys(name for name, _, _ in everything))
        if unknown := [number for number in self.config.leave_out if not -len(blocks) <= number < len(blocks)]:
            raise ConfigError(
                "there is no such block",
                where=f"{self.where}.leave_out",
                value=unknown,
                fix=f"blocks are 0 to {len(blocks) - 1}",
            )
        if "cross" in self.config.places and not any(where == "cross" for _, _, where in everything):
            raise ConfigError(
                "the model has no attention to a source",
                where=f"{self.where}.places",
                value="cross",
                fix="use attention and mlp",
            )
        out = {blocks[number] for number in self.config.leave_out}
        return [site for site in everything if site[2] in self.config.places and site[0] not in out]

    def form(self, model: Transformer) -> Any:
        """The settings as the bottlenecks take them."""
        from trivium.models.bottleneck import Form

        config = self.config
        sums = config.places == ["mlp"] if config.reads == "auto" else config.reads == "sum"
        return Form(
            inner=config.width or max(1, int(model.config.hidden_size // (config.reduction or 1))),
            activation=config.activation,
            parallel=config.parallel,
            reads_sum=sums and not config.parallel,
            norm_before=config.norm_before,
            norm_after=config.norm_after,
            residual_before_norm=self.residual_before_norm,
            scale=config.scale,
            dropout=config.dropout,
        )

    def remove(self, model: Transformer) -> None:
        from trivium.models.bottleneck import take_off

        take_off(model, self.name)

    def settings(self, model: Transformer) -> dict[str, Any]:
        """AdapterHub's configuration."""
        from trivium.models.adapterhub import write_bottleneck

        form = self.form(model)
        return write_bottleneck(self.name, model, asdict(form), self.config.model_dump())

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Under AdapterHub's names."""
        return {file: weights[own] for file, own in self.names(model)}

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`."""
        from trivium.models.adapterhub import renamed

        own = renamed(tensors, self.name)
        missing = [file for file, _ in self.names(model) if file not in own]
        if missing:
            raise ModelError("the adapter lacks a tensor", where=self.where, value=missing[0])
        return {name: own[file] for file, name in self.names(model)}

    def names(self, model: Transformer) -> list[tuple[str, str]]:
        """(name in the file, name here) of each parameter."""
        from trivium.models.adapterhub import bottleneck_names

        return bottleneck_names(model, self.name, self.added)

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """The adapter that AdapterHub stored."""
        from trivium.models.adapterhub import read_bottleneck

        settings, residual_before_norm = read_bottleneck(raw)
        self = cls(cls.Config(**settings))
        self.residual_before_norm = residual_before_norm
        return self
