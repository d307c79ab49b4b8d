"""Splits that cannot leak: what belongs together is held out together, and stays where it is when data is added.

Documents belong together if they share a group (a book, an author, a speaker), a cluster of duplicates, or one was
made from the other. Such a unit is named by the least of its groups' hashes, and its split is a function of
that name and the seed alone; so more documents move nothing, unless one of them ties two units together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trivium.data.dedup.buckets import components
from trivium.data.dedup.words import Hashes, Ints
from trivium.data.documents import Document
from trivium.data.hashes import hash64
from trivium.errors import DataError

TRAIN = "train"


def main_keys(document: Document, fields: Sequence[str]) -> list[str]:
    """What names the unit of a document: its groups; itself where it has none."""
    keys = [f"{field}\0{value}" for field in fields for value in _values(document, field)]
    return keys or [f"id\0{document.meta.get('parent', document.id)}"]


def ties(document: Document) -> list[str]:
    """What else ties a document to others: the document it was made from, its cluster of duplicates."""
    found = [f"id\0{document.id}"]
    if document.meta.get("parent") is not None:
        found.append(f"id\0{document.meta['parent']}")
    if document.meta.get("cluster") is not None:
        found.append(f"id\0{document.meta['cluster']}")
    return found


def _values(document: Document, field: str) -> Iterable[str]:
    value = document.meta.get(field)
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list) else [value]
    for each in values:
        if not isinstance(each, str | int | float):
            raise DataError(
                f"the field {field!r} of meta is no name",
                where=document.source,
                value=each,
                fix="write a text or a number, or a list of them",
            )
    return [str(each) for each in values]


def units(keys: Hashes, counts: Ints) -> Ints:
    """[D] the first document of each document's unit.

    keys: [K] hashes of what ties documents together.  counts: [D] how many each document has.
    """
    owners = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return components(np.arange(len(counts), dtype=np.int64), owners[order][:-1][same], owners[order][1:][same])


def unit_names(roots: Ints, names: Hashes, counts: Ints, children: NDArray[np.bool_]) -> Hashes:
    """[D] for each document the name of its unit: the least of `names` (counts[i] of document i) in it.

    Documents made from others name a unit only where no other one does, so that adding them moves nothing.
    """
    owners = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    largest = np.uint64(2**64 - 1)
    found = np.full(len(roots), largest, dtype=np.uint64)
    first = ~children[owners]
    np.minimum.at(found, roots[owners[first]], names[first])
    nameless = found[roots[owners]] == largest
    np.minimum.at(found, roots[owners[nameless]], names[nameless])
    return np.asarray(found[roots])


def positions(names: Hashes, seed: int) -> NDArray[np.float64]:
    """[D] a number in [0, 1) for each name, drawn by the seed."""
    distinct, inverse = np.unique(names, return_inverse=True)
    drawn = np.array([hash64(f"split {seed} {name}") / 2.0**64 for name in distinct.tolist()])
    return drawn[inverse] if len(drawn) else np.zeros(0)


def by_fraction(places: NDArray[np.float64], fractions: Mapping[str, float]) -> NDArray[np.str_]:
    """[D] the split of each document; a larger fraction of one split keeps all that were in it.

    Splits lie next to each other from 0 on, in the order they are given, and train takes the rest.
    """
    names = [*fractions, TRAIN]
    ends = np.cumsum(list(fractions.values()))
    return np.array(names)[np.searchsorted(ends, places, side="right")]
