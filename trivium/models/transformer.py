"""The transformer all families are built from.

Components (norm, attention, MLP, positions) are chosen when the model is built, from its `ModelConfig`; `forward`
never asks which family it runs. Tokens are a flat ragged run (see `trivium.data.batch`): T tokens, no padding.

Shapes: T tokens, D width, V vocabulary, H query heads, K key/value heads, C width of one head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.errors import ModelError
from trivium.models import kernels, rotary
from trivium.models.attention import Plan, plan_attention
from trivium.models.cache import KVCache
from trivium.models.config import ModelConfig

Then = Callable[[Tensor, nn.Linear], Any]


class Linear(nn.Linear):
    """A linear layer that leaves its first values to `init_weights` or a file."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own would draw from the global random state."""


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, eps=config.norm_eps)
        self.norm_eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return kernels.rms_norm(x, self.weight, self.norm_eps)


class Embedding(nn.Embedding):
    """An embedding that leaves its first values to `init_weights` or a file."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own would draw from the global random state."""


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm of `config`, over the last dimension."""
    if config.norm == "rmsnorm":
        return RMSNorm(config)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention inside each sequence."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.attention_dropout
        bias = "attention" in config.biases
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, queries, bias=bias)
        self.key = Linear(config.hidden_size, keys, bias=bias)
        self.value = Linear(config.hidden_size, keys, bias=bias)
        self.output = Linear(queries, config.hidden_size, bias=bias)

    def forward(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, D]."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value)
        )
        if plan.rotary is not None:
            query, key = kernels.rotate(query, *plan.rotary), kernels.rotate(key, *plan.rotary)
        dropout = self.dropout if self.training else 0.0
        mixed = plan.attend(query, key, value, layer=self.layer, dropout=dropout)
        result: Tensor = self.output(mixed.flatten(1))
        return result


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = "mlp" in config.biases
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation = config.activation

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        result: Tensor = self.down(kernels.gated(self.gate(hidden), self.up(hidden), self.activation))
        return result


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = "mlp" in config.biases
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation = kernels.ACTIVATIONS[config.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        result: Tensor = self.down(self.activation(self.up(hidden)))
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = GatedMLP(config) if config.mlp == "gated" else PlainMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, plan: Plan) -> Tensor:
        """[T, D] -> [T, D]."""
        mixed: Tensor = self.dropout(self.attention(self.attention_norm(hidden), plan))
        hidden = hidden + mixed
        made: Tensor = self.dropout(self.mlp(self.mlp_norm(hidden)))
        return hidden + made


class Transformer(nn.Module):
    """A decoder: embed, blocks, final_norm, head.

    Its parameters have shapes but no memory (device "meta") until `build_model` or `load_model` gives them values.

    activation_checkpointing: keep only each block's input, and compute the rest again in the backward pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        with torch.device("meta"):
            self._build(config)
        self.tie()

    def _build(self, config: ModelConfig) -> None:
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.position_embed = (
            Embedding(config.max_positions, config.hidden_size) if config.positions == "learned" else None
        )
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = make_norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def tie(self) -> None:
        """Make the head use the embedding's weight, if the configuration says so."""
        if self.config.tie_embeddings:
            self.head.weight = self.embed.weight

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Make `weights`, by name and without a tied head, the parameters; they are not copied."""
        tied = {"head.weight": weights["embed.weight"]} if self.config.tie_embeddings else {}
        self.load_state_dict({**weights, **tied}, assign=True)
        self.tie()

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout | None = None,
        *,
        then: Then | None = None,
        cache: KVCache | None = None,
        offset: Tensor | None = None,
    ) -> Any:
        """Logits, or what `then` makes of the hidden states.

        input_ids: [B, L] for B sequences of equal length, or [T] with a `layout`.
        then:      called with the final hidden states [T, D] and the head; its result is returned. Losses go through
                   it because only inside of `forward` are the weights of a sharded model complete.
        cache:     sequence s continues row s of the cache; `layout` counts the new tokens only.
        offset:    [T, D], added to the input embeddings.
        Returns logits [B, L, V] or [T, V], or the result of `then`.
        """
        shape = input_ids.shape
        if layout is None:
            layout = Layout((shape[1],) * shape[0])
            input_ids = input_ids.reshape(-1)
        if layout.tokens != input_ids.shape[0]:
            raise ValueError(f"the layout counts {layout.tokens} tokens, input_ids has {input_ids.shape[0]}")
        plan = self.plan(layout, cache=cache, device=input_ids.device)
        hidden = self.run_blocks(self.embed_inputs(input_ids, plan.positions, offset), plan)
        if cache is not None:
            cache.advance(layout.lengths)
        hidden = self.final_norm(hidden)
        if then is not None:
            return then(hidden, self.head)
        logits = self.head(hidden)
        return logits.view(*shape, logits.shape[-1])

    def plan(self, layout: Layout, *, device: torch.device, cache: KVCache | None = None) -> Plan:
        """Everything the blocks share for tokens that lie as `layout` says: positions, angles, attention calls."""
        config = self.config
        totals, positions = list(layout.lengths), layout.positions(device)
        if cache is not None:
            totals = self._check_room(layout, cache)
            positions = positions + torch.tensor(cache.lengths, device=device)[layout.sequence_ids(device)]
        angles = None
        if config.positions == "rotary":
            angles = rotary.cos_sin(config, positions, layout=layout, totals=totals)
        elif max(totals, default=0) > config.max_positions:
            raise ModelError(
                "a sequence is longer than the model has positions",
                value=f"{max(totals)} tokens, {config.max_positions} positions",
                fix="use shorter sequences (data.sequence_length) or a model with more positions",
            )
        window = config.sliding_window
        return Plan(positions, angles, plan_attention(layout, window=window, device=device, cache=cache))

    def _check_room(self, layout: Layout, cache: KVCache) -> list[int]:
        """Length of each row after this forward pass."""
        if layout.sequences != cache.rows:
            raise ValueError(f"{layout.sequences} sequences do not fit a cache of {cache.rows} rows")
        totals = [old + new for old, new in zip(cache.lengths, layout.lengths, strict=True)]
        if max(totals, default=0) > cache.max_length:
            raise ValueError(f"the cache has room for {cache.max_length} tokens a row, {max(totals)} are needed")
        return totals

    def embed_inputs(self, input_ids: Tensor, positions: Tensor, offset: Tensor | None = None) -> Tensor:
        """[T] token ids at `positions` [T] -> [T, D]."""
        hidden: Tensor = self.embed(input_ids)
        if self.position_embed is not None:
            hidden = hidden + self.position_embed(positions)
        if offset is not None:
            hidden = hidden + offset
        dropped: Tensor = self.embed_dropout(hidden)
        return dropped

    def run_blocks(self, hidden: Tensor, plan: Plan, blocks: Iterable[nn.Module] | None = None) -> Tensor:
        """[T, D] -> [T, D] through `blocks` (default: all)."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        with nullcontext() if plan.attend.compiles else _uncompiled():
            for block in self.blocks if blocks is None else blocks:
                if recompute:
                    hidden = torch.utils.checkpoint.checkpoint(block, hidden, plan, use_reentrant=False)
                else:
                    hidden = block(hidden, plan)
        return hidden


def _uncompiled() -> AbstractContextManager[Any]:
    """Runs compiled blocks eagerly, where compiling would cost more than it saves."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and asking would import the compiler
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
