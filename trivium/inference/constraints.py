"""Tokens that may not, or must, come next: no n-gram twice, no early end, forced first and last tokens.

As transformers' logits processors of the same names. Plain Python over the ids of each row, a mask for the scores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trivium.inference.request import Sampling


@dataclass(frozen=True)
class Row:
    """One sample as the constraints see it; `prompt` is what the decoder starts with, `answer` its tokens so far."""

    sampling: Sampling
    prompt: Sequence[int]
    answer: Sequence[int]
    max_new_tokens: int
    eos_ids: Collection[int] = ()
    opens: bool = False
    """Whether the decoder belongs to an encoder-decoder."""

    def forced(self) -> int | None:
        """The only token that may come next, if there is such a one."""
        if self.sampling.forced_eos_id is not None and len(self.answer) == self.max_new_tokens - 1:
            return self.sampling.forced_eos_id
        first = self.opens and len(self.prompt) == 1 and not self.answer
        return self.sampling.forced_bos_id if first else None

    def banned(self) -> set[int]:
        """Tokens that may not come next."""
        early = len(self.answer) < self.sampling.min_new_tokens
        size = self.sampling.no_repeat_ngram_size
        repeated = set() if not size else _completions([*self.prompt, *self.answer], size)
        return repeated.union(self.eos_ids) if early else repeated


def constrained(sampling: Sampling) -> bool:
    """Whether the settings can forbid a token at all."""
    limits = (sampling.no_repeat_ngram_size, sampling.min_new_tokens)
    forced = (sampling.forced_bos_id, sampling.forced_eos_id)
    return any(limits) or any(token is not None for token in forced)


def constrain(scores: Tensor, rows: Iterable[Row], *, forced_score: float | None = None) -> Tensor:
    """[B, V] scores -> [B, V] with minus infinity for every token that may not come next.

    forced_score: score of a token that must come next; default: its own.
    """
    changed = scores.clone()
    for number, row in enumerate(rows):
        token = row.forced()
        if token is not None:
            kept = scores[number, token] if forced_score is None else forced_score
            changed[number] = -torch.inf
            changed[number, token] = kept
            continue
        banned = row.banned()
        if banned:
            changed[number, torch.tensor(sorted(banned), device=scores.device)] = -torch.inf
    return changed


def _completions(ids: Sequence[int], size: int) -> set[int]:
    """Tokens that would complete an n-gram of `size` tokens that `ids` holds already."""
    begun = list(ids[len(ids) - size + 1 :])
    if len(ids) < size - 1:
        return set()
    first = begun[0] if begun else None
    return {
        ids[at + size - 1]
        for at in range(len(ids) - size + 1)
        if (first is None or ids[at] == first) and list(ids[at : at + size - 1]) == begun
    }
