"""BART's noises: spans become one mask token each, sentences change places, tokens vanish, the text is turned.

The target is always the whole text. Text infilling draws the lengths of spans from a Poisson distribution; a span of
length 0 is a mask token put in where nothing is missing. Lewis et al. 2020 (arXiv 1910.13461).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trivium.data.corruption.example import Corrupted
from trivium.data.table import Ints


def infill(
    ids: Ints, random: np.random.Generator, *, mask_id: int, rate: float = 0.3, mean_length: float = 3.0
) -> Ints:
    """`rate` of the tokens in spans of Poisson length, each replaced by one mask token; never longer than `ids`.

    Spans are put into the gaps between the tokens that stay, at most one into each, all choices equally likely.
    """
    noisy = round(len(ids) * rate)
    lengths = _poisson_lengths(noisy, random, mean_length)[: len(ids) - noisy + 1]
    surplus = np.flatnonzero(lengths == 0)[: max(0, len(lengths) - int(lengths.sum()))]
    lengths = np.delete(lengths, surplus)
    kept = len(ids) - int(lengths.sum())
    gaps = np.sort(random.choice(kept + 1, size=len(lengths), replace=False))
    # A span in gap g begins after g kept tokens and all earlier spans.
    starts = gaps + np.cumsum(lengths) - lengths
    noise = np.zeros(len(ids) + 1, dtype=np.int64)
    np.add.at(noise, starts, 1)
    np.add.at(noise, starts + lengths, -1)
    missing = np.cumsum(noise[:-1]) > 0
    return np.insert(ids[~missing], gaps, mask_id)


def permute_sentences(ids: Ints, random: np.random.Generator, *, ends: NDArray[np.bool_], share: float = 1.0) -> Ints:
    """`share` of the sentences change places among each other; `ends` [n]: a sentence ends with this token."""
    sentences = np.split(ids, np.flatnonzero(ends[:-1]) + 1)
    moving = random.permutation(len(sentences))[: round(len(sentences) * share)]
    order = np.arange(len(sentences))
    order[np.sort(moving)] = moving
    return np.concatenate([sentences[number] for number in order.tolist()])


def delete_tokens(ids: Ints, random: np.random.Generator, *, rate: float) -> Ints:
    """`rate` of the tokens vanish without a trace; at least one token stays."""
    gone = random.permutation(len(ids))[: min(round(len(ids) * rate), len(ids) - 1)]
    return np.delete(ids, gone)


def rotate(ids: Ints, random: np.random.Generator) -> Ints:
    """The text begins at any of its tokens, and what stood before follows its end."""
    return np.roll(ids, -int(random.integers(len(ids)))) if len(ids) else ids


def damage(
    ids: Ints,
    random: np.random.Generator,
    *,
    mask_id: int,
    ends: NDArray[np.bool_],
    rate: float = 0.3,
    mean_length: float = 3.0,
    permute: float = 1.0,
    delete: float = 0.0,
    rotated: float = 0.0,
) -> Corrupted:
    """All noises, in the order of BART's code; the target is the text.

    ends: [V] tokens that end a sentence. permute: share of the sentences that move. rotated: chance to be turned.
    """
    source = permute_sentences(ids, random, ends=ends[ids], share=permute) if permute else ids
    source = infill(source, random, mask_id=mask_id, rate=rate, mean_length=mean_length)
    source = delete_tokens(source, random, rate=delete) if delete else source
    source = rotate(source, random) if rotated and random.random() < rotated else source
    return Corrupted(source, ids)


def _poisson_lengths(total: int, random: np.random.Generator, mean: float) -> Ints:
    """Lengths that add up to `total`, the last one cut."""
    lengths: list[int] = []
    left = total
    while left > 0:
        lengths.append(min(int(random.poisson(mean)), left))
        left -= lengths[-1]
    return np.array(lengths, dtype=np.int64)
