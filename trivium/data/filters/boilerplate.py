"""Lines that belong to a site and not to a page: the same line in many documents, and the usual phrases.

How many documents hold a line is counted exactly, by 64-bit hashes of (site, line) that each part of the corpus
writes in order; merging them takes one slice of the hash values at a time, so memory is bounded however many there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from trivium.data.documents import Document
from trivium.data.hashes import hash64

LINE = np.dtype([("line", "<u8"), ("site", "<u8"), ("documents", "<u4")])
"""A line of a site: both hashes, and how many documents hold it."""

_SLICE_LINES = 4_000_000
_FILE_LINE = re.compile(r":\d+\Z|, row \d+\Z")
_DIGITS = re.compile(r"\d+")

_LONGEST_PHRASE_LINE = 150
_PHRASES = re.compile(
    r"""^\W*(?:
    (?:we|this\ (?:web)?site|our\ (?:web)?site)\ (?:also\ )?uses?\ cookies\b.*
    |.*\b(?:accept|reject|manage|allow)\ (?:all\ )?cookies\b.*
    |by\ (?:continuing|using)\b.*\b(?:you\ (?:agree|accept|consent)|cookies)\b.*
    |(?:cookie|privacy)\ (?:policy|settings|preferences|notice)(?:\W+.*)?
    |terms\ (?:of\ (?:use|service)|and\ conditions|&\ conditions)(?:\W+.*)?
    |(?:skip|jump)\ to\ (?:main\ |the\ )?(?:content|navigation)
    |(?:log|sign)\ ?(?:in|out|up)(?:\ (?:or|/)\ .*)?|register|my\ account|create\ an?\ account
    |subscribe(?:\ (?:now|today|to\ our\ newsletter|to\ .{0,40}))?|(?:sign\ up|register)\ for\ (?:our|the|free)\b.*
    |(?:share|follow\ us|like\ us|tweet|pin\ it|e-?mail)(?:\ (?:this|on|via|it|us).{0,40})?
    |(?:facebook|twitter|instagram|linkedin|whatsapp|pinterest|youtube|reddit)(?:\W+(?:\w+\W*){0,6})?
    |(?:\u00a9|\(c\)|copyright\b).*|.*\ball\ rights\ reserved\W*
    |(?:home|menu|search|close|back\ to\ top|top|next|previous|read\ more|load\ more|show\ more|more|advertisement
       |sponsored|related\ (?:articles|posts|stories)|leave\ a\ (?:comment|reply)|no\ comments(?:\ yet)?|loading\W*
       |print(?:\ this\ page)?|contact(?:\ us)?|about(?:\ us)?|site\ ?map|faq|help)
    |please\ (?:enable|turn\ on)\ javascript\b.*|.*\bjavascript\ (?:is\ (?:disabled|required)|must\ be\ enabled)\b.*
    )\W*$""",
    re.IGNORECASE | re.VERBOSE,
)


def is_phrase(line: str) -> bool:
    """Whether a line is one of the usual phrases of menus, banners and footers (English)."""
    return len(line) <= _LONGEST_PHRASE_LINE and _PHRASES.match(line) is not None


def site_of(document: Document, by: str) -> str:
    """What a document shares its lines with: the host of its address, its file, or everything."""
    if by == "host":
        url = document.meta.get("url")
        return (urlsplit(url).hostname or "") if isinstance(url, str) else ""
    return _FILE_LINE.sub("", document.source) if by == "file" else ""


def line_key(site: str, line: str) -> int:
    """The same for lines that differ in digits, case and white space only (dates, counts of comments)."""
    plain = _DIGITS.sub("0", " ".join(line.split()).casefold())
    return hash64(f"{site}\0{plain}")


def site_key(site: str) -> int:
    """A number for a site."""
    return hash64(site)


def counted(documents: Sequence[tuple[str, set[int]]]) -> NDArray[np.void]:
    """The lines of one part in the order of their hashes; documents: (site, keys of its lines)."""
    size = sum(len(keys) for _, keys in documents)
    found = np.zeros(size, dtype=LINE)
    found["line"] = np.fromiter((key for _, keys in documents for key in keys), dtype=np.uint64, count=size)
    sites = np.array([site_key(site) for site, _ in documents], dtype=np.uint64)
    found["site"] = np.repeat(sites, [len(keys) for _, keys in documents])
    found["documents"] = 1
    return _summed(found)


def frequent(parts: Sequence[Path], sites: dict[int, int], *, least: int, share: float) -> NDArray[np.void]:
    """The lines that enough documents of their site hold, over all parts; sites: how many documents each has."""
    opened = [np.load(path, mmap_mode="r") for path in parts]
    slices = max(1, -(-sum(map(len, opened)) // _SLICE_LINES))
    width = -(-(1 << 64) // slices)
    kept = [np.zeros(0, dtype=LINE)]
    for number in range(slices):
        edges = np.array([number * width, min((number + 1) * width, (1 << 64) - 1)], dtype=np.uint64)
        last = number + 1 == slices
        inside = [_between(part, edges, last) for part in opened]
        merged = _summed(np.concatenate(inside)) if inside else kept[0]
        often = merged[merged["documents"] >= least]
        of_site = np.array([sites[key] for key in often["site"].tolist()], dtype=np.float64)
        kept.append(often[often["documents"] >= share * of_site])
    return np.concatenate(kept)


def _between(part: NDArray[np.void], edges: NDArray[np.uint64], last: bool) -> NDArray[np.void]:
    start, end = np.searchsorted(part["line"], edges)
    return np.array(part[start:] if last else part[start:end])


def _summed(lines: NDArray[np.void]) -> NDArray[np.void]:
    """One entry for each line, in order, with the sum of its documents."""
    if not len(lines):
        return lines
    lines = lines[np.argsort(lines["line"], kind="stable")]
    starts = np.flatnonzero(np.append(True, lines["line"][1:] != lines["line"][:-1]))
    summed = lines[starts]
    summed["documents"] = np.add.reduceat(lines["documents"], starts)
    return summed
