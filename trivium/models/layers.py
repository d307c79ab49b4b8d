"""The parts of a block: linear layers, norms, attention, MLPs and mixtures of experts; and the blocks themselves.

What a part does is chosen when it is built, from the `ModelConfig`; no `forward` asks which family it runs.

Shapes: T tokens, D width, H query heads, K key/value heads, C width of one head, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trivium.models import kernels, tied
from trivium.models.attention import CrossPlan, LayerPlan, Plan
from trivium.models.config import ModelConfig


class Linear(nn.Linear):
    """A linear layer that leaves its first values to `init_weights` or a file."""

    def reset_parameters(self) -> None:
        """Nothing: torch's own would draw from the global random state."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        return kernels.linear(x, self.weight, self.bias)


def joined_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    """[O] of all layers one after the other; None where they have none."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return torch.cat(biases) if biases else None


class Embedding(nn.Embedding):
    """An embedding that leaves its first values to `init_weights` or a file.

    shared: what is read instead of the weight while a forward pass runs in which the head reads it too (`tied`).
    """

    shared: Tensor | None = None

    def reset_parameters(self) -> None:
        """Nothing: torch's own would draw from the global random state."""

    def forward(self, ids: Tensor) -> Tensor:
        """[T] -> [T, E]."""
        shared = self.shared  # once: another thread may be at the end of its pass
        return super().forward(ids) if shared is None else tied.look_up(ids, shared)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * (weight + offset)."""

    def __init__(self, width: int, *, eps: float, offset: float = 0.0) -> None:
        super().__init__(width, eps=eps)
        self.norm_eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        weight = self.weight + self.offset if self.offset else self.weight
        return kernels.rms_norm(x, weight, self.norm_eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig, width: int | None = None) -> nn.Module:
    """The norm of `config`, over the last dimension of `width` (default: that of the layers)."""
    width = width or config.hidden_size
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps, offset=config.norm_offset)
    return LayerNorm(width, eps=config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention inside each sequence."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.attention_dropout
        self.rotary_dim = config.rotary_dim
        self.turns = layer not in config.layers_without_rotary
        bias = "query_key_value" in config.biases
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, queries, bias=bias)
        self.key = Linear(config.hidden_size, keys, bias=bias)
        self.value = Linear(config.hidden_size, keys, bias=bias)
        self.output = Linear(queries, config.hidden_size, bias="attention_output" in config.biases)
        self.norms_heads = config.query_key_norm == "head"
        self.query_norm: RMSNorm | None = None
        self.key_norm: RMSNorm | None = None
        if config.query_key_norm != "none":
            widths = (config.head_dim, config.head_dim) if self.norms_heads else (queries, keys)
            self.query_norm, self.key_norm = (
                RMSNorm(width, eps=config.norm_eps, offset=config.norm_offset) for width in widths
            )

    def forward(self, hidden: Tensor, plan: LayerPlan, wanted: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D], or [W, D] for the tokens `wanted` [W]."""
        key = self.heads(self.key(hidden), self.key_norm)
        if wanted is not None and plan.picked is not None:
            query = self.heads(self.query(_only(hidden, wanted)), self.query_norm)
            return self.mix(query, key, self.heads(self.value(hidden)), LayerPlan(None, plan.picked))
        query = self.heads(self.query(hidden), self.query_norm)
        if plan.rotary is not None and self.turns:
            query, key = (self.rotate(x, *plan.rotary) for x in (query, key))
        return self.mix(query, key, self.heads(self.value(hidden)), plan, wanted)

    def heads(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """[T, H * C] -> [T, H, C], normalised before or after the cut."""
        if norm is not None and not self.norms_heads:
            x = norm(x)
        x = x.view(x.shape[0], x.shape[1] // self.head_dim, self.head_dim)
        return norm(x) if norm is not None and self.norms_heads else x

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turns the first `rotary_dim` coordinates of each head."""
        if self.rotary_dim == self.head_dim:
            return kernels.rotate(x, cos, sin)
        turned = kernels.rotate(x[..., : self.rotary_dim], cos, sin)
        return torch.cat((turned, x[..., self.rotary_dim :]), dim=-1)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, plan: LayerPlan | CrossPlan, wanted: Tensor | None = None
    ) -> Tensor:
        """The planned attention, and the output layer."""
        dropout = self.dropout if self.training else 0.0
        mixed = plan.attend(query, key, value, layer=self.layer, dropout=dropout)
        result: Tensor = self.output(_only(mixed.flatten(1), wanted))
        return result


class CrossAttention(Attention):
    """Each token of a sequence looks at all of its source."""

    def forward(self, hidden: Tensor, plan: CrossPlan) -> Tensor:  # type: ignore[override]
        """[T, D] -> [T, D]."""
        query = self.heads(self.query(hidden))
        if plan.memory is None:
            return self.mix(query, query, query, plan)
        return self.mix(query, self.heads(self.key(plan.memory)), self.heads(self.value(plan.memory)), plan)


class MLP(nn.Module):
    """What both kinds share: two layers, and an activation between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = "mlp" in config.biases
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.activation = config.activation
        self.dropout = config.activation_dropout

    @property
    def makes_again(self) -> bool:
        """Whether what `down` reads may be made again in the backward pass: nothing else wants it."""
        return not self.dropout and _alone(self.down)

    def activated(self, gate: Tensor, up: Tensor | None) -> Tensor:
        """down(act(gate) * up), without up down(act(gate)); gate, up [T, I] -> [T, D]."""
        if self.makes_again:
            return kernels.gated_linear(gate, up, self.activation, self.down.weight, self.down.bias)
        inner = kernels.gated(gate, up, self.activation)
        if self.dropout:
            inner = F.dropout(inner, self.dropout, self.training)
        result: Tensor = self.down(inner)
        return result


def _alone(layer: nn.Module) -> bool:
    """Whether nothing but the layer itself happens in its call: no adapter, no hook."""
    return type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks


class GatedMLP(MLP):
    """down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias="mlp" in config.biases)

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.activated(self.gate(hidden), self.up(hidden))


class PlainMLP(MLP):
    """down(act(up(x)))."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.activated(self.up(hidden), None)


def make_mlp(config: ModelConfig) -> MLP:
    """One MLP."""
    return GatedMLP(config) if config.mlp == "gated" else PlainMLP(config)


class Experts(nn.Module):
    """Several MLPs; each token passes the ones its router prefers, weighted (Jiang et al. 2024, arXiv:2401.04088)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chosen = config.experts_per_token
        self.router = Linear(config.hidden_size, config.experts, bias=False)
        self.experts = nn.ModuleList(make_mlp(config) for _ in range(config.experts))

    def forward(self, hidden: Tensor, routing: list[tuple[Tensor, Tensor]]) -> Tensor:
        """[T, D] -> [T, D]; appends (how many tokens chose each expert [E], sum of its probabilities [E])."""
        logits: Tensor = self.router(hidden)
        chances = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights, choice = torch.topk(chances, self.chosen, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(hidden.dtype)
        counts = torch.bincount(choice.flatten(), minlength=len(self.experts))
        routing.append((counts, chances.sum(0)))
        order = choice.flatten().argsort(stable=True)
        tokens = order // self.chosen
        parts = torch.split(hidden[tokens], counts.tolist())
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return torch.zeros_like(hidden).index_add(0, tokens, made * weights.flatten()[order, None])


class Block(nn.Module):
    """x + attention(norm(x)), the same with the source if there is one, then x + mlp(norm(x)).

    `norm_placement` says whether the norms stand before each branch, on its output, or both. With `wanted` [W] the
    block gives the hidden states of those tokens only; not where it looks at a source or has experts.
    """

    def __init__(self, config: ModelConfig, layer: int, *, cross: bool = False) -> None:
        super().__init__()
        self.slides = config.slides(layer)
        before = config.norm_placement in ("pre", "both")
        after = config.norm_placement in ("output", "both")
        self.attention_norm = make_norm(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.attention_output_norm = make_norm(config) if after else nn.Identity()
        self.cross_norm = make_norm(config) if cross else None
        self.cross = CrossAttention(config, layer) if cross else None
        self.mlp_norm = make_norm(config) if before else nn.Identity()
        self.mlp = None if config.experts else make_mlp(config)
        self.moe = Experts(config) if config.experts else None
        self.mlp_output_norm = make_norm(config) if after else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.slots: nn.ModuleDict | None = None
        """Where adapters of whole branches stand (`trivium.models.bottleneck`)."""

    def forward(self, hidden: Tensor, plan: Plan, wanted: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D], or [W, D]."""
        normed, hidden = self.attention_norm(hidden), _only(hidden, wanted)
        hidden = hidden + self.adapted("attention", self.attended(normed, plan, wanted), hidden)
        if self.cross is not None and self.cross_norm is not None:
            hidden = hidden + self.adapted("cross", self.looked_up(self.cross_norm(hidden), plan), hidden)
        return hidden + self.adapted("mlp", self.thought(self.mlp_norm(hidden), plan), hidden)

    def adapted(self, where: str, added: Tensor, stream: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[T, D]: what the adapters there make of `added`; `norm` is applied to its sum with the stream afterwards."""
        if self.slots is None or where not in self.slots:
            return added
        changed: Tensor = self.slots[where](added, stream, norm)
        return changed

    def attended(self, hidden: Tensor, plan: Plan, wanted: Tensor | None = None) -> Tensor:
        """What attention adds."""
        layers = plan.sliding if self.slides else plan.full
        assert layers is not None
        added: Tensor = self.dropout(self.attention_output_norm(self.attention(hidden, layers, wanted)))
        return added

    def looked_up(self, hidden: Tensor, plan: Plan) -> Tensor:
        """What attention to the source adds."""
        assert self.cross is not None and plan.cross is not None
        added: Tensor = self.dropout(self.cross(hidden, plan.cross))
        return added

    def thought(self, hidden: Tensor, plan: Plan) -> Tensor:
        """What the MLP, or the experts, add."""
        made = self.mlp(hidden) if self.moe is None else self.moe(hidden, plan.routing)  # type: ignore[misc]
        added: Tensor = self.dropout(self.mlp_output_norm(made))
        return added


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + mlp(x)) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig, layer: int, *, cross: bool = False) -> None:
        super().__init__(config, layer, cross=cross)
        self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)

    def forward(self, hidden: Tensor, plan: Plan, wanted: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D], or [W, D]."""
        added, hidden = self.attended(hidden, plan, wanted), _only(hidden, wanted)
        hidden = self.attention_norm(hidden + self.adapted("attention", added, hidden, self.attention_norm))
        if self.cross is not None and self.cross_norm is not None:
            added = self.adapted("cross", self.looked_up(hidden, plan), hidden, self.cross_norm)
            hidden = self.cross_norm(hidden + added)
        added = self.adapted("mlp", self.thought(hidden, plan), hidden, self.mlp_norm)
        result: Tensor = self.mlp_norm(hidden + added)
        return result


class ParallelBlock(Block):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm or two (Wang & Komatsuzaki 2021)."""

    def __init__(self, config: ModelConfig, layer: int, *, cross: bool = False) -> None:
        super().__init__(config, layer, cross=cross)
        if config.parallel == "one_norm":
            self.mlp_norm = None  # type: ignore[assignment]

    def forward(self, hidden: Tensor, plan: Plan, wanted: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D], or [W, D]."""
        first, rest = self.attention_norm(hidden), _only(hidden, wanted)
        second = _only(first, wanted) if self.mlp_norm is None else self.mlp_norm(rest)
        attended = self.adapted("attention", self.attended(first, plan, wanted), rest)
        return rest + attended + self.adapted("mlp", self.thought(second, plan), rest)


def make_block(config: ModelConfig, layer: int, *, cross: bool = False) -> Block:
    """The block of `config`; `cross`: with attention to a source."""
    if config.parallel != "none":
        return ParallelBlock(config, layer, cross=cross)
    return (PostNormBlock if config.norm_placement == "post" else Block)(config, layer, cross=cross)


def _only(x: Tensor, wanted: Tensor | None) -> Tensor:
    return x if wanted is None else x.index_select(0, wanted)
