"""Words, lines and sentences as the quality filters count them. Linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal

WordKind = Literal["whitespace", "marks"]
"""How text is cut into words: at white space (as the papers count), or with every punctuation mark as a word of its
own (nearly what spaCy's rules give, and so what datatrove counts)."""

_MARKED = re.compile(r"\b[A-Z]\.(?!\w)|\.{2,}|-{2,}|['\u2019](?:s|ll|re|ve|d|m|t)\b|\w(?:[^\s'\u2019-]*\w)?|[^\w\s]")

TERMINAL = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362"
    "\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa\u1aab"
    "\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049"
    "\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d"
    "\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
"""Characters that end a sentence in the scripts in use (Unicode's Sentence_Terminal, and three Khmer signs)."""

_ABBREVIATIONS = frozenset((
    "Mr", "Ms", "Dr", "St", "Mt", "Jr", "Sr", "Lt", "Co", "No", "Fr", "Mrs", "Rev", "Gov", "Sen", "Rep", "Gen", "Col",
    "Sgt", "Inc", "Ltd", "etc", "vs", "Jan", "Feb", "Mar", "Apr", "Aug", "Sep", "Oct", "Nov", "Dec", "Prof", "Capt",
    "Hon", "e.g", "i.e", "approx",
))  # fmt: skip
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))
_SENTENCE_END = re.compile(r"""[.!?\u2026]["'\u201d\u2019)\]]*\s+(?=\S)|[\u3002\uff01\uff1f](?=\S)""")


def split_words(text: str, kind: WordKind) -> list[str]:
    """The words of a text."""
    return text.split() if kind == "whitespace" else _MARKED.findall(text)


def lines_of(text: str) -> list[str]:
    """The lines that hold anything."""
    return [line for line in text.split("\n") if line and not line.isspace()]


def count_sentences(line: str, enough: int) -> int:
    """How many sentences a line holds, or `enough`; full stops of abbreviations and initials do not end one."""
    return min(enough, 1 + sum(1 for _ in islice(_sentence_ends(line), enough)))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    found, start = [], 0
    for end in _sentence_ends(text):
        found.append(text[start:end].strip())
        start = end
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


def _sentence_ends(text: str) -> Iterator[int]:
    """Where a new sentence begins."""
    for end in _SENTENCE_END.finditer(text):
        at = end.start()
        if text[at] == ".":
            before = text[max(0, at - _LONGEST_ABBREVIATION - 1) : at].rpartition(" ")[2]
            if before in _ABBREVIATIONS or (len(before) == 1 and before.isupper()):
                continue
        yield end.end()


def repeats(items: list[str]) -> tuple[int, int]:
    """(how many items occurred before in the list, how many characters these have)."""
    different = set(items)
    if len(different) == len(items):
        return 0, 0
    return len(items) - len(different), sum(map(len, items)) - sum(map(len, different))


def ratio_of(measured: float, what: str, limit: str, bound: float) -> str:
    """Evidence in words: `0.231 of the lines, at most 0.2`."""
    return f"{measured:.4g} {what}, {limit} {bound:g}"
