"""Bottleneck adapters: small networks on the output of attention, cross-attention or the MLP of a block.

Each of these has a *slot* where adapters stand one after the other, or are fused. A slot changes what the branch adds
to the residual stream:

    sequential  added + scale * up(act(down(x)))      x: added itself, or the norm of added + stream
    parallel    added + scale * up(act(down(stream)))

Sequential: Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2021 (arXiv 2005.00247); parallel: He et al. 2022
(arXiv 2110.04366). Names of parts and places follow AdapterHub's `adapters`, whose files are read and written.

Shapes: T tokens, D width, N adapters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from trivium.models import kernels
from trivium.models.adapted import Rows, chosen
from trivium.models.build import parameter_stream
from trivium.models.layers import Block, Linear

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

Where = Literal["attention", "cross", "mlp"]
ACTIVATIONS = {**kernels.ACTIVATIONS, "tanh": torch.tanh, "leaky_relu": nn.functional.leaky_relu}


@dataclass(frozen=True)
class Form:
    """What all bottlenecks of one adapter have in common.

    reads_sum: a sequential one reads the norm of (added + stream), where the block has a norm after the sum.
    scale:     a number, or "learned" for one factor and "channel" for D of them, which start at 1.
    """

    inner: int
    activation: str = "relu"
    parallel: bool = False
    reads_sum: bool = False
    norm_before: bool = False
    norm_after: bool = False
    residual_before_norm: bool = False
    scale: float | str = 1.0
    dropout: float = 0.0


class Bottleneck(nn.Module):
    """One adapter in one slot."""

    def __init__(self, width: int, form: Form, rows: Rows) -> None:
        super().__init__()
        self.form, self.rows = form, rows
        self.norm_before = nn.LayerNorm(width) if form.norm_before else None
        self.down, self.up = Linear(width, form.inner), Linear(form.inner, width)
        self.norm_after = nn.LayerNorm(width) if form.norm_after else None
        self.activation = ACTIVATIONS[form.activation]
        self.scale: float | nn.Parameter = 1.0
        if isinstance(form.scale, str):
            self.scale = nn.Parameter(torch.ones(width if form.scale == "channel" else 1))
        else:
            self.scale = form.scale
        self.dropout = nn.Dropout(form.dropout)

    def forward(self, added: Tensor, stream: Tensor, norm: nn.Module | None) -> Tensor:
        """[T, D]: what is added to the stream instead of `added`."""
        if not self.rows.active:
            return added
        own, beside = chosen(added, self.rows), chosen(stream, self.rows)
        made = self.make(self.reads(own, beside, norm))
        made = self.closed(made, own)
        return made if self.rows.index is None else added.index_copy(0, self.rows.index, made)

    def reads(self, added: Tensor, stream: Tensor, norm: nn.Module | None) -> Tensor:
        """[T, D], what goes into the bottleneck."""
        if self.form.parallel:
            return stream
        if not self.form.reads_sum:
            return added
        total = added + stream
        return total if norm is None else cast("Tensor", norm(total))

    def make(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D] through the bottleneck."""
        if self.norm_before is not None:
            x = self.norm_before(x)
        made: Tensor = self.dropout(self.up(self.activation(self.down(x))) * self.scale)
        return made

    def closed(self, made: Tensor, residual: Tensor) -> Tensor:
        """[T, D] with the residual connection and the norm after it."""
        if self.norm_after is None:
            return made + residual
        if self.form.residual_before_norm and not self.form.parallel:
            closed: Tensor = self.norm_after(made + residual)
            return closed
        after: Tensor = self.norm_after(made)
        return after + residual


class Fusion(nn.Module):
    """Attention of each token over what several adapters made of it (Pfeiffer et al. 2021, arXiv 2005.00247)."""

    def __init__(self, width: int, *, query_before_norm: bool, residual_in_value: bool, dropout: float) -> None:
        super().__init__()
        self.query, self.key = Linear(width, width), Linear(width, width)
        self.value = Linear(width, width, bias=False)
        self.query_before_norm, self.residual_in_value = query_before_norm, residual_in_value
        self.dropout = nn.Dropout(dropout)

    def forward(self, members: list[Bottleneck], added: Tensor, stream: Tensor, norm: nn.Module | None) -> Tensor:
        """[T, D]: what is added to the stream instead of `added`."""
        inputs = members[0].reads(added, stream, norm)
        made = torch.stack([member.make(member.reads(added, stream, norm)) for member in members], dim=1)  # [T, N, D]
        query = self.query(added if self.query_before_norm else inputs)
        value = made + added[:, None] if self.residual_in_value else made
        scores = self.dropout(torch.einsum("td,tnd->tn", query, self.key(made)))
        mixed = torch.einsum("tn,tnd->td", torch.softmax(scores, dim=-1), self.value(value))
        return mixed if self.residual_in_value else mixed + added


class Slot(nn.Module):
    """The adapters at one place of a block, in the order in which they were applied."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.fusion: Fusion | None = None
        self.fused: tuple[str, ...] = ()

    def forward(self, added: Tensor, stream: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[T, D]: what is added to the stream instead of `added`."""
        if self.fusion is not None:
            members = [cast("Bottleneck", self.adapters[name]) for name in self.fused]
            added = self.fusion(members, added, stream, norm)
        for name, adapter in self.adapters.items():
            if name not in self.fused:
                added = adapter(added, stream, norm)
        return added


def slot(block: Block, where: str) -> Slot:
    """The slot of a block, made if it has none there."""
    if block.slots is None:
        block.slots = nn.ModuleDict()
    if where not in block.slots:
        block.slots[where] = Slot()
    return cast("Slot", block.slots[where])


def sites(model: Transformer) -> Iterator[tuple[str, Block, Where]]:
    """(name of the block, block, place) of all places that can have adapters, in the order of the model."""
    for name, block in model.named_modules():
        if isinstance(block, Block):
            yield name, block, "attention"
            if block.cross is not None:
                yield name, block, "cross"
            yield name, block, "mlp"


def take_off(model: Transformer, adapter: str) -> None:
    """Removes an adapter from all slots; blocks without any are plain again."""
    for _, block, where in list(sites(model)):
        if block.slots is None or where not in block.slots:
            continue
        own = slot(block, where)
        if adapter in own.adapters:
            del own.adapters[adapter]
        if adapter in own.fused:
            own.fused = tuple(name for name in own.fused if name != adapter)
        if not own.adapters and own.fusion is None:
            del block.slots[where]
        if not block.slots:
            block.slots = None


def start(module: nn.Module, init: str, *, seed: int, name: str, like: Tensor) -> None:
    """First values, on the device of `like` and at least in float32.

    zero:    down as torch has it for linear layers, up zero: the model computes what it did (He et al. 2022).
    bert:    normal with deviation 0.02. houlsby: normal with deviation 0.01, cut at two of them. Biases are zero.
    """
    kind = torch.promote_types(like.dtype, torch.float32)
    module.to(device=like.device, dtype=kind)
    if like.device.type == "meta":
        return
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            part, _, which = path.rpartition(".")
            if part not in ("down", "up", "query", "key", "value"):
                continue
            values = torch.zeros(parameter.shape)
            stream = parameter_stream(seed, f"{name}.{path}")
            if which == "weight" and init == "zero" and part != "up":
                bound = 1 / math.sqrt(parameter.shape[1])
                values.uniform_(-bound, bound, generator=stream)
            elif which == "weight" and init == "bert":
                values.normal_(0.0, 0.02, generator=stream)
            elif which == "weight" and init == "houlsby":
                nn.init.trunc_normal_(values, 0.0, 0.01, -0.02, 0.02, generator=stream)
            parameter.copy_(values)


def file_name(block_output: str, family: str, where: str) -> str:
    """Where AdapterHub keeps the adapters of a place, from the name of its last linear layer in the file format."""
    if family in ("bert", "roberta", "electra"):
        return f"{block_output.rpartition('.')[0]}.adapters"
    if family in ("t5", "mt5"):
        return f"{'.'.join(block_output.split('.')[:-2])}.adapters"
    parts = block_output.split(".")
    layer = next(number for number, part in enumerate(parts) if part.isdigit())
    kinds = {"attention": "attention_adapters", "cross": "cross_attention_adapters", "mlp": "output_adapters"}
    return ".".join([*parts[: layer + 1], kinds[where], "adapters"])
