"""Why a document is in a corpus, or is not: each step's word about it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trivium.artifacts.lineage_documents import rows_with
from trivium.errors import ArtifactError, DataError

_SUGGESTED_FROM = 100_000


def why(output: Path, document: str) -> list[dict[str, Any]]:
    """What is recorded about a document, in order of the steps: `{"where", "outcome", ...}`.

    document: the id, or the SHA-256 of the text as it was read (then only documents that are in are found).
    Raises DataError, with ids like it, if nothing is known of it.
    """
    steps = output / "steps"
    if not steps.is_dir():
        raise ArtifactError(
            "this folder was not written by a pipeline", where=output, fix="give the output of trivium data run"
        )
    found = [
        {"where": file.parent.name, **row}
        for file in sorted(steps.glob("*/decisions.jsonl"))
        for row in rows_with(file, document, keys=("id",))
    ]
    found += [
        {"where": file.name, "outcome": "kept", "id": row["id"], "source": row["source"], **_few(row["meta"])}
        for file in sorted(output.glob("documents.*.jsonl"))
        for row in rows_with(file, document, keys=("id", "sha256"))
    ]
    if not found:
        near = _near(output, document)
        raise DataError(
            "no document of this id was read" if near else "no document like this was read",
            where=output,
            value=document,
            fix=f"did you mean {' or '.join(near)}?" if near else "ids stand in documents.*.jsonl, or decisions.jsonl",
        )
    return found


def as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    return "\n".join(_line(row) for row in found)


def _line(row: Mapping[str, Any]) -> str:
    if row["outcome"] == "kept":
        return f"{row['where']}: kept; read from {row['source']}"
    evidence = f" ({row['evidence']})" if row.get("evidence") else ""
    alike = f", similarity {row['similarity']}" if "similarity" in row else ""
    return f"{row['where']}: {row['outcome']}: {row['reason']}{evidence}{alike}"


def _few(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: meta[name] for name in ("sha256", "date", "url", "parent", "split") if name in meta}


def _near(output: Path, document: str) -> list[str]:
    files = sorted([*output.glob("documents.*.jsonl"), *output.glob("steps/*/decisions.jsonl")])
    names = (name for file in files for name in _ids(file))
    return difflib.get_close_matches(document, islice(names, _SUGGESTED_FROM), n=3, cutoff=0.7)


def _ids(file: Path) -> Iterator[str]:
    decoder = json.JSONDecoder()
    with file.open("rb") as stream:
        for line in stream:
            yield str(decoder.raw_decode(line.decode("utf-8", "replace"), len('{"id": '))[0])
