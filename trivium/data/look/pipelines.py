"""What a pipeline did, read from the folder it wrote: documents in and out of each step, reasons, and examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

_READ_LINES = 200_000
"""Decisions of one step that are looked at for examples."""
_EXAMPLES = 3


@dataclass(frozen=True)
class FlowStep:
    """One step: documents in, kept, added, and left out by (outcome, reason)."""

    name: str
    entered: int
    kept: int
    added: int
    left: dict[tuple[str, str], int]
    examples: dict[str, list[tuple[str, str]]]
    """For each reason a few of (id, evidence)."""


@dataclass(frozen=True)
class Flow:
    """All steps in order, the reading first."""

    steps: list[FlowStep]


def split_files(folder: Path) -> list[Path]:
    """The documents of a folder that a pipeline or `prepare_documents` wrote; none for anything else."""
    return sorted(folder.glob("documents.*.jsonl")) if folder.is_dir() else []


def read_flow(folder: Path) -> Flow | None:
    """The account of a pipeline; None where the folder holds none."""
    try:
        report = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    steps = report.get("steps") if isinstance(report, Mapping) else None
    if not isinstance(steps, list):
        return None
    return Flow([_step(folder, number, step) for number, step in enumerate(steps) if isinstance(step, Mapping)])


def _step(folder: Path, number: int, step: Mapping[str, Any]) -> FlowStep:
    left = {
        (outcome, reason): count
        for outcome in ("dropped", "merged", "quarantined")
        for reason, count in (step.get(outcome) or {}).items()
    }
    name = str(step.get("name", number))
    return FlowStep(name, step.get("in", 0), step.get("kept", 0), step.get("added", 0), left, _examples(folder, number))


def _examples(folder: Path, number: int) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for row in _decisions(folder, number):
        known = found.setdefault(str(row.get("reason", "")), [])
        if len(known) < _EXAMPLES:
            known.append((str(row.get("id", "")), str(row.get("evidence") or row.get("into") or "")))
    return found


def _decisions(folder: Path, number: int) -> Iterator[Mapping[str, Any]]:
    for candidate in folder.glob(f"steps/{number:02d}-*/decisions.jsonl"):
        with candidate.open(encoding="utf-8", errors="replace") as file:
            for line in islice(file, _READ_LINES):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, Mapping):
                    yield row
