"""Rows of a frozen embedding that train: those of new tokens, in the embedding and in a head that is tied to it.

Shapes: T tokens, N trained rows, V vocabulary, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trivium.models.adapted import AdaptedEmbedding, Branch, Rows, at_rows, chosen
from trivium.models.lora import wide

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer


class TokenRows(Branch):
    """The embedding says `values` [N, D] of the tokens `ids` [N] and what it says otherwise of all others."""

    ids: Tensor
    place: Tensor

    def __init__(self, layer: nn.Embedding, ids: list[int], rows: Rows) -> None:
        super().__init__(rows)
        weight = layer.weight
        index = torch.tensor(ids, device=weight.device)
        self.values = nn.Parameter(weight.detach()[index].to(wide(weight)))
        place = torch.full((weight.shape[0],), -1, device=weight.device)
        self.register_buffer("ids", index, persistent=False)
        self.register_buffer("place", place.index_copy(0, index, torch.arange(len(ids), device=weight.device)), False)

    def looked_up(self, ids: Tensor, y: Tensor, layer: AdaptedEmbedding) -> Tensor:
        """[T, D]."""
        place = self.place[chosen(ids, self.rows)]
        old = chosen(y, self.rows)
        new = self.values.to(y.dtype)[place.clamp(min=0)]
        return at_rows(y, self.rows, torch.where((place >= 0)[:, None], new - old, torch.zeros_like(old)))

    def patched(self, weight: Tensor) -> Tensor:
        """[V, D] with the rows that train."""
        return weight.index_copy(0, self.ids, self.values.to(weight.dtype)) if self.rows.active else weight


class _Tied:
    """Beside the class of a head: its weight has the rows that train, wherever it is used."""

    @property
    def weight(self) -> Tensor:
        own: dict[str, Any] = self.__dict__
        patched: Tensor = own["token_rows"].patched(own["_parameters"]["weight"])
        return patched


def tie_head(model: Transformer, rows: TokenRows) -> None:
    """Lets a tied head know the rows; does nothing to one of its own."""
    if model.tied:
        head = model.head
        head.__dict__["token_rows"] = rows  # not as a part of it: its parameters belong to the embedding
        head.__class__ = type(f"Tied{type(head).__name__}", (_Tied, type(head)), {})


def release_head(model: Transformer) -> None:
    """The reverse of `tie_head`."""
    if model.head.__dict__.pop("token_rows", None) is not None:
        model.head.__class__ = type(model.head).__mro__[2]
