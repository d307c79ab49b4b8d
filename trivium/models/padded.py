"""Attention over many short sequences: those of similar length stand side by side, filled up to the longest of them.

One call for each sequence costs more than its arithmetic when sequences are as short as sentences. What is filled up
is never looked at, and its results are dropped. Everything is planned once per forward pass, from plain numbers.

Shapes: n sequences in a bucket, Q and N the most queries and keys of one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trivium.data.batch import Layout
from trivium.models.ragged import heads_first

_GROWTH = 1.25
"""Lengths of one bucket differ by this factor at most; so much of it can be fill."""
_LONGEST = 256
"""Of longer sequences only equally long ones share a bucket: there the arithmetic counts."""
_WORTH = 2
"""How many calls a bucket must save."""

Call = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query [n, H, Q, C], key and value [n, K, N, C], mask) -> [n, H, Q, C]."""
Mask = Callable[[Tensor, Tensor, int, int], Tensor | None]
"""(queries [n], keys [n], Q, N) -> what to add to the scores or whether to look, broadcast to [n, H, Q, N]."""


@dataclass(frozen=True)
class Bucket:
    """count sequences of at most `most` queries and `widest` keys. mask: see `Mask`."""

    count: int
    most: int
    widest: int
    mask: Tensor | None


class Buckets:
    """The plan for one layout of queries and one of keys.

    queries, keys: the token in each place of all buckets. places: [T] where the result of each token stands in theirs.
    """

    def __init__(self, layout: Layout, source: Layout, *, mask: Mask, device: torch.device) -> None:
        starts, others = (torch.tensor(each.starts(), device=device) for each in (layout, source))
        lengths, longs = (torch.tensor(each.lengths, device=device) for each in (layout, source))
        self.buckets: list[Bucket] = []
        self.places = torch.empty(layout.tokens, dtype=torch.int64, device=device)
        all_queries: list[Tensor] = []
        all_keys: list[Tensor] = []
        begun = 0
        for numbers in _alike(layout.lengths, source.lengths):
            chosen = torch.tensor(numbers, device=device)
            most, widest = (max(each.lengths[number] for number in numbers) for each in (layout, source))
            queries, real = _filled(starts[chosen], lengths[chosen], most)
            keys, _ = _filled(others[chosen], longs[chosen], widest)
            at = torch.arange(len(numbers) * most, device=device).view(-1, most) + begun
            self.places[queries[real]] = at[real]
            begun += len(numbers) * most
            all_queries.append(queries.flatten())
            all_keys.append(keys.flatten())
            self.buckets.append(Bucket(len(numbers), most, widest, mask(lengths[chosen], longs[chosen], most, widest)))
        self.queries, self.keys = torch.cat(all_queries), torch.cat(all_keys)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """[T, H, C] from query [T, H, C], key and value [T_s, K, C], with one `call` for each bucket."""
        # Gathered at once, not bucket by bucket, since each gather has a derivative as large as all tokens.
        many = [each.count * each.most for each in self.buckets]
        wide = [each.count * each.widest for each in self.buckets]
        parts = zip(
            self.buckets,
            torch.split(query.index_select(0, self.queries), many),
            torch.split(key.index_select(0, self.keys), wide),
            torch.split(value.index_select(0, self.keys), wide),
            strict=True,
        )
        results = [
            call(heads_first(q, each.most), heads_first(k, each.widest), heads_first(v, each.widest), each.mask)
            for each, q, k, v in parts
        ]
        return torch.cat([out.transpose(1, 2).flatten(0, 1) for out in results]).index_select(0, self.places)


def worth_padding(layout: Layout, source: Layout, calls: int) -> bool:
    """Whether buckets take fewer calls, by enough, than `calls`."""
    if not all((*layout.lengths, *source.lengths)):
        return False
    return calls > _WORTH * len(_alike(layout.lengths, source.lengths))


@lru_cache(maxsize=4)  # asked whether it is worth it, and then for the plan
def _alike(lengths: tuple[int, ...], longs: tuple[int, ...]) -> list[list[int]]:
    """Numbers of the sequences of each bucket."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, pair in enumerate(zip(lengths, longs, strict=True)):
        groups.setdefault((_class(pair[0]), _class(pair[1])), []).append(number)
    return list(groups.values())


def _class(length: int) -> int:
    """Lengths of the same class are alike."""
    return length if length > _LONGEST else -int(math.log(length) / math.log(_GROWTH))


def _filled(starts: Tensor, lengths: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[n, most] token of each place, the last of its sequence where that has ended, and which places are real."""
    at = torch.arange(most, device=starts.device)
    return starts[:, None] + torch.minimum(at, lengths[:, None] - 1), at < lengths[:, None]
