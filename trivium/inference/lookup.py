"""Guessing the next tokens from the text itself: what followed the last time its newest tokens occurred.

The model then reads the guesses in one forward pass and draws a token at each place as if there had been none; a
guess counts as far as it is what was drawn. So the answer is the same with and without guesses, with chance and
without, and only the number of forward passes is smaller (the acceptance rule of Leviathan et al. 2023, arXiv
2211.17192, for guesses without chance; the guesses are those of Saxena 2023, "prompt lookup decoding").
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST, _SHORTEST = 3, 2
"""How many of the newest tokens must have occurred before; the longer run first."""


def guess(ids: Sequence[int], most: int) -> list[int]:
    """At most `most` tokens that may follow: those behind the latest earlier place that reads as `ids` ends."""
    if most < 1:
        return []
    for size in range(_LONGEST, _SHORTEST - 1, -1):
        if len(ids) <= size:
            continue
        newest = list(ids[-size:])
        for at in range(len(ids) - size - 1, -1, -1):
            if ids[at] == newest[0] and list(ids[at : at + size]) == newest:
                return list(ids[at + size : at + size + most])
    return []
