"""Which document of a cluster stays, what becomes of the others, and the report of it.

Of a cluster one document stays: a held-out one (`meta["split"]` names another split than train) before those of the
training data, then by the chosen order, then the first of the corpus. So the result depends on the corpus and its order
and on nothing else: not on how many workers there are, nor on where parts end.

What must be known of each document is 9 bytes; names are read again for those documents alone that have a double.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from trivium.artifacts.writer import write_plain
from trivium.config import StrictModel
from trivium.data.dedup.words import Ints
from trivium.data.documents import Document
from trivium.data.step import Merged, Result
from trivium.errors import ConfigError, DataError

CLUSTERS = "clusters.jsonl"
"""{"kept": id, "size": n, "members": [{"id", "similarity", "reason"}]} a line; large clusters take several lines."""

Keep = Literal["first", "longest", "highest"]
Action = Literal["drop", "mark"]
Likeness = Callable[[Ints, Ints], NDArray[np.float64]]
"""How alike pairs of documents are; 1 for equal texts."""

_MEMBERS_A_LINE = 1000


class Keeping(StrictModel):
    """What steps that look for clusters of documents have in common."""

    keep: Keep = "first"
    """Which one of a cluster stays: the first, the longest, or the one with the highest value of `field`."""
    field: str | None = None
    """Name of a number in meta (keep: highest)."""
    action: Action = "drop"
    """Leave the others out, or keep all and write the id of the first into meta: cluster (for `split`)."""

    @model_validator(mode="after")
    def _has_field(self) -> Self:
        if (self.keep == "highest") != (self.field is not None):
            raise ConfigError(  # without a place, which is that of the step
                "keep: highest needs the field of meta whose value counts"
                if self.field is None
                else "field counts for highest",
                fix="write {keep: highest, field: score}, or leave field out",
            )
        return self


def roster(documents: Sequence[Document], *, keep: Keep, field: str | None = None) -> dict[str, bytes]:
    """The part of a sketch that says who the documents are and in which order they would stay."""
    ranks = np.array([_rank(document, keep, field) for document in documents], dtype="<f8")
    held_out = np.array([document.meta.get("split", "train") != "train" for document in documents], dtype=np.uint8)
    names = json.dumps([document.id for document in documents], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return {"ranks": ranks.tobytes(), "held_out": held_out.tobytes(), "names": names}


def _rank(document: Document, keep: Keep, field: str | None) -> float:
    """What is higher stays."""
    if keep == "first":
        return 0.0
    if keep == "longest":
        return float(len(document.text))
    value = document.meta.get(field or "")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise DataError(
            f"the field {field!r} of meta holds no number",
            where=document.source,
            value=value,
            fix="name another field, or use keep: longest",
        )
    return -np.inf if value is None or np.isnan(value) else float(value)


def sketched(sketches: Sequence[Mapping[str, Path]], name: str, dtype: str, width: int = 1) -> NDArray[Any]:
    """[n] or [n, width] what the sketches of all parts hold under a name, in order."""
    found = [np.fromfile(sketch[name], dtype=dtype) for sketch in sketches]
    whole = np.concatenate([np.zeros(0, dtype=dtype), *found])
    return whole if width == 1 else whole.reshape(-1, width)


def settle(
    roots: Ints,
    sketches: Sequence[Mapping[str, Path]],
    folder: Path,
    *,
    likeness: Likeness,
    action: Action = "drop",
) -> list[Any]:
    """One decision for each part, and the report of clusters.

    roots: [n] the same number for the documents of one cluster.
    """
    ranks, held_out = sketched(sketches, "ranks", "<f8"), sketched(sketches, "held_out", "u1").astype(np.bool_)
    keepers = _keepers(roots, ranks, held_out)
    doubled = np.bincount(roots, minlength=len(roots))[roots] > 1 if len(roots) else np.zeros(0, dtype=np.bool_)
    members = np.flatnonzero(doubled)
    alike = np.ones(len(members))
    others = keepers[members] != members
    alike[others] = likeness(members[others], keepers[members[others]])
    names = dict(_names(sketches, doubled))
    leaks = held_out[keepers] & ~held_out
    facts = {
        number: [names[int(keepers[number])], round(float(value), 4), bool(leaks[number])]
        for number, value in zip(members.tolist(), alike, strict=True)
    }
    write_plain(folder / CLUSTERS, _report(members, keepers, names, facts))
    decisions: list[Any] = []
    start = 0
    for sketch in sketches:
        end = start + sketch["held_out"].stat().st_size
        inside = members[np.searchsorted(members, start) : np.searchsorted(members, end)].tolist()
        decisions.append(
            {
                "action": action,
                "members": [[number - start, int(keepers[number]) == number, *facts[number]] for number in inside],
            }
        )
        start = end
    return decisions


def apply_decision(documents: Sequence[Document], decision: Any) -> list[Result]:
    """What becomes of the documents of a part."""
    results: list[Result] = list(documents)
    for position, kept, name, alike, leak in decision["members"]:
        if decision["action"] == "mark":
            document = documents[position]
            results[position] = replace(document, meta={**document.meta, "cluster": name})
        elif not kept:
            results[position] = Merged(name, _reason(alike, leak), alike)
    return results


def _reason(alike: float, leak: bool) -> str:
    return f"{'exact' if alike == 1 else 'near'} duplicate{' of a held-out document' if leak else ''}"


def _keepers(roots: Ints, ranks: NDArray[np.float64], held_out: NDArray[np.bool_]) -> Ints:
    """[n] the document that stays of each document's cluster."""
    order = np.lexsort((np.arange(len(roots)), -ranks, ~held_out))
    keepers = np.empty(len(roots), dtype=np.int64)
    keepers[roots[order[::-1]]] = order[::-1]  # the best one is written last
    return keepers[roots]


def _names(sketches: Sequence[Mapping[str, Path]], wanted: NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
    start = 0
    for sketch in sketches:
        end = start + sketch["held_out"].stat().st_size
        if wanted[start:end].any():
            names = json.loads(sketch["names"].read_bytes().decode("utf-8", "surrogatepass"))
            for position in np.flatnonzero(wanted[start:end]).tolist():
                yield start + position, names[position]
        start = end


def _report(members: Ints, keepers: Ints, names: Mapping[int, str], facts: Mapping[int, list[Any]]) -> Iterator[bytes]:
    """Clusters in the order of the documents that stay."""
    order = members[np.lexsort((members, keepers[members]))]
    kept, firsts = np.unique(keepers[order], return_index=True)
    for keeper, cluster in zip(kept.tolist(), np.split(order, firsts[1:]), strict=True) if len(order) else ():
        others = [number for number in cluster.tolist() if number != keeper]
        for at in range(0, len(others), _MEMBERS_A_LINE):
            rows = []
            for number in others[at : at + _MEMBERS_A_LINE]:
                _, alike, leak = facts[number]
                rows.append({"id": names[number], "similarity": alike, "reason": _reason(alike, leak)})
            row = {"kept": names[keeper], "size": len(cluster), "members": rows}
            yield json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
