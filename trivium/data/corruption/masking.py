"""Masked language modelling: some tokens are hidden, and those alone are predicted.

BERT's rule (Devlin et al. 2019, arXiv 1810.04805): of the chosen tokens 80 % become the mask token, 10 % any other
token, and 10 % stay as they are. Chosen are single tokens, whole words, or spans of words whose lengths are
geometric (SpanBERT, Joshi et al. 2020, arXiv 1907.10529). Every call draws anew, so each epoch masks other tokens
(RoBERTa, Liu et al. 2019, arXiv 1907.11692).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE
from trivium.data.corruption.example import Example
from trivium.data.table import Ints

SPAN_CONTINUES = 0.8
"""Chance that a span goes on after each word: lengths are geometric with p = 0.2, as in SpanBERT."""
LONGEST_SPAN = 10
"""Words in the longest span; the mean is 3.8."""


@dataclass(frozen=True)
class Masking:
    """What is hidden and by what.

    mask_id:      the token that hides.
    ordinary:     [V] which tokens may be hidden, and stand in for hidden ones: all but the special tokens.
    rate:         share of the tokens that are predicted; always at least one token.
    shares:       shares of those that become the mask token, and any token; the rest stays.
    """

    mask_id: int
    ordinary: NDArray[np.bool_]
    rate: float = 0.15
    shares: tuple[float, float] = (0.8, 0.1)

    @cached_property
    def others(self) -> Ints:
        """Tokens that may stand in for a hidden one."""
        return np.flatnonzero(self.ordinary)

    def budget(self, candidates: int) -> int:
        """How many of so many tokens are predicted."""
        return min(candidates, max(1, round(candidates * self.rate)))


def mask_tokens(ids: Ints, random: np.random.Generator, masking: Masking) -> Example:
    """Every token is chosen alone."""
    candidates = np.flatnonzero(masking.ordinary[ids])
    chosen = random.permutation(candidates)[: masking.budget(len(candidates))]
    return _hidden(ids, chosen, np.arange(len(chosen)), random, masking)


def mask_words(ids: Ints, random: np.random.Generator, masking: Masking, *, starts: NDArray[np.bool_]) -> Example:
    """A word is chosen with all of its tokens, `starts` [n] saying where words begin.

    A word that would go over the budget is passed over; if none fits, the first one drawn is taken all the same.
    """
    places, bounds = _words(ids, starts, masking)
    budget = masking.budget(len(places))
    taken: list[Ints] = []
    passed: list[Ints] = []
    for number in random.permutation(len(bounds) - 1).tolist():
        if not budget:
            break
        word = places[bounds[number] : bounds[number + 1]]
        fits = len(word) <= budget
        budget -= len(word) if fits else 0
        (taken if fits else passed).append(word)
    chosen = np.concatenate(taken or passed[:1] or [np.zeros(0, dtype=np.int64)])
    return _hidden(ids, chosen, np.arange(len(chosen)), random, masking)


def mask_spans(ids: Ints, random: np.random.Generator, masking: Masking, *, starts: NDArray[np.bool_]) -> Example:
    """Spans of whole words; all tokens of a span share one fate. The last span is cut where the budget ends."""
    places, bounds = _words(ids, starts, masking)
    budget = masking.budget(len(places))
    span_of = np.full(len(ids), -1, dtype=np.int64)
    count = spans = 0
    for first in random.permutation(len(bounds) - 1).tolist():
        if count == budget:
            break
        last = min(first + _span_length(random), len(bounds) - 1)
        span = places[bounds[first] : bounds[last]][: budget - count]
        # A span ends where the line of hidable tokens is broken, and does not run into another one.
        broken = np.flatnonzero((np.diff(span, prepend=span[0] - 1) != 1) | (span_of[span] >= 0))
        span = span[: broken[0]] if len(broken) else span
        span_of[span] = spans
        count, spans = count + len(span), spans + (len(span) > 0)
    chosen = np.flatnonzero(span_of >= 0)
    return _hidden(ids, chosen, span_of[chosen], random, masking)


def _span_length(random: np.random.Generator) -> int:
    """Words in a span: a geometric distribution cut off at LONGEST_SPAN and scaled to add up to one."""
    whole = 1 - SPAN_CONTINUES**LONGEST_SPAN
    return 1 + int(np.log1p(-random.random() * whole) / np.log(SPAN_CONTINUES))


def _words(ids: Ints, starts: NDArray[np.bool_], masking: Masking) -> tuple[Ints, list[int]]:
    """(positions of all words, one after the other; where in them each word begins, and the end of the last).

    Special tokens belong to no word and end the one before them.
    """
    places = np.flatnonzero(masking.ordinary[ids])
    begins = starts[places] | (np.diff(places, prepend=-2) != 1)
    return places, [*np.flatnonzero(begins).tolist(), len(places)]


def _hidden(ids: Ints, chosen: Ints, fate_of: Ints, random: np.random.Generator, masking: Masking) -> Example:
    """`chosen` positions hidden; positions with the same number in `fate_of` are all masked, replaced or kept."""
    inputs, targets = ids.copy(), np.full(len(ids), IGNORE, dtype=np.int64)
    targets[chosen] = ids[chosen]
    masked, replaced = masking.shares
    fate = random.random(int(fate_of.max()) + 1 if len(fate_of) else 0)[fate_of]
    other = random.choice(masking.others, size=len(chosen))
    inputs[chosen] = np.where(fate < masked, masking.mask_id, np.where(fate < masked + replaced, other, ids[chosen]))
    return Example(inputs, targets)
