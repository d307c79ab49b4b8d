"""Fill in the middle: a text is cut twice and its middle moved to the end, so that a decoder learns to insert.

    PSM   <prefix> first <suffix> last <middle> middle
    SPM   <prefix> <suffix> last <middle> first middle

Bavarian et al. 2022 (arXiv 2207.14255). Both cuts are uniform
over the places between tokens. The paper cuts between characters, for cursors inside of a word; that needs the text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trivium.data.corruption.example import tokens
from trivium.data.table import Ints


class Marks(NamedTuple):
    """The three special tokens."""

    prefix: int
    suffix: int
    middle: int


def fill_in_the_middle(
    ids: Ints, random: np.random.Generator, *, marks: Marks, rate: float = 0.5, spm_rate: float = 0.5
) -> Ints:
    """With chance `rate` the text rearranged and three tokens longer, in the SPM order with chance `spm_rate` of that.

    Every token stays in it and is a target, as in the paper.
    """
    if random.random() >= rate:
        return ids
    first, last = np.sort(random.integers(0, len(ids) + 1, size=2)).tolist()
    before, middle, after = ids[:first], ids[first:last], ids[last:]
    if random.random() < spm_rate:
        return tokens(marks.prefix, marks.suffix, after, marks.middle, before, middle)
    return tokens(marks.prefix, before, marks.suffix, after, marks.middle, middle)
