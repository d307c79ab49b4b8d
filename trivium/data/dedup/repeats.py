"""What occurs several times in a corpus: the occurrences after the first ones, found with bounded memory.

Things (paragraphs, runs of words) are 64-bit hashes in the sketches of all parts. They are looked at in several passes,
in each those whose hash lies in one slice, so that memory does not grow with the corpus beyond one bit for each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.shelves import mapped
from trivium.data.dedup.words import Hashes, Ints

_BYTES_EACH = 48
"""Memory that one hash takes while its slice is sorted."""


def repeated(
    sketches: Sequence[Mapping[str, Path]], name: str, *, copies: int = 1, megabytes: int = 512
) -> tuple[list[NDArray[np.bool_]], list[tuple[int, int]]]:
    """(for each part which of its things are further occurrences, the most frequent things).

    The first `copies` occurrences stay; those of held-out documents come before those of training documents.
    The most frequent are (occurrences, number of the first occurrence in the corpus), at most a thousand.
    """
    parts = [mapped(sketch[name], "<u8") for sketch in sketches]
    later = [
        np.repeat(np.fromfile(sketch["held_out"], dtype="u1") == 0, np.fromfile(sketch[f"{name}_counts"], dtype="<i8"))
        for sketch in sketches
    ]
    starts = np.cumsum([0, *map(len, parts)])
    marks = [np.zeros(len(part), dtype=np.bool_) for part in parts]
    slices = max(1, -(-int(starts[-1]) * _BYTES_EACH // (megabytes << 20)))
    frequent: list[tuple[int, int]] = []
    for number in range(slices):
        hashes, places, after = _slice(parts, later, starts, number, slices)
        order = np.lexsort((places, after, hashes))
        fresh = np.ones(len(order), dtype=np.bool_)
        fresh[1:] = hashes[order][1:] != hashes[order][:-1]
        begins = np.flatnonzero(fresh)
        sizes = np.diff(np.append(begins, len(order)))
        rank = np.arange(len(order)) - np.repeat(begins, sizes)
        extra = np.sort(places[order[rank >= copies]])
        for part, mark in enumerate(marks):
            inside = extra[np.searchsorted(extra, starts[part]) : np.searchsorted(extra, starts[part + 1])]
            mark[inside - starts[part]] = True
        most = np.argsort(-sizes, kind="stable")[:1000]
        most = most[sizes[most] > copies]
        frequent.extend(zip(sizes[most].tolist(), places[order[begins[most]]].tolist(), strict=True))
    return marks, sorted(frequent, key=lambda item: (-item[0], item[1]))[:1000]


def spans(marks: NDArray[np.bool_], counts: Ints, width: int) -> Iterator[tuple[int, list[list[int]]]]:
    """(document, [[first, one past the last], ...]) for each document of a part with marked runs.

    marks: [S] of the runs of `width` words that begin at each place.  counts: [D] runs of each document.
    """
    ends = np.cumsum(counts)
    found = np.flatnonzero(marks)
    documents = np.searchsorted(ends, found, side="right")
    inside = found - (ends - counts)[documents]
    apart = np.ones(len(found), dtype=np.bool_)
    apart[1:] = (documents[1:] != documents[:-1]) | (inside[1:] > inside[:-1] + width)
    begins = np.flatnonzero(apart)
    lasts = np.append(begins, len(found))[1:] - 1
    held: list[list[int]] = []
    for first, last in zip(begins.tolist(), lasts.tolist(), strict=True):
        held.append([int(inside[first]), int(inside[last]) + width])
        if last + 1 == len(found) or documents[last + 1] != documents[last]:
            yield int(documents[last]), held
            held = []


def report(frequent: Sequence[tuple[int, int]], sketches: Sequence[Mapping[str, Path]], counts: str) -> Iterator[bytes]:
    """A line for each, with its first occurrence: {"occurrences", "document", "number", "length"}.

    What stands one after the other, equally often, is one line, and `length` says how many it is of.
    """
    sizes = np.concatenate([np.zeros(0, dtype=np.int64), *(np.fromfile(s[counts], dtype="<i8") for s in sketches)])
    ends = np.cumsum(sizes)
    documents = np.searchsorted(ends, np.array([place for _, place in frequent], dtype=np.int64), side="right")
    names: dict[int, str] = {}
    start = 0
    for sketch in sketches:
        size = sketch["held_out"].stat().st_size
        inside = documents[(documents >= start) & (documents < start + size)]
        if len(inside):
            listed = json.loads(sketch["names"].read_bytes().decode("utf-8", "surrogatepass"))
            names.update({number: listed[number - start] for number in inside.tolist()})
        start += size
    row: dict[str, Any] = {}
    for (size, place), document in zip(frequent, documents.tolist(), strict=True):
        number = place - int(ends[document] - sizes[document])
        fresh = {"occurrences": size, "document": names[document], "number": number, "length": 1}
        if row and fresh == {**row, "number": row["number"] + row["length"], "length": 1}:
            row["length"] += 1
            continue
        if row:
            yield _line(row)
        row = fresh
    if row:
        yield _line(row)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _slice(
    parts: Sequence[Hashes], later: Sequence[NDArray[np.bool_]], starts: Ints, number: int, slices: int
) -> tuple[Hashes, Ints, NDArray[np.bool_]]:
    """(hashes, places in the corpus, whether in training data) of what belongs to a slice."""
    found: list[tuple[Any, Any, Any]] = []
    for part, after, start in zip(parts, later, starts[:-1], strict=True):
        wanted = slice(None) if slices == 1 else np.flatnonzero(part % np.uint64(slices) == number)
        places = np.arange(len(part), dtype=np.int64)[wanted] + start
        found.append((np.asarray(part[wanted]), places, after[wanted]))
    empty = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))
    hashes, places, whether = (np.concatenate(each) for each in zip(empty, *found, strict=True))
    return hashes, places, whether
