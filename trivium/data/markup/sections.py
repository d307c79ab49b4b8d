"""Text with headings: `## Title` lines in the text, and the same as a list in `meta`."""

from __future__ import annotations

import re

_HEADING = re.compile(r"^(#{2,6}) (.+)$", re.MULTILINE)
_BLANK = re.compile(r"\n{3,}")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)

Section = list[int | str]


def heading(level: int, title: str) -> str:
    """A heading as it stands in a text; the highest level is 2, because 1 is the title of the whole document."""
    return f"{'#' * min(max(level, 2), 6)} {' '.join(title.split())}"


def sections(text: str) -> list[Section]:
    """[level, title] of each heading, in the order of the text."""
    return [[len(match[1]), match[2]] for match in _HEADING.finditer(text)]


def without_empty_sections(text: str) -> str:
    """The text without the headings below which nothing is left."""
    kept: list[str] = []
    for line in reversed(text.split("\n")):
        match = _HEADING.match(line)
        if match:
            following = next((other for other in reversed(kept) if other.strip()), None)
            below = following and _HEADING.match(following)
            if following is None or (below and len(below[1]) <= len(match[1])):
                continue
        kept.append(line)
    return "\n".join(reversed(kept))


def tidy(text: str) -> str:
    """No white space at the ends of lines, at most one empty line."""
    return _BLANK.sub("\n\n", _TRAILING.sub("", text)).strip("\n")
