"""Linear layers whose weights are kept in eight or four bits and become floating point when they are used.

    int8   w ~ scale[o] * q                    q from -127 to 127, one scale a row (of the largest number in it)
    nf4    w ~ scale[o, block] * CODE[q]       q from 0 to 15, blocks of 64 inputs; two q in a byte

The scales of nf4 are kept in eight bits as well: mean + group scale * q / 127, groups of 256 scales. That makes 4.13
bits a weight. The code has the quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E).

Neither the weight in floating point nor the input is kept for the backward pass: the weight is made again.

Shapes: T tokens, I inputs, O outputs, N blocks of a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trivium.errors import TriviumError
from trivium.models import kernels, products
from trivium.models.adapted import AdaptedLinear
from trivium.models.layers import Linear

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

Kind = Literal["int8", "nf4"]
BLOCK, GROUP = 64, 256


def normal_code() -> Tensor:
    """[16] float32 from -1 to 1: quantiles of the normal distribution, half of the code on either side of 0.

    Seven steps below zero and eight above, each side evenly spaced in probability up to the quantile
    1 - (1/30 + 1/32) / 2, and the whole divided by its largest value.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])
    code = torch.cat([below, above, torch.zeros(1, dtype=torch.float64)]).sort().values
    return (code / code.max()).float()


class QuantizedLinear(AdaptedLinear):
    """A frozen linear layer with few bits.

    weight: codes, [O, I] int8 or [O, I/2 rounded up] uint8. dense_dtype: of the weight that it was made from.
    exact:  that weight, while adapters that start from the difference are installed.
    direct: whether, without gradients, the codes are multiplied as they are (`quantize_weights`).
    """

    direct = False

    kind: Kind
    dense_dtype: torch.dtype
    exact: Tensor | None
    scale: Tensor
    group_scale: Tensor
    scale_mean: Tensor
    code: Tensor

    def base(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        if self.direct and not torch.is_grad_enabled() and kernels.int8_products():
            return kernels.int8_linear(x, self.weight, self.scale, self.bias)
        result: Tensor = _Product.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
        return result

    def dense_weight(self) -> Tensor:
        """[O, I] in floating point."""
        if self.kind == "int8":
            return (self.weight * self.scale[:, None]).to(self.dense_dtype)
        blocks = math.ceil(self.in_features / BLOCK)
        groups = self.group_scale.repeat_interleave(GROUP)[: self.scale.numel()]
        scales = (self.scale * (groups / 127) + self.scale_mean).view(self.out_features, blocks)
        codes = torch.stack([self.weight >> 4, self.weight & 15], dim=-1).flatten(1)[:, : self.in_features]
        values = self.code[codes.int()]
        if self.in_features % BLOCK:
            values = F.pad(values, (0, blocks * BLOCK - self.in_features))
        values = values.view(self.out_features, blocks, BLOCK).mul_(scales[:, :, None])
        return values.flatten(1)[:, : self.in_features].to(self.dense_dtype)

    def make_dense(self, weight: Tensor | None = None) -> None:
        """Becomes a layer in floating point, with this weight or its own; adapters stay."""
        dense = self.dense_weight() if weight is None else weight
        for name in [*self._buffers]:
            delattr(self, name)
        self.weight = nn.Parameter(dense.to(self.dense_dtype).contiguous(), requires_grad=False)
        for name in ("kind", "exact", "dense_dtype"):
            delattr(self, name)
        self.__class__ = AdaptedLinear if self.branches else Linear  # type: ignore[assignment]
        if not self.branches:
            del self.branches


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return products.linear(x, layer.dense_weight().to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        wants_x, wants_bias, _ = ctx.needs_input_grad
        weight = ctx.layer.dense_weight().to(grad.dtype) if wants_x else None
        to_x = None if weight is None else products.product(grad, weight).to(ctx.dtype)
        return to_x, grad.sum(0) if wants_bias else None, None


def quantize(layer: nn.Module, kind: Kind) -> None:
    """Turns a plain linear layer into one with few bits, in place."""
    assert type(layer) is Linear, "only a plain linear layer can be quantised"
    weight = layer.weight.detach()
    made = {"int8": int8_codes, "nf4": _nf4}[kind](weight)
    layer.__class__ = QuantizedLinear
    assert isinstance(layer, QuantizedLinear)
    layer.branches = nn.ModuleDict()
    layer.kind, layer.dense_dtype, layer.exact = kind, weight.dtype, weight
    layer.weight = nn.Parameter(made.pop("weight"), requires_grad=False)
    for name, tensor in made.items():
        layer.register_buffer(name, tensor)


def quantize_weights(model: Transformer, kind: str) -> None:
    """Keeps the linear layers of all blocks in eight bits, for generation on a CPU; training them is over.

    Where the processor can, the inputs are rounded too and whole numbers multiplied (`kernels.int8_linear`).
    The embedding stays; a copy of the output layer in eight bits is made when text is generated.
    """
    if kind != "int8":
        raise TriviumError("there are no such weights", where="weights", value=kind, fix="use int8")
    if any(isinstance(part, AdaptedLinear) for part in model.modules()):
        raise TriviumError(
            "weights in eight bits are made of a plain model, not of one with adapters",
            where="weights",
            value=kind,
            fix="merge the adapters first (trivium merge), or leave weights out",
        )
    weights = list(model.parameters())
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        raise TriviumError(
            "weights in eight bits are made of float32 on a CPU",
            where="weights",
            value=f"{weights[0].dtype} on {weights[0].device}".removeprefix("torch."),
            fix="use device cpu and dtype float32, or leave weights out",
        )
    for name, layer in model.named_modules():
        if type(layer) is Linear and not name.startswith("head.") and not name.endswith(".router"):
            quantize(layer, "int8")
            assert isinstance(layer, QuantizedLinear)
            layer.exact, layer.direct = None, True


def int8_codes(weight: Tensor) -> dict[str, Tensor]:
    """`weight` [O, I] as codes and `scale` [O]."""
    wide = weight.float()
    scale = wide.abs().amax(1) / 127
    codes = torch.round(wide / scale.clamp(min=1e-30)[:, None]).to(torch.int8)
    return {"weight": codes, "scale": scale}


def _nf4(weight: Tensor) -> dict[str, Tensor]:
    outputs, inputs = weight.shape
    count = math.ceil(inputs / BLOCK)
    blocks = F.pad(weight.float(), (0, count * BLOCK - inputs)).view(outputs, count, BLOCK)
    largest = blocks.abs().amax(2).flatten()
    mean = largest.mean()
    grouped = F.pad(largest - mean, (0, -largest.numel() % GROUP)).view(-1, GROUP)
    group_scale = grouped.abs().amax(1)
    scale = torch.round(grouped / group_scale.clamp(min=1e-30)[:, None] * 127).to(torch.int8)
    scale = scale.flatten()[: largest.numel()].clone()
    code = normal_code().to(weight.device)
    # Codes are chosen for the scales as they will be read again.
    read = scale * (group_scale.repeat_interleave(GROUP)[: scale.numel()] / 127) + mean
    shares = blocks / read.view(outputs, count, 1).clamp(min=1e-30)
    codes = torch.bucketize(shares, (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8).flatten(1)[:, :inputs]
    codes = F.pad(codes, (0, inputs % 2))
    packed = (codes[:, ::2] << 4) | codes[:, 1::2]
    return {"weight": packed, "scale": scale, "group_scale": group_scale, "scale_mean": mean, "code": code}


def dense_weight(layer: nn.Module) -> Tensor:
    """[O, I] weight of any linear layer in floating point."""
    weight = layer.dense_weight() if isinstance(layer, AdaptedLinear) else layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def in_eight_bits(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Codes [O, I] and scale [O] of a layer of eight bits, or of what is made of another one."""
    if isinstance(layer, QuantizedLinear) and layer.kind == "int8":
        return layer.weight.detach(), layer.scale.detach()
    made = int8_codes(dense_weight(layer))
    return made["weight"], made["scale"]


def quantized_layers(model: Transformer) -> dict[str, QuantizedLinear]:
    """The layers with few bits, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def share_quantized(source: Transformer, model: Transformer) -> None:
    """Gives `model`, built without values, the layers with few bits of `source`: the same memory, no adapters."""
    for name, layer in quantized_layers(source).items():
        own = model.get_submodule(name)
        own.__class__ = QuantizedLinear
        assert isinstance(own, QuantizedLinear)
        own.branches = nn.ModuleDict()
        own.kind, own.dense_dtype, own.exact = layer.kind, layer.dense_dtype, None
        own.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        for kind, tensor in layer.named_buffers(recurse=False):
            own.register_buffer(kind, tensor)
