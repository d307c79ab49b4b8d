"""Answers in a context, as SQuAD counts them (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without articles and punctuation, with single spaces."""
    plain = _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION))
    return " ".join(plain.split())


def exact(given: str, right: str) -> float:
    """1 if both are the same answer."""
    return float(normalised(given) == normalised(right))


def overlap(given: str, right: str) -> float:
    """F1 over the words; without an answer on either side, whether there is none on both."""
    words, wanted = normalised(given).split(), normalised(right).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def best(given: str, right: Sequence[str]) -> tuple[float, float]:
    """(exact, F1) against the nearest of several right answers; none of them means that there is no answer."""
    known = [answer for answer in right if normalised(answer)] or [""]
    return max(exact(given, answer) for answer in known), max(overlap(given, answer) for answer in known)
