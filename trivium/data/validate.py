"""Whether the rows of a file can be trained on: every problem with its row, what the rows are, and what is odd."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from trivium.data.hashes import hash64
from trivium.data.intake import Intake
from trivium.data.messages import Conversation
from trivium.data.reading import read_rows
from trivium.data.shapes import SHAPES, Item, Judged, Ranked, checked_shape, read_item
from trivium.errors import DataError
from trivium.recipe import Source

_METADATA = frozenset(("id", "meta", "metadata", "source", "license", "licence", "margin", "list"))


@dataclass
class Checked:
    """What was found. problems: (where, the whole message) of the first ones; wrong: how many rows have one."""

    path: str
    rows: int = 0
    wrong: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "path": self.path,
            "rows": self.rows,
            "wrong": self.wrong,
            "shapes": dict(self.shapes),
            "problems": [{"where": where, "message": message} for where, message in self.problems],
            "problems_by_kind": dict(self.kinds),
            "unused_fields": dict(self.unused),
            "repeated_rows": self.repeated,
            "notes": self.notes,
        }


def validate(source: Source, *, shape: str = "auto", limit: int = 20) -> Checked:
    """Read every row as training would; limit: how many problems are kept in full. Takes 50 bytes a row of memory."""
    found = Checked(source.path)
    intake = Intake("quarantine")
    seen: set[int] = set()
    labels: Counter[bool] = Counter()
    for row in read_rows(source, intake):
        found.rows += 1
        key = hash64(json.dumps(row.values, sort_keys=True, default=str))
        found.repeated += key in seen
        seen.add(key)
        try:
            name = checked_shape(row, shape)
            if SHAPES[name].read is not None:
                name, item, rest = read_item(row, name)
                _check(item, row.where)
                found.unused.update(rest.keys() - _METADATA)
                if isinstance(item, Judged):
                    labels[item.good] += 1
        except DataError as error:
            intake.reject(error)
            continue
        found.shapes[name] += 1
    _account(found, intake, limit)
    _note(found, labels)
    return found


def _check(item: Item, where: str) -> None:
    """What can be read and still cannot be learnt from."""
    if isinstance(item, Ranked):
        written = [json.dumps(response) for response in item.responses]
        if len(item.tiers) > 1 and len(set(written)) < len(written):
            raise DataError(
                "the same answer is given twice, so it would be better than itself", where=where,
                value=item.responses[0], fix="remove one of them",
            )  # fmt: skip
    if isinstance(item, Conversation) and all(
        message.get("train") is False for message in item.messages if message["role"] == "assistant"
    ):
        raise DataError("no answer is trained", where=where, fix='remove "train": false from one')


def _account(found: Checked, intake: Intake, limit: int) -> None:
    found.kinds = intake.quarantined
    found.wrong = sum(intake.quarantined.values())
    found.problems = [(problem.where or found.path, problem.message) for problem in intake.examples[:limit]]
    read = sum(found.shapes.values()) + found.wrong
    found.rows = max(found.rows, read)  # rows that are not even JSON are rows too


def _note(found: Checked, labels: Counter[bool]) -> None:
    if len(found.shapes) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in found.shapes.most_common())
        found.notes.append(f"the rows have several shapes: {listed}")
    if found.repeated:
        found.notes.append(f"{found.repeated} rows are exact repetitions of earlier ones")
    if len(labels) == 1:
        found.notes.append("all answers are judged the same, so there is nothing to tell apart")
    for name, count in found.unused.most_common(5):
        found.notes.append(f"field {name!r} is not used ({count} rows)")


def describe(found: Checked) -> str:
    """The result for a terminal."""
    shapes = ", ".join(f"{count:,} {name}" for name, count in found.shapes.most_common()) or "none"
    lines = [f"{found.path}: {found.rows:,} rows; good: {shapes}; with a problem: {found.wrong:,}"]
    lines += [message for _, message in found.problems]
    if found.wrong > len(found.problems):
        lines.append(f"... and {found.wrong - len(found.problems):,} more problems (--limit shows more)")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines)
