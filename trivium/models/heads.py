"""What stands at the end of a model: logits over the vocabulary, scores of labels, or one vector for a sequence.

Losses and generation call `transform` on the hidden states they want and use `weight`, `bias` and `softcap`
themselves, so that logits exist only a chunk at a time; calling a head does all of it.

Shapes: T tokens, S sequences, D width, V vocabulary, N labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.models import kernels
from trivium.models.config import ModelConfig
from trivium.models.layers import Linear, make_norm


class LanguageHead(Linear):
    """Logits of each token: softcap(transform(hidden) weight^T + bias).

    has_transform: whether `transform` does anything.
    shared: what is read instead of the weight while a forward pass runs in which the embedding reads it too (`tied`).
    """

    shared: Tensor | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.embedding_width, config.vocab_size, bias=config.head_bias)
        self.scale = config.head_scale
        self.has_transform = self.scale != 1.0
        self.softcap = config.logit_softcap
        self.fused: Callable[[Tensor], Tensor] | None = None
        """The product with `weight` while text is generated (`trivium.models.fused`)."""

    def transform(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D], before the product with `weight`."""
        return hidden if self.scale == 1.0 else hidden * self.scale

    @property
    def matrix(self) -> Tensor:
        """[V, D], what hidden states are multiplied with."""
        shared = self.shared
        return self.weight if shared is None else shared

    def forward(self, hidden: Tensor, layout: Layout | None = None) -> Tensor:
        """[T, D] -> [T, V]."""
        hidden = self.transform(hidden)
        if self.fused is not None and not torch.is_grad_enabled():
            logits = self.fused(hidden)
        else:
            logits = kernels.linear(hidden, self.matrix, self.bias)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class MaskedHead(LanguageHead):
    """The same behind a dense layer, the model's activation and a norm (BERT)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.has_transform = True
        self.dense = Linear(config.hidden_size, config.embedding_width)
        self.norm = make_norm(config, config.embedding_width)
        self.activation = kernels.ACTIVATIONS[config.activation]

    def transform(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, E], before the product with `weight`."""
        changed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return super().transform(changed)


class TokenHead(nn.Module):
    """Scores of each token: labels, begin and end of a span, or whether it was replaced."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = None if config.head_dense == "none" else Linear(config.hidden_size, config.hidden_size)
        self.activation = kernels.ACTIVATIONS.get(config.head_dense)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out = Linear(config.hidden_size, config.scores, bias=config.head_bias)

    def forward(self, hidden: Tensor, layout: Layout | None = None) -> Tensor:
        """[T, D] -> [T, N]."""
        if self.dense is not None:
            hidden = self.dense(hidden)
            hidden = hidden if self.activation is None else self.activation(hidden)
        scores: Tensor = self.out(self.dropout(hidden))
        return scores


class SequenceHead(TokenHead):
    """Scores of each sequence, from one of its hidden states, their mean or their maximum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.pooling = config.pooling

    def forward(self, hidden: Tensor, layout: Layout | None = None) -> Tensor:
        """[T, D] -> [S, N]."""
        if layout is None:
            raise ValueError("scores of sequences need the layout of the sequences")
        return super().forward(pool(hidden, layout, self.pooling))


class EmbeddingHead(nn.Module):
    """One vector for each sequence: projection(act(dense(pooled))); and scores of labels from what is pooled.

    vectors [S, E]: what is kept; projected [S, P]: what training compares; scores [S, N].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, size, bias = config.hidden_size, config.vector_size, config.head_bias
        self.pooling = config.pooling
        self.dense = None if config.head_dense == "none" else Linear(width, size, bias=bias)
        self.activation = kernels.ACTIVATIONS.get(config.head_dense)
        self.projection = Linear(size, config.head_projection, bias=bias) if config.head_projection else None
        self.dropout = nn.Dropout(config.head_dropout)
        self.out = Linear(width, config.scores, bias=bias) if config.labels else None

    def forward(self, hidden: Tensor, layout: Layout | None = None) -> Tensor:
        """[T, D] -> [S, E]."""
        if layout is None:
            raise ValueError("vectors of sequences need the layout of the sequences")
        return self.vectors(self.pooled(hidden, layout))

    def pooled(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[T, D] -> [S, D]."""
        return pool(hidden, layout, self.pooling)

    def vectors(self, pooled: Tensor) -> Tensor:
        """[S, D] -> [S, E]."""
        if self.dense is not None:
            pooled = self.dense(pooled)
        return pooled if self.activation is None else self.activation(pooled)

    def projected(self, pooled: Tensor) -> Tensor:
        """[S, D] -> [S, P]."""
        vectors = self.vectors(pooled)
        return vectors if self.projection is None else self.projection(vectors)

    def scores(self, pooled: Tensor) -> Tensor:
        """[S, D] -> [S, N]."""
        if self.out is None:
            raise ValueError("this head knows no labels")
        scores: Tensor = self.out(self.dropout(pooled))
        return scores


class NoHead(nn.Module):
    """The hidden states themselves."""

    def forward(self, hidden: Tensor, layout: Layout | None = None) -> Tensor:
        """[T, D] -> [T, D]."""
        return hidden


def pooled_tokens(layout: Layout, pooling: str, device: Any = None) -> Tensor | None:
    """[S] the token of each sequence that stands for it, where it is a single one; None for means and maxima."""
    if pooling not in ("first", "last"):
        return None
    at = [start if pooling == "first" else end - 1 for start, end in layout.spans()]
    return torch.tensor(at, device=device)


def pool(hidden: Tensor, layout: Layout, pooling: str) -> Tensor:
    """[T, D] -> [S, D]: the first or last hidden state of each sequence, or their mean or maximum."""
    device = hidden.device
    at = pooled_tokens(layout, pooling, device)
    if at is not None:
        return hidden[at]
    owners = layout.sequence_ids(device)
    empty = hidden.new_zeros(layout.sequences, hidden.shape[1])
    if pooling == "max":
        return empty.scatter_reduce(0, owners[:, None].expand_as(hidden), hidden, "amax", include_self=False)
    lengths = torch.tensor(layout.lengths, device=device, dtype=hidden.dtype).clamp(min=1)
    return empty.index_add(0, owners, hidden) / lengths[:, None]


HEADS: dict[str, Callable[[ModelConfig], Any]] = {
    "language": LanguageHead,
    "masked": MaskedHead,
    "sequence": SequenceHead,
    "token": TokenHead,
    "span": TokenHead,
    "detector": TokenHead,
    "embedding": EmbeddingHead,
    "none": lambda config: NoHead(),
}


def make_head(config: ModelConfig) -> Any:
    """The head of `config`."""
    return HEADS[config.head](config)
