"""From lines that have a place on a page to running text: no running heads; paragraphs, headings and words whole.

The lines come from a PDF (`trivium.data.markup.pdf_worker`).
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trivium.data.markup.sections import heading, tidy

_LIGATURES = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\xa0": " ", "\xad": ""}
)
_CONTROLS = re.compile("[\x00\x01\x03-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ue000-\uf8ff]")
_HYPHEN = re.compile(r"(\w+)(?:\x02[ \n]?|-\n)(\w+)")
_NUMBER_LINE = re.compile(r"\W*(?:page\s*)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:of|/)\s*\d{1,4})?\W*$", re.IGNORECASE)
_NUMBERS = re.compile(r"[0-9]+|\b[ivxlc]+\b")
_LEADERS = re.compile(r"(?:\. ?){5,}\s*(?:\d+|[ivxlc]+)?\s*$")
_NUMBERING = re.compile(r"^\s*(?:(?:chapter|part|appendix)\s+)?[\dIVXA-H]{1,4}(?:\.\d+)*\.?\s+", re.IGNORECASE)
_BULLET = re.compile(r"[•▪◦‣●○∙·*–-]\s+")  # noqa: RUF001
_ENDS = re.compile(r"[.:;!?”\"’)\]]$")  # noqa: RUF001
_REFERENCES = re.compile(
    r"^(#{2,6}) (?:[\dIVX]+\.? )?(?:references|bibliography|literature cited|works cited)$",
    re.IGNORECASE | re.MULTILINE,
)
_EDGE = 2
"""Lines at the top and at the bottom of a page that can be running heads or feet."""


@dataclass(frozen=True)
class Line:
    """A line of a page and its place in points, from the lower left corner."""

    page: int
    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float


def running_text(pages: Sequence[Sequence[Line]], outline: Mapping[tuple[int, str], int]) -> tuple[str, int]:
    """(the text, how many lines of heads, feet and contents were left out); outline: (page, title) -> level from 0."""
    total = sum(map(len, pages))
    lines = [line for page in without_running_heads(pages) for line in page if not _LEADERS.search(line.text)]
    if not lines:
        return "", total
    sizes = Counter[float]()
    for line in lines:
        sizes[round(line.size)] += len(line.text)
    body = sizes.most_common(1)[0][0]
    titles = {(page, _key(title)): level for (page, title), level in outline.items()}
    text = "\n\n".join(_paragraphs(lines, body, titles))
    return tidy(_whole_words(text)), total - len(lines)


def without_references(text: str) -> str:
    """The text of a paper without its list of references; what follows under a heading of the same level stays."""
    found = [match for match in _REFERENCES.finditer(text) if match.start() > len(text) // 3]
    if not found:
        return text
    match = found[-1]
    following = re.compile(rf"^#{{2,{len(match[1])}}} ", re.MULTILINE).search(text, match.end())
    return tidy(text[: match.start()] + (text[following.start() :] if following else ""))


def without_running_heads(pages: Sequence[Sequence[Line]]) -> Iterator[list[Line]]:
    """The pages without page numbers, and without what stands at the same edge of several pages."""
    seen: Counter[str] = Counter()
    edges = [_edges(page) for page in pages]
    for edge in edges:
        seen.update({_pattern(line) for line in edge})
    for page, edge in zip(pages, edges, strict=True):
        dropped = {
            id(line)
            for line in edge
            if seen[_pattern(line)] >= (2 if "#" in _pattern(line) else 3)
            or (len(page) > 3 and _NUMBER_LINE.match(line.text))
        }
        yield [line for line in page if id(line) not in dropped]


def _edges(page: Sequence[Line]) -> list[Line]:
    placed = sorted(page, key=lambda line: -line.bottom)
    return placed if len(placed) <= 2 * _EDGE else placed[:_EDGE] + placed[-_EDGE:]


def _pattern(line: Line) -> str:
    """The text with numbers alike, and where it stands."""
    text = _NUMBERS.sub("#", line.text.strip().lower())
    return f"{text} {round(line.bottom / 12)}"


def _key(title: str) -> str:
    return re.sub(r"\W|_", "", _NUMBERING.sub("", title)).lower()


def _paragraphs(lines: Sequence[Line], body: float, titles: Mapping[tuple[int, str], int]) -> Iterator[str]:
    steps = [
        before.bottom - line.bottom
        for before, line in pairwise(lines)
        if before.page == line.page and 0 < before.bottom - line.bottom < 4 * body
    ]
    step = statistics.median(steps) if steps else 1.2 * body
    width = statistics.quantiles([line.right for line in lines], n=10)[-1] if len(lines) > 1 else lines[0].right
    larger = sorted({round(line.size) for line in lines if line.size > 1.2 * body and len(line.text) < 120})[::-1]
    words: list[str] = []
    before: Line | None = None
    for line in lines:
        level = _level(line, body, larger, titles)
        if words and before is not None and (level is not None or _breaks(before, line, step, width)):
            yield "\n".join(words)
            words = []
        if level is None:
            words.append(_BULLET.sub("- ", line.text.strip(), count=1))
        else:
            yield heading(level, line.text.strip().rstrip("."))
        before = None if level is not None else line
    if words:
        yield "\n".join(words)


def _level(line: Line, body: float, larger: Sequence[int], titles: Mapping[tuple[int, str], int]) -> int | None:
    """The level of a heading: as the outline of the document says, or by the size of its letters if there is none."""
    text = line.text.strip()
    if titles:
        found = titles.get((line.page, _key(text))) if len(text) < 200 else None
        return None if found is None else found + 2
    if round(line.size) in larger and len(text) < 120 and re.search(r"[^\W\d]{2}", text):
        return 2 + min(larger.index(round(line.size)), 3)
    return None


def _breaks(before: Line, line: Line, step: float, width: float) -> bool:
    """Whether a paragraph ends between two lines."""
    if _BULLET.match(line.text.strip()):
        return True
    if before.page != line.page or line.bottom > before.bottom:
        return bool(_ENDS.search(before.text.strip())) and before.right < 0.9 * width
    if before.bottom - line.bottom > 1.45 * step or abs(before.size - line.size) > 0.25 * max(before.size, 1):
        return True
    ended = bool(_ENDS.search(before.text.strip()))
    return ended and (line.left > before.left + 6 or before.right < 0.85 * width)


def _whole_words(text: str) -> str:
    """Words that were divided at the end of a line are whole again, lines are joined."""
    text = _CONTROLS.sub("", text.translate(_LIGATURES))
    known = Counter(re.findall(r"\w+(?:-\w+)*", text))

    def joined(match: re.Match[str]) -> str:
        whole, divided = match[1] + match[2], f"{match[1]}-{match[2]}"
        keeps = (
            known[divided] > known[whole] or (match[2][:1].isupper() and not known[whole]) or match[1][-1:].isdigit()
        )
        return divided if keeps else whole

    text = _HYPHEN.sub(joined, text).replace("\x02", "-")
    return re.sub(r"(?<!\n)\n(?![\n-])", " ", text)
