"""Span corruption: runs of tokens are taken out, a sentinel stands where each was, and the runs are the target.

    text     Thank you for inviting me to your party last week
    source   Thank you <0> me to your party <1> week
    target   <0> for inviting <1> last

The noise is that of T5 (Raffel et al. 2020, arXiv 1910.10683): the number of noisy tokens and of spans is fixed by
rate and mean length, and both the noisy and the kept tokens are cut into that many segments, uniformly at random.
A text so begins with kept tokens and ends with noise, and a text so short that one span is enough only ever loses its
end. With `roll`, an option of T5's own code, the noise is turned around the text by a random number of tokens, so that
every token is as likely to be noise as any other; a span may then lie over the end and count as two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trivium.data.corruption.example import Corrupted, tokens
from trivium.data.table import Ints


def noise_counts(length: int, *, rate: float, mean_length: float) -> tuple[int, int]:
    """(noisy tokens, spans) in a text of `length` tokens, at least two of them."""
    noisy = min(max(round(length * rate), 1), length - 1)
    return noisy, min(max(round(noisy / mean_length), 1), noisy, length - noisy)


def noise_mask(
    length: int, random: np.random.Generator, *, rate: float, mean_length: float, roll: bool = False
) -> NDArray[np.bool_]:
    """[length] which tokens are noise."""
    if length < 2:
        return np.zeros(length, dtype=np.bool_)
    noisy, spans = noise_counts(length, rate=rate, mean_length=mean_length)
    kept = _segments(length - noisy, spans, random)
    taken = _segments(noisy, spans, random)
    turns = np.stack([kept, taken], axis=1).ravel()
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, turns)
    return np.roll(mask, int(random.integers(length))) if roll else mask


def corrupt_spans(
    ids: Ints,
    random: np.random.Generator,
    *,
    sentinels: Sequence[int],
    rate: float = 0.15,
    mean_length: float = 3.0,
    roll: bool = False,
) -> Corrupted:
    """Take spans out of a text and put `sentinels` there, the first one first.

    ValueError if there are fewer sentinels than spans.
    """
    noise = noise_mask(len(ids), random, rate=rate, mean_length=mean_length, roll=roll)
    return _cut_out(ids, noise, sentinels)


def continue_text(ids: Ints, *, sentinel: int, rate: float = 0.25) -> Corrupted:
    """Sequential denoising (the S of UL2): the last part of a text is the target, and one sentinel announces it."""
    split = len(ids) - min(max(round(len(ids) * rate), 1), max(len(ids) - 1, 1))
    return Corrupted(tokens(ids[:split], sentinel), tokens(sentinel, ids[split:]))


def _segments(items: int, count: int, random: np.random.Generator) -> Ints:
    """Lengths, each at least 1, of `count` segments of `items` things; every way to cut them is equally likely."""
    cuts = np.sort(random.choice(items - 1, size=count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def _cut_out(ids: Ints, noise: NDArray[np.bool_], sentinels: Sequence[int]) -> Corrupted:
    begins = noise & ~np.concatenate([[False], noise[:-1]])
    spans = int(begins.sum())
    if spans > len(sentinels):
        raise ValueError(f"{spans} spans need as many sentinels, there are {len(sentinels)}")
    marks = np.asarray(sentinels, dtype=np.int64)[:spans]
    source = ids.copy()
    source[begins] = marks
    target = ids[noise]
    first = np.cumsum(noise)[begins] - 1
    return Corrupted(source[~noise | begins], np.insert(target, first, marks))
