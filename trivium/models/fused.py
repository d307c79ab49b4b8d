"""Blocks in fewer operations, for forward passes without gradients: on a CPU, and on a GPU as CUDA graphs.

A step of decoding is some hundred small operations, and what each of them costs beside its arithmetic is half of the
time of a small model. Where the machine can compile it, one call does all of them (`native_blocks.py`). Else the
weights that read the same input lie side by side and are one product; the activation, the other factor of a gated MLP
and the residual sum are done inside the product before them; and the weights are kept once more, in the order in which
oneDNN reads them fastest. On a GPU a step is one launch (`graphs.py`). The results are those of the plain blocks, up to
rounding.

Shapes: T tokens, D width, I inputs, O outputs, H query heads, K key/value heads, C width of one head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trivium.models import kernels
from trivium.models.graphs import graphed
from trivium.models.heads import LanguageHead
from trivium.models.layers import Attention, Block, GatedMLP, Linear, PlainMLP, joined_bias
from trivium.models.native_blocks import NativeBlocks, NativeProduct, decoder
from trivium.models.products import PLAIN
from trivium.models.quantized import QuantizedLinear, dense_weight, in_eight_bits

if TYPE_CHECKING:
    from trivium.models.attention import Plan
    from trivium.models.transformer import Transformer

_MOST_BYTES = 1 << 30
"""Weights of a larger model are not kept twice; its blocks stay plain."""
_POINTWISE: dict[str, tuple[str, str]] = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
"""oneDNN's names of the activations, and of how they are computed."""


class Product:
    """x W^T + b of one or several linear layers that read the same x."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weight = torch.cat([dense_weight(layer) for layer in layers])
        self.bias = joined_bias(layers)
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        """[T, I] -> [T, O], through the activation."""
        name, way = _POINTWISE[activation] if activation else ("none", "")
        made: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, name, [], way)
        return made

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x W^T + b + other [T, O]."""
        made: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return made

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other [T, O]."""
        made: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return made


class GatedProduct:
    """The gate and the other factor of an MLP."""

    def __init__(self, mlp: GatedMLP) -> None:
        self.gate, self.up = Product([mlp.gate]), Product([mlp.up])

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """activation(gate) * other."""
        return self.up.times(x, self.gate(x, activation))


class Int8Product:
    """The same of weights in eight bits (`trivium.models.quantized`)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.codes, self.scale = map(torch.cat, zip(*map(in_eight_bits, layers), strict=True))
        self.bias = joined_bias(layers)

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        """[T, I] -> [T, O], through the activation."""
        made = kernels.int8_linear(x, self.codes, self.scale, self.bias)
        return kernels.ACTIVATIONS[activation](made) if activation else made

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x W^T + b + other [T, O]."""
        return self(x).add_(other)

    def gated(self, x: Tensor, activation: str) -> Tensor:
        """Of a gate and another factor side by side: activation(gate) * other."""
        gate, other = self(x).chunk(2, dim=1)
        return kernels.gated(gate, other, activation)


class FusedBlock:
    """What `Block.forward` computes."""

    def __init__(self, block: Block, activation: str) -> None:
        attention, mlp = block.attention, block.mlp
        self.slides, self.attention = block.slides, attention
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        self.queries = attention.query.out_features // attention.head_dim
        self.keys = attention.key.out_features // attention.head_dim
        product = Int8Product if isinstance(attention.query, QuantizedLinear) and kernels.int8_products() else Product
        self.together = product([attention.query, attention.key, attention.value])
        self.output = product([attention.output])
        assert isinstance(mlp, (GatedMLP, PlainMLP))
        self.gated = isinstance(mlp, GatedMLP)
        if isinstance(mlp, GatedMLP):
            self.up: Product | GatedProduct | Int8Product
            self.up = Int8Product([mlp.gate, mlp.up]) if product is Int8Product else GatedProduct(mlp)
        else:
            self.up = product([mlp.up])
        self.down = product([mlp.down])
        self.activation = activation

    def __call__(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, D]."""
        hidden = self.output.plus(self._attended(self.attention_norm(hidden), plan), hidden)
        normed = self.mlp_norm(hidden)
        inner = (self.up.gated if self.gated else self.up)(normed, self.activation)  # type: ignore[union-attr, operator]
        return self.down.plus(inner, hidden)

    def _attended(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, H * C], what the output layer reads."""
        attention = self.attention
        layers = plan.sliding if self.slides else plan.full
        assert layers is not None
        made = self.together(hidden).view(len(hidden), -1, attention.head_dim)
        turned, value = torch.split(made, [self.queries + self.keys, self.keys], dim=1)
        if attention.query_norm is not None:
            query, key = (part.flatten(1) for part in torch.split(turned, [self.queries, self.keys], dim=1))
            query, key = attention.heads(query, attention.query_norm), attention.heads(key, attention.key_norm)
            turned = torch.cat((query, key), dim=1)
        if layers.rotary is not None and attention.turns:
            turned = attention.rotate(turned, *layers.rotary)
        query, key = torch.split(turned, [self.queries, self.keys], dim=1)
        return layers.attend(query, key, value, layer=attention.layer, dropout=0.0).flatten(1)


class FusedBlocks:
    """All blocks one after the other, fused where that can be."""

    def __init__(self, model: Transformer) -> None:
        self.blocks = [
            FusedBlock(cast("Block", block), model.config.activation) if kernels.onednn() and _fusible(block) else block
            for block in model.blocks
        ]

    def __call__(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, D]."""
        for block in self.blocks:
            hidden = block(hidden, plan)
        return hidden


@dataclass(frozen=True)
class Fused:
    """What runs instead of the blocks; `made_of`: the weights and kinds of layers it was made of."""

    made_of: tuple[Any, ...]
    blocks: NativeBlocks | FusedBlocks
    head: Product | Int8Product | NativeProduct | None


_KEPT: WeakKeyDictionary[Transformer, Fused] = WeakKeyDictionary()


@contextmanager
def fused(model: Transformer, *, keep: bool) -> Iterator[None]:
    """Inside, forward passes without gradients run fused blocks or captured steps where there are any.

    keep: for the next time, which costs memory; they are made anew when the weights have changed.
    """
    steps = graphed(model, keep=keep)
    if steps is not None:
        model.stepper = steps
        try:
            yield
        finally:
            model.stepper = None
        return
    weights = list(model.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    whole = all(type(weight) in PLAIN and weight.device.type == "cpu" for weight in weights)
    if size > _MOST_BYTES or not whole or not (kernels.onednn() or _native()):
        yield
        return
    state = _state(model)
    found = _KEPT.get(model)
    if found is None or found.made_of != state:
        with torch.no_grad():
            found = _fuse(model, state)
    if keep:
        _KEPT[model] = found
    model.fused, model.head.fused = found.blocks, found.head
    try:
        yield
    finally:
        model.fused = model.head.fused = None


def _state(model: Transformer) -> tuple[Any, ...]:
    """Changes when a weight is written or replaced, or a layer becomes one of another kind."""
    weights = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in model.parameters()]
    return (*weights, *(type(part) for part in model.modules()))


def _native() -> bool:
    """Whether there is a kernel for all blocks, and nothing asks for other types."""
    return decoder() is not None and not torch.is_autocast_enabled("cpu")


def _fuse(model: Transformer, state: tuple[Any, ...]) -> Fused:
    native = _native() and all(NativeBlocks.suits(block, model.config) and _usual(block) for block in model.blocks)
    return Fused(state, NativeBlocks(model) if native else FusedBlocks(model), _fuse_head(model, native=native))


def _fuse_head(model: Transformer, *, native: bool) -> Product | Int8Product | NativeProduct | None:
    """The output layer; in eight bits where the blocks are."""
    head = model.head
    if type(head) is not LanguageHead or head.weight.dtype != torch.float32:
        return None
    eight = any(_direct(part) for part in model.modules())
    if native:
        return NativeProduct.of(head, eight=eight)
    if not kernels.onednn():
        return None
    return (Int8Product if eight and kernels.int8_products() else Product)([head])


def _fusible(block: nn.Module) -> bool:
    """Whether `FusedBlock` computes what a block does."""
    if type(block) is not Block or block.cross is not None or block.slots is not None or block.mlp is None:
        return False
    after = (block.attention_output_norm, block.mlp_output_norm)
    return type(block.attention) is Attention and all(type(norm) is nn.Identity for norm in after) and _usual(block)


def _usual(block: nn.Module) -> bool:
    """Whether its weights are plain, or all quantised for generation."""
    linear = [part for part in block.modules() if isinstance(part, nn.Linear)]
    plain = all(type(part) is Linear and part.weight.dtype == torch.float32 for part in linear)
    return plain or all(_direct(part) for part in linear)


def _direct(layer: nn.Module) -> bool:
    """Whether the layer was quantised for generation."""
    return isinstance(layer, QuantizedLinear) and layer.direct and not layer.branches
