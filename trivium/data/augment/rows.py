"""Rows of any shape with more rows made from them: every column stays, one or several are augmented.

rows.jsonl       the rows of the sources in order, each followed by its children
report.json      the account: rows read, children made and thrown away by each step

A child has `parent` (the id of its row), `group` (what no split may divide), `augmentation`, and all columns. The
text of several columns (`premise`, `hypothesis`) is augmented in each; child n has the n-th text of each column,
and the row's own where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import write_artifact, write_file, write_plain
from trivium.data.augment.step import Augmenter
from trivium.data.documents import Document
from trivium.data.intake import Intake, OnError, Row
from trivium.data.pipeline import resolve_pipeline
from trivium.data.reading import read_rows, source_parent
from trivium.errors import ConfigError, DataError
from trivium.recipe import Source

ROWS = "rows.jsonl"
REPORT = "report.json"
_AT_ONCE = 64
"""Rows whose texts a model rewrites together."""


@dataclass(frozen=True)
class AugmentedRows:
    """The artifact, its rows and the account."""

    folder: Path
    rows: Path
    report: Mapping[str, Any]


def augment_rows(
    sources: Sequence[str | Mapping[str, Any]],
    output: str | Path,
    *,
    steps: Sequence[str | Mapping[str, Any]],
    fields: Sequence[str] = ("text",),
    seed: int = 0,
    on_error: OnError = "error",
) -> AugmentedRows:
    """Write the artifact `output` (kind "rows") as a stream; memory does not grow with the rows.

    steps: names of augmenting steps, or `{name: ..., <settings>}`; each makes children of the rows as they were read.
    Raises ConfigError for a step or setting that does not exist, DataError for a row without one of the fields.
    """
    output = Path(output)
    resolved = resolve_pipeline(
        {"output": str(output), "sources": list(sources), "steps": list(steps), "seed": seed, "on_error": on_error}
    )
    made = [_augmenter(step.name, step.cls, step.config, seed) for step in resolved.steps]
    if not made:
        raise ConfigError(
            "there is no step", where="steps", fix="name one: eda, synonyms, noise, paraphrase, backtranslate"
        )
    read = resolved.pipeline.sources
    models = dict.fromkeys(path for step in made for path in step.parents())
    parents = [*(source_parent(source, "rows") for source in read), *(parent_of(path, "model") for path in models)]
    config = {"steps": [step.dump() for step in resolved.steps], "fields": list(fields)}
    intake, counts = Intake(on_error), {"rows": 0, "children": 0}
    with write_artifact(output, kind="rows", parents=parents, config=config, seed=seed, replace=True) as folder:
        write_plain(folder / ROWS, _lines(read, made, fields, intake, counts))
        thrown = {step.name: {k: n for k, n in step.account.items() if k != "children"} for step in made}
        report = {**counts, "made": {step.name: step.account["children"] for step in made}, "thrown_away": thrown}
        report |= {"quarantined": dict(intake.quarantined), "formats": dict(intake.formats)}
        write_file(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return AugmentedRows(output, output / ROWS, report)


def _augmenter(name: str, cls: type[Any], config: Any, seed: int) -> Augmenter:
    if not issubclass(cls, Augmenter):
        raise ConfigError(
            "this step makes no rows from rows",
            where="steps",
            value=name,
            fix="use eda, synonyms, noise, paraphrase or backtranslate here, and other steps in `trivium data run`",
        )
    step: Augmenter = cls(config, seed=seed)
    return step


def _lines(
    sources: Sequence[Source], steps: Sequence[Augmenter], fields: Sequence[str], intake: Intake, counts: dict[str, int]
) -> Iterator[bytes]:
    rows = (row for source in sources for row in _checked(source, fields, intake))
    for group in _groups(rows):
        family = [[_with_id(row)] for row in group]
        for step in steps:
            for own, children in zip(family, _children(group, step, fields), strict=True):
                own += children
        counts["rows"] += len(group)
        counts["children"] += sum(len(own) - 1 for own in family)
        yield b"".join(
            json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n" for own in family for row in own
        )


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == _AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _checked(source: Source, fields: Sequence[str], intake: Intake) -> Iterator[Row]:
    """The rows that have a text in each field."""
    for row in read_rows(source, intake):
        wrong = next((name for name in fields if not isinstance(row.values.get(name), str)), None)
        if wrong is None:
            yield row
            continue
        known = wrong in row.values
        intake.reject(
            DataError(
                f"the field {wrong!r} holds no text" if known else f"the row has no field {wrong!r}",
                where=row.where,
                value=row.values[wrong] if known else f"fields: {', '.join(map(str, row.values))}",
                fix="name the fields that hold the texts to augment (--field NAME)",
            )
        )


def _id(row: Row) -> str:
    name = row.values.get("id")
    return str(name) if isinstance(name, str | int) and name != "" else row.name


def _with_id(row: Row) -> dict[str, Any]:
    return dict(row.values) if row.values.get("id") not in (None, "") else {"id": row.name, **row.values}


def _children(rows: Sequence[Row], step: Augmenter, fields: Sequence[str]) -> list[list[dict[str, Any]]]:
    """For each row its children by one step."""
    documents = []
    for row in rows:
        meta: dict[str, Any] = {
            name: row.values[name] for name in ("split", "augmentation", "language") if name in row.values
        }
        for number, name in enumerate(fields):
            own = _id(row) if number == 0 else f"{_id(row)}#{name}"
            documents.append(Document(own, row.values[name], row.where, meta=meta))
    results = iter(step.apply_all(documents))
    found = []
    for row in rows:
        texts: list[list[Document]] = []
        for _ in fields:
            result = next(results)
            texts.append(list(result[1:]) if isinstance(result, Sequence) else [])
        found.append([_child(row, fields, made) for made in zip_longest(*texts)])
    return found


def _child(row: Row, fields: Sequence[str], made: Sequence[Document | None]) -> dict[str, Any]:
    first = next(document for document in made if document is not None)
    name = _id(row)
    texts = {field: document.text for field, document in zip(fields, made, strict=True) if document is not None}
    group = row.values.get("group")
    lineage = {"parent": name, "group": group if isinstance(group, str) else name}
    return {**_with_id(row), **texts, "id": first.id, **lineage, "augmentation": first.meta["augmentation"]}
