"""What a run folder says, read without trusting it: files may be missing, torn or damaged, and the run may be dead.

Nothing here raises for what it finds; what cannot be read is named in `Record.unreadable` and left out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from trivium.artifacts.secrets import redact, redact_text
from trivium.errors import ArtifactError

SILENT_AFTER = 600.0
"""Seconds without a sign of life after which a run that calls itself running is taken for killed."""
LARGEST_JSON = 16 << 20
LARGEST_LINE = 1 << 20
LONGEST_TEXT = 4000
"""Characters of a sample that are read."""
_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FILES = ("status.json", "metrics.jsonl", "timings.jsonl", "config.yaml")

Row = dict[str, Any]


@dataclass
class Record:
    """Everything the report needs to know of a run.

    train, validation: lines of metrics by step, one for each step; timings are merged into `train`.
    samples:           (step, [(prompt, completion), ...]) in the order of steps.
    checkpoints:       names of the complete ones, oldest first.
    touched:           when a file of the run was last written, seconds since 1970.
    """

    folder: Path
    status: Row = field(default_factory=dict)
    config_text: str = ""
    differences: Row = field(default_factory=dict)
    environment: Row = field(default_factory=dict)
    forecast: Row = field(default_factory=dict)
    fact: Row = field(default_factory=dict)
    data: Row = field(default_factory=dict)
    groups: Row = field(default_factory=dict)
    frozen: Row = field(default_factory=dict)
    probe: Row = field(default_factory=dict)
    config: Row = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    samples: list[tuple[int, list[tuple[str, str]]]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    touched: float = 0.0
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name in the configuration, else that of the folder."""
        return str(self.config.get("name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """running, finished, interrupted, diverged, crashed; `killed` if it calls itself running but is silent."""
        state = str(self.status.get("state", "unknown"))
        return "killed" if state == "running" and time.time() - self.touched > SILENT_AFTER else state

    @property
    def step(self) -> int:
        """The last update that anything is known of."""
        steps = [self.status.get("step"), *(row["step"] for row in (*self.train[-1:], *self.validation[-1:]))]
        return max((int(step) for step in steps if is_number(step)), default=0)

    @property
    def command(self) -> str:
        """The command line that started the run."""
        command = self.status.get("command") or self.environment.get("command") or ""
        return " ".join(map(str, command)) if isinstance(command, list) else str(command)

    def setting(self, key: str) -> Any:
        """The value of a dotted key of the configuration, None if it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_record(folder: Path) -> Record:
    """Reads a run folder. ArtifactError only if there is no such folder, or nothing of a run in it."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in _FILES):
        raise ArtifactError(
            "no run is here",
            where=folder,
            fix="give the folder of a run; it holds status.json, config.yaml and metrics.jsonl",
        )
    record = Record(folder)
    record.touched = max((folder / name).stat().st_mtime for name in _FILES if (folder / name).is_file())
    for name in ("status", "environment", "differences", "data", "groups", "frozen", "probe"):
        setattr(record, name, redact(_read_object(record, f"{name}.json")))
    both = _read_object(record, "forecast.json")
    record.forecast, record.fact = (
        part if isinstance(part := both.get(key), dict) else {} for key in ("forecast", "fact")
    )
    _read_config(record)
    _read_metrics(record)
    _read_samples(record)
    found = sorted((folder / "checkpoints").glob("step-*"))
    record.checkpoints = [path.name for path in found if (path / "MANIFEST.json").is_file()]
    return record


def _read_object(record: Record, name: str) -> Row:
    """The JSON object in a file; empty if there is none."""
    path = record.folder / name
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        record.unreadable.append(f"{name} is damaged and was left out")
        return {}
    return content


def _read_config(record: Record) -> None:
    import yaml

    path = record.folder / "config.yaml"
    if not path.is_file():
        return
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("too large")
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        record.unreadable.append("config.yaml is damaged and was left out")
        return
    record.config = redact(loaded)
    record.config_text = redact_text(yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=100))


def _read_metrics(record: Record) -> None:
    train: dict[int, Row] = {}
    validation: dict[int, Row] = {}
    for line in _read_lines(record, "metrics.jsonl"):
        (validation if line.get("kind") == "validation" else train)[line["step"]] = line
    for line in _read_lines(record, "timings.jsonl"):
        if line["step"] in train:
            train[line["step"]].update({key: value for key, value in line.items() if key != "step"})
    record.train = [train[step] for step in sorted(train)]
    record.validation = [validation[step] for step in sorted(validation)]


def _read_lines(record: Record, name: str) -> Iterator[Row]:
    """The lines that are objects with a step. A torn last line is normal; any other damage is counted."""
    path = record.folder / name
    if not path.is_file():
        return
    damaged, torn = 0, False
    with path.open("rb") as lines:
        while line := lines.readline(LARGEST_LINE):
            torn = not line.endswith(b"\n")
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not is_number(row.get("step")):
                    raise ValueError
            except (ValueError, RecursionError):
                damaged += 1
                continue
            row["step"] = int(row["step"])
            yield {key: _FLOATS.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
            torn = False
    if damaged - torn > 0:
        record.unreadable.append(f"{damaged - torn} damaged lines of {name} were left out")


def _text(value: Any) -> str:
    """The beginning of a text, as long as anyone will read, without secrets."""
    return redact_text(str("" if value is None else value)[:LONGEST_TEXT])


def _read_samples(record: Record) -> None:
    for path in sorted((record.folder / "samples").glob("step-*.json")):
        content = _read_object(record, f"samples/{path.name}")
        step, found = content.get("step"), content.get("samples")
        if not isinstance(step, int) or not isinstance(found, list):
            continue
        pairs = [(_text(item.get("prompt")), _text(item.get("completion"))) for item in found if isinstance(item, dict)]
        record.samples.append((step, pairs))
    record.samples.sort(key=lambda sample: sample[0])
