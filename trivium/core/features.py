"""Features of a frozen body, computed once: a head on them trains without running the body again.

What stands for a text is what the head pools; it is found again by the text's ids, so the same cache serves training
and validation. It is filled in a fixed order before the first update, so a run that is continued has the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trivium.models.heads import TokenHead, pool, pooled_tokens

if TYPE_CHECKING:
    from trivium.core.method import Method, RoleModel
    from trivium.data.batch import Batch, Layout


class Features:
    """The pooled hidden states [D] of texts."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._blocks: list[Tensor] = []
        self._all: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, role: RoleModel, method: Method, batches: Iterable[Batch], device: torch.device) -> None:
        """Runs the body over all batches."""
        module = role.module
        training = module.training
        module.eval()
        with torch.no_grad():
            for batch in batches:
                batch = method.prepare(batch.to(device))
                read = pooled_tokens(batch.layout, module.config.pooling, device)
                found = role(batch, partial(_pooled, layout=batch.layout), only=read)
                fresh = []
                for at, key in enumerate(keys(batch)):
                    if key not in self._rows:  # a text that comes again has its features already
                        self._rows[key] = len(self._rows)
                        fresh.append(at)
                self._blocks.append(found[torch.tensor(fresh, dtype=torch.int64, device=found.device)])
        module.train(training)
        self._all = torch.cat(self._blocks)

    def of(self, batch: Batch) -> Tensor:
        """[S, D], one for each sequence of the batch."""
        assert self._all is not None
        rows = torch.tensor([self._rows[key] for key in keys(batch)], device=self._all.device)
        return self._all[rows]


def _pooled(hidden: Tensor, head: Any, layout: Layout) -> Tensor:
    return pool(hidden, layout, head.pooling)


class PooledHead:
    """The head of a model on features that are pooled already."""

    def __init__(self, head: Any) -> None:
        self.head = head

    def __call__(self, features: Tensor, layout: Layout | None = None) -> Tensor:
        """[S, D] -> [S, N]."""
        return TokenHead.forward(self.head, features)


def keys(batch: Batch) -> list[bytes]:
    """What each sequence of a batch is found by: a hash of all that the body sees of it."""
    ids = batch.input_ids.cpu().numpy()
    types = batch.fields["token_types"].cpu().numpy() if "token_types" in batch.fields else None
    found = []
    for start, end in batch.layout.spans():
        digest = hashlib.blake2b(ids[start:end].tobytes(), digest_size=16)
        if types is not None:
            digest.update(types[start:end].tobytes())
        found.append(digest.digest())
    return found
