"""A step of decoding that depends on nothing but the content of tensors which stay where they are.

A CUDA graph replays the same kernels on the same memory (`trivium.models.graphs`). So what changes from step to step
lies in `Memory`: keys and values of all rows, which token each row reads, and how many it holds. Where a row looks is
a mask made from these lengths on the device; attention always goes over the same places. The results are those of the
cached forward pass up to rounding.

Shapes: R rows, D width, H query heads, K key/value heads, C width of one head, N places of a row that are looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.models import rotary
from trivium.models.attention import LayerPlan, Pattern, Plan, attend_heads
from trivium.models.cache import KVCache
from trivium.models.layers import Block, Embedding, Linear, ParallelBlock, PostNormBlock
from trivium.models.products import PLAIN

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer


class Memory:
    """What a step reads and writes.

    keys, values: [R, K, N, C] for each layer. ids: [R] the token that each row reads. lengths: [R] tokens before it.
    angles: cosine and sine at every position, for layers that see everything (False) or a window (True).
    expected: what `lengths` holds for the rows in use, so that nobody has to ask the device.
    """

    def __init__(self, model: Transformer, like: Tensor, *, rows: int, width: int) -> None:
        """like: keys of one layer of a cache that is to move in."""
        layers, device = range(len(model.blocks)), like.device
        shape = (rows, like.shape[1], width, like.shape[3])
        # Zeros: a number that is masked out must still be one.
        self.keys, self.values = ([like.new_zeros(shape) for _ in layers] for _ in range(2))
        self.ids, self.lengths = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.angles: dict[bool, tuple[Tensor, Tensor]] = {}
        self.expected: list[int] = []
        for sliding in (False, True) if model.config.positions == "rotary" else ():
            _, rope = model.layer_kind(sliding=sliding)
            every = torch.arange(width, device=device)
            self.angles[sliding] = rotary.cos_sin(model.config, rope, every, layout=Layout((width,)), totals=[width])

    def fits(self, cache: KVCache) -> bool:
        """Whether the cache can move in."""
        mine, new = self.keys[0], cache.keys[0]
        same = (mine.dtype, mine.shape[1], mine.shape[3]) == (new.dtype, new.shape[1], new.shape[3])
        return same and cache.rows <= mine.shape[0] and cache.max_length <= mine.shape[2]

    def holds(self, cache: KVCache | None) -> bool:
        """Whether the cache is in here."""
        return cache is not None and cache.keys[0] is self.keys[0]

    def take(self, cache: KVCache) -> None:
        """The cache moves in; what an earlier one left, which may not even be numbers, goes."""
        for stored in (*self.keys, *self.values):
            stored.zero_()
        cache.move(self.keys, self.values)
        self.expected = []

    def read(self, ids: Tensor, lengths: list[int]) -> None:
        """What the next step reads. Lengths are counted on the device and sent only when they are others."""
        self.ids[: len(ids)].copy_(ids)
        if self.expected != lengths:
            # Rows that are not in use begin at 0, so they never hold more than the others.
            self.lengths.copy_(torch.tensor([*lengths, *[0] * (len(self.lengths) - len(lengths))]))

    def count(self, lengths: list[int]) -> None:
        """After a step of rows of these lengths."""
        self.lengths.add_(1)
        self.expected = [length + 1 for length in lengths]


class StaticAttention:
    """The tokens of one step, one of each row, look at the memory, in which their keys and values are stored.

    mask: [R, 1, 1, N] what is added to the scores.
    """

    compiles = False

    def __init__(self, memory: Memory, pattern: Pattern, *, rows: int, width: int, dtype: torch.dtype) -> None:
        self.memory, self.pattern, self.rows, self.width = memory, pattern, rows, width
        device, self.lengths = memory.lengths.device, memory.lengths[:rows]
        self.every = torch.arange(rows, device=device)
        places, last = torch.arange(width, device=device), self.lengths[:, None]
        seen = places <= last
        if pattern.window is not None:
            seen = seen & (places > last - pattern.window)
        # As numbers, since each layer would turn truth values into them again.
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)
        self.mask = mask[:, None, None, :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """See `Attend`; T = R."""
        seen = []
        for store, new in ((self.memory.keys[layer], key), (self.memory.values[layer], value)):
            store[self.every, :, self.lengths] = new.to(store.dtype)
            seen.append(store[: self.rows, :, : self.width].to(query.dtype))
        # Heads that share keys stand where the queries of one head do, so that no kernel repeats the cache for them.
        together = query.reshape(self.rows, seen[0].shape[1], -1, query.shape[2])
        mixed = attend_heads(together, *seen, mask=self.mask, pattern=self.pattern, dropout=0.0, causal=False)
        return mixed.reshape(query.shape)


def static_step(model: Transformer, memory: Memory, *, rows: int, width: int) -> Tensor:
    """[R, D] final hidden states after the next token of each of the first `rows` rows; fills their next places.

    width: N, more than the largest of their lengths.
    """
    lengths = memory.lengths[:rows]
    hidden = model.embed_inputs(memory.ids[:rows], lengths)

    def layer_plan(*, sliding: bool) -> LayerPlan:
        angles = None
        if sliding in memory.angles:
            cos, sin = (each.index_select(0, lengths).to(hidden.dtype) for each in memory.angles[sliding])
            angles = cos, sin
        pattern, _ = model.layer_kind(sliding=sliding)
        return LayerPlan(angles, StaticAttention(memory, pattern, rows=rows, width=width, dtype=hidden.dtype))

    kinds = {model.config.slides(layer) for layer in range(len(model.blocks))}
    full, sliding = (layer_plan(sliding=kind) if kind in kinds else None for kind in (False, True))
    result: Tensor = model.final_norm(model.run_blocks(hidden, Plan(lengths, full, sliding), model.blocks))
    return result


def unsuited(model: Transformer) -> str:
    """What of a model a static step would not do, or a captured one not notice when it changes; empty for nothing."""
    config, weights = model.config, list(model.parameters())
    layers = [part for stack in (model.blocks, model.embed) for part in stack.modules()]
    layers = [part for part in layers if isinstance(part, nn.Linear | nn.Embedding)]
    adapted = any(type(layer) not in (Linear, Embedding) for layer in layers)
    reasons = {
        f"it is an {config.kind}": config.kind != "decoder",
        "the processor routes its tokens to experts": bool(config.experts),
        f"its positions are {config.positions}": config.positions not in ("rotary", "learned", "none"),
        "its angles depend on lengths": any(
            rotary.depends_on_length(rope) for rope in (config.rope, config.local_rope) if rope is not None
        ),
        "it has virtual tokens": bool(model.prompts),
        "it has adapted or quantised layers": adapted or any(block.slots is not None for block in model.all_blocks),
        "its blocks are not known": any(
            type(block) not in (Block, PostNormBlock, ParallelBlock) for block in model.blocks
        ),
        "its weights are divided": any(type(weight) not in PLAIN for weight in weights)
        or len({weight.device for weight in weights}) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
