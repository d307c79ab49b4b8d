"""Virtual tokens: trained vectors before a sequence, as if it began with words that no vocabulary has.

A *prompt* stands in the place of embeddings and passes through all blocks. A *prefix* is keys and values for each
block, which only attention sees. Where a model reads, the prefix comes first, then the prompt, then the tokens. What
the model says about virtual tokens is left out before its head, so batches, targets and losses know nothing of them.

Shapes: T tokens, S sequences, N vectors of all prompts together, T' = tokens with the virtual ones; D width, K
key/value heads, C width of one head, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.models.build import parameter_stream
from trivium.models.layers import Linear

if TYPE_CHECKING:
    from trivium.models.attention import Attend
    from trivium.models.transform import Transform


class Opening:
    """Where everything stands once virtual tokens are put before the sequences of a forward pass.

    vectors: [N, ...] the virtual tokens, each prompt once however many sequences begin with it.
    layout:  lengths with the virtual tokens. places: [T] where in it each real token stands.
    starts:  [S] where each sequence begins, with its virtual tokens.
    """

    def __init__(self, layout: Layout, vectors: Tensor, spans: Sequence[tuple[int, int]]) -> None:
        """`spans`: for each sequence (first, count) of the vectors that it begins with."""
        device = vectors.device
        self.vectors = vectors
        counts = [count for _, count in spans]
        prefixes = layout.prefixes
        if prefixes is not None:
            prefixes = tuple(prefix and prefix + count for prefix, count in zip(prefixes, counts, strict=True))
        lengths = tuple(length + count for length, count in zip(layout.lengths, counts, strict=True))
        self.layout = Layout(lengths, prefixes)
        self.starts = torch.tensor(self.layout.starts(), dtype=torch.int64, device=device)
        more, firsts = (torch.tensor(each, device=device) for each in (counts, [first for first, _ in spans]))
        self.places = torch.arange(layout.tokens, device=device) + more.cumsum(0)[layout.sequence_ids(device)]
        new = Layout(tuple(counts))
        owners, inside = new.sequence_ids(device), new.positions(device)
        self._order = torch.empty(self.layout.tokens, dtype=torch.int64, device=device)
        self._order[self.places] = torch.arange(layout.tokens, device=device)
        self._order[self.starts[owners] + inside] = layout.tokens + firsts[owners] + inside

    def insert(self, x: Tensor, vectors: Tensor) -> Tensor:
        """[T, ...] of the tokens and [N, ...] of the virtual ones -> [T', ...]."""
        return torch.cat((x, vectors.to(x.dtype))).index_select(0, self._order)

    def spread(self, x: Tensor) -> Tensor:
        """[T, ...] -> [T', ...], zero at the virtual tokens."""
        return x.new_zeros(self.layout.tokens, *x.shape[1:]).index_copy(0, self.places, x)

    def drop(self, x: Tensor) -> Tensor:
        """[T', ...] -> [T, ...], without the virtual tokens."""
        return x.index_select(0, self.places)


def opening(
    layout: Layout, acting: Sequence[Sequence[Transform]], vectors: Callable[[Transform], Tensor | None]
) -> Opening | None:
    """The virtual tokens before each sequence: what `vectors` gives for the transforms that act on it, in order."""
    runs: dict[int, Tensor | None] = {}
    spans: dict[tuple[int, ...], tuple[int, int]] = {}
    bank: list[Tensor] = []
    total = 0
    each = []
    for transforms in acting:
        key = tuple(id(transform) for transform in transforms)
        if key not in spans:
            for transform in transforms:
                if id(transform) not in runs:
                    runs[id(transform)] = vectors(transform)
            parts = [part for number in key if (part := runs[number]) is not None]
            count = sum(len(part) for part in parts)
            spans[key] = (total, count)
            bank += parts
            total += count
        each.append(spans[key])
    return Opening(layout, torch.cat(bank), each) if bank else None


class OpenedAttention:
    """Attention whose sequences begin with the keys and values of a prefix; see `trivium.models.attention.Attend`.

    The virtual tokens of a prefix ask nothing: they get the query of some token, and what it finds is dropped.
    """

    compiles = False

    def __init__(self, attend: Attend, prefix: Opening) -> None:
        """`attend` is planned for `prefix.layout`; `prefix.vectors` are [N, L, 2, K, C]."""
        self.attend, self.prefix = attend, prefix
        nobody = torch.zeros(len(prefix.vectors), dtype=torch.int64, device=prefix.places.device)
        self._queries = prefix.insert(torch.arange(len(prefix.places), device=nobody.device), nobody)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, dropout: float) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T, K, C]."""
        keys, values = self.prefix.vectors[:, layer].unbind(1)
        key, value = self.prefix.insert(key, keys), self.prefix.insert(value, values)
        out = self.attend(query.index_select(0, self._queries), key, value, layer=layer, dropout=dropout)
        return self.prefix.drop(out)


class Vectors(nn.Module):
    """The vectors themselves, trained as they are."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)

    def forward(self) -> Tensor:
        """[N, W]."""
        return self.weight


class MLPEncoder(nn.Module):
    """Vectors that a small network makes of others, which trains better than they do (Liu et al. 2021)."""

    def __init__(self, count: int, inputs: int, widths: Sequence[int], activation: type[nn.Module]) -> None:
        """`widths` of the layers of the network; `activation` stands between them."""
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(count, inputs))
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.activation = activation()

    def forward(self) -> Tensor:
        """[N, W]."""
        hidden: Tensor = self.embedding
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden if number == 0 else self.activation(hidden))
        return hidden


class LSTMEncoder(nn.Module):
    """The same with an LSTM that reads the vectors from both sides, before two layers."""

    def __init__(self, count: int, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(count, width))
        self.lstm = nn.LSTM(width, hidden, layers, dropout=dropout, bidirectional=True)
        self.first, self.second = Linear(2 * hidden, 2 * hidden), Linear(2 * hidden, width)

    def forward(self) -> Tensor:
        """[N, W]."""
        read, _ = self.lstm(self.embedding)
        made: Tensor = self.second(torch.relu(self.first(read)))
        return made


def start(module: nn.Module, *, std: float, seed: int, name: str, like: Tensor) -> nn.Module:
    """First values of an encoder from (seed, name), at least in float32, on the device of `like`.

    Vectors are normal with `std`; weights and biases of layers are uniform in +- 1 / sqrt(inputs), as torch has them.
    """
    kind = torch.promote_types(like.dtype, torch.float32)
    weights = {}
    for own, parameter in module.named_parameters():
        stream = parameter_stream(seed, f"{name}.{own}")
        values = torch.empty(parameter.shape)
        if "." not in own:
            values.normal_(0.0, std, generator=stream)
        else:
            bound = _inputs(module, own) ** -0.5
            values.uniform_(-bound, bound, generator=stream)
        weights[own] = values.to(device=like.device, dtype=kind)
    module.load_state_dict(weights, assign=True)
    return module


def _inputs(module: nn.Module, name: str) -> int:
    layer = module.get_submodule(name.rpartition(".")[0])
    return layer.hidden_size if isinstance(layer, nn.LSTM) else int(layer.in_features)  # type: ignore[arg-type]
