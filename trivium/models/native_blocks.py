"""A step of decoding in one call of our kernel in C.

For a few tokens a forward pass is some hundred small operations that each cost more than their arithmetic. `decode.c`
goes through all blocks in one call and reads every weight once. Where it cannot be compiled (`trivium.models.native`)
the blocks of `trivium.models.fused` run.

Results are those of the plain blocks up to rounding; with weights in eight bits they are closer to those in floating
point, since the inputs are not rounded. A row does not depend on its company.

Shapes: T tokens, D width, I inputs, O outputs, H query heads, K key/value heads, C width of one head.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.models.attention import CachedAttention, LayerPlan, Plan
from trivium.models.config import ModelConfig
from trivium.models.layers import Attention, Block, GatedMLP, LayerNorm, ParallelBlock, PlainMLP, RMSNorm, joined_bias
from trivium.models.native import checked, library, pointer
from trivium.models.native_elementwise import ACTIVATIONS
from trivium.models.quantized import QuantizedLinear, dense_weight, in_eight_bits

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer

_NORMS = ("attention_norm", "mlp_norm", "attention_output_norm", "mlp_output_norm")
"""Of a block; some have only two of them."""
_MOST_TOKENS = 256
"""Of a call; for more of them torch's products are as fast."""


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in _NORMS),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm")),
        *((name, _Product) for name in ("together", "output", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "keys", "values")),
        ("window", ctypes.c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "queries", "key_heads", "head", "turned", "room")),
        *((name, ctypes.c_int64) for name in ("whole_heads", "rms", "activation", "parallel")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "softcap")),
        ("layer", ctypes.c_void_p),
    )


@cache
def decoder() -> ctypes.CDLL | None:
    """The kernel; None where it cannot be had, or does not compute what it should."""
    return checked(_library(), _right)


@cache
def _library() -> ctypes.CDLL | None:
    """The kernel, unchecked."""
    loaded = library()
    if loaded is None:
        return None
    address, number = ctypes.c_void_p, ctypes.c_int64
    loaded.trivium_lanes.restype = loaded.trivium_scratch.restype = number
    loaded.trivium_scratch.argtypes = [address, number, number]
    loaded.trivium_multiply.argtypes = [address, number, number, address, address]
    loaded.trivium_decode.argtypes = [address, number, number, address, address, address, address]
    return loaded


def _right() -> bool:
    """Whether its product agrees with torch's on a few numbers."""
    weight, x = torch.arange(60.0).view(20, 3).sin(), torch.arange(9.0).view(3, 3).cos()
    return torch.allclose(NativeProduct([(weight, None)], None)(x), x @ weight.t(), atol=1e-5)


def _kept(tensor: Tensor | None) -> Tensor | None:
    """As the kernel reads it."""
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous()


class NativeProduct:
    """x W^T + b of one or several linear layers that read the same x."""

    def __init__(self, weights: Sequence[tuple[Tensor, Tensor | None]], bias: Tensor | None) -> None:
        """weights: [O, I] of each layer in float32, or int8 codes with their scale [O]."""
        found = _library()
        assert found is not None
        self._library, lanes = found, found.trivium_lanes()
        whole = torch.cat([weight.detach() for weight, _ in weights])
        scales = [scale.detach() for _, scale in weights if scale is not None]
        self.outputs, inputs = whole.shape
        blocks = math.ceil(self.outputs / lanes)
        padded = whole.new_zeros(blocks * lanes, inputs)
        padded[: self.outputs] = whole
        self._tensors = (
            padded.view(blocks, lanes, inputs).transpose(1, 2).contiguous(),
            _kept(torch.cat(scales)) if scales else None,
            _kept(bias),
        )
        self.raw = _Product(*map(pointer, self._tensors), self.outputs, inputs)

    @classmethod
    def of(cls, *layers: nn.Linear, eight: bool = False) -> NativeProduct:
        """eight: in eight bits, also where the layers are not."""
        weights: list[tuple[Tensor, Tensor | None]] = []
        for layer in layers:
            narrow = eight or (isinstance(layer, QuantizedLinear) and layer.kind == "int8")
            weights.append(in_eight_bits(layer) if narrow else (dense_weight(layer), None))
        return cls(weights, joined_bias(layers))

    def __call__(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        x = x.contiguous()
        made = x.new_empty(x.shape[0], self.outputs)
        threads = torch.get_num_threads()
        self._library.trivium_multiply(ctypes.addressof(self.raw), threads, x.shape[0], x.data_ptr(), made.data_ptr())
        return made


class NativeBlocks:
    """All blocks of a decoder; the plain ones where the kernel does not suit."""

    def __init__(self, model: Transformer) -> None:
        """Of a model whose blocks all suit."""
        found = decoder()
        assert found is not None
        self._library, config = found, model.config
        self.blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._kept: list[object] = []  # what the kernel has pointers to
        self._layers = (_Layer * len(self.blocks))()
        for layer, block in zip(self._layers, self.blocks, strict=True):
            self._fill(layer, block)
        self._model = _Model(
            layers=len(self.blocks),
            width=config.hidden_size,
            queries=config.num_heads,
            key_heads=config.num_kv_heads,
            head=config.head_dim,
            turned=config.rotary_dim,
            whole_heads=config.query_key_norm != "head",
            rms=config.norm == "rmsnorm",
            activation=ACTIVATIONS.index(config.activation),
            parallel=config.parallel != "none",
            eps=config.norm_eps,
            softcap=config.attention_softcap or 0.0,
            scale=config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        )

    @staticmethod
    def suits(block: nn.Module, config: ModelConfig) -> bool:
        """Whether the kernel computes what the block does: it has its parts in shapes and with norms that are known."""
        if type(block) not in (Block, ParallelBlock) or config.activation not in ACTIVATIONS:
            return False
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        if block.cross is not None or block.slots is not None or type(mlp) not in (GatedMLP, PlainMLP):
            return False
        assert isinstance(mlp, GatedMLP | PlainMLP)
        widths = (
            (attention.query, config.num_heads * config.head_dim),
            (attention.key, config.num_kv_heads * config.head_dim),
            (mlp.up, config.intermediate_size),
        )
        return (
            type(attention) is Attention
            and all(type(getattr(block, name)) in (RMSNorm, LayerNorm, nn.Identity, NoneType) for name in _NORMS)
            and all(layer.out_features == width for layer, width in widths)
        )

    def _fill(self, layer: _Layer, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        assert isinstance(mlp, GatedMLP | PlainMLP)
        products = {
            "together": NativeProduct.of(attention.query, attention.key, attention.value),
            "output": NativeProduct.of(attention.output),
            "up": NativeProduct.of(mlp.up),
            "down": NativeProduct.of(mlp.down),
        }
        if isinstance(mlp, GatedMLP):
            products["gate"] = NativeProduct.of(mlp.gate)
        for name, product in products.items():
            setattr(layer, name, product.raw)
        for name in _NORMS:
            norm = getattr(block, name)
            if norm is None:  # both branches have the first one
                norm = block.attention_norm
            if not isinstance(norm, nn.Identity):
                setattr(layer, name, self._norm(norm))
        if attention.query_norm is not None and attention.key_norm is not None:
            layer.query_norm = self._norm(attention.query_norm).weight
            layer.key_norm = self._norm(attention.key_norm).weight
        self._kept.append(products)

    def _norm(self, norm: nn.Module) -> _Norm:
        assert isinstance(norm, RMSNorm | LayerNorm)
        weight = norm.weight.detach() + norm.offset if isinstance(norm, RMSNorm) else norm.weight
        parts = _kept(weight), None if isinstance(norm, RMSNorm) else _kept(norm.bias)
        self._kept.append(parts)
        return _Norm(*map(pointer, parts))

    def __call__(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, D]."""
        plans = [layers for layers in (plan.full, plan.sliding) if layers is not None]
        if not all(_suits(layers, hidden) for layers in plans):
            for block in self.blocks:
                hidden = block(hidden, plan)
            return hidden
        attend = plans[0].attend
        assert isinstance(attend, CachedAttention)
        # Copies, since another thread may be under way with the same model.
        rows, model = type(self._layers).from_buffer_copy(self._layers), _Model.from_buffer_copy(self._model)
        for layer, block in zip(rows, self.blocks, strict=True):
            layers = plan.sliding if block.slides else plan.full
            assert layers is not None and isinstance(layers.attend, CachedAttention)
            turns = layers.rotary if block.attention.turns else None
            layer.cosine, layer.sine = (None, None) if turns is None else map(pointer, turns)
            layer.keys = attend.cache.keys[block.attention.layer].data_ptr()
            layer.values = attend.cache.values[block.attention.layer].data_ptr()
            layer.window = layers.attend.pattern.window or 0
        model.layer, model.room = ctypes.addressof(rows), attend.cache.keys[0].shape[2]
        tokens, threads, where = len(hidden), torch.get_num_threads(), ctypes.addressof(model)
        scratch = hidden.new_empty(self._library.trivium_scratch(where, threads, tokens))
        made = hidden.clone(memory_format=torch.contiguous_format)
        owners, places = attend.layout.sequence_ids(hidden.device), plan.positions.contiguous()
        self._library.trivium_decode(
            *(where, threads, tokens, made.data_ptr()), *(owners.data_ptr(), places.data_ptr(), scratch.data_ptr())
        )
        return made


def _suits(layers: LayerPlan, hidden: Tensor) -> bool:
    """Whether tokens look at a cache as the kernel does."""
    attend = layers.attend
    return (
        isinstance(attend, CachedAttention)
        and attend.pattern.causal
        and attend.pattern.bias is None
        and 0 < len(hidden) <= _MOST_TOKENS
        and hidden.dtype == attend.cache.keys[0].dtype == torch.float32
    )
