"""Runs a step that decides about a whole corpus, as a pipeline does."""

from __future__ import annotations

import json
from pathlib import Path


def run(step, given, folder: Path, *, part=3):
    """What becomes of the documents, when they are sketched in parts of this size."""
    parts = [given[start : start + part] for start in range(0, len(given), part)]
    sketches = []
    for number, each in enumerate(parts):
        files = {}
        for name, data in step.sketch(each).items():
            files[name] = folder / f"{number}.{name}"
            files[name].write_bytes(data)
        sketches.append(files)
    report = folder / "report"
    report.mkdir(exist_ok=True)
    decisions = json.loads(json.dumps(list(step.decide(sketches, report))))
    fresh = type(step)(type(step).Config(**step.config.model_dump()), seed=step.seed)
    return [
        result
        for each, decision in zip(parts, decisions, strict=True)
        for result in fresh.apply_all(each, decision)
    ]  # fmt: skip
