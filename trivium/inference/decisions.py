"""How the scores of a head become decisions: the temperature of its probabilities and the threshold of each label.

`decisions.json` in a model folder. Other programs do not know the file and use temperature 1 and thresholds of 0.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trivium.errors import ModelError

DECISIONS = "decisions.json"


@dataclass(frozen=True)
class Decisions:
    """temperature: what scores are divided by.  thresholds: probability from which on a label applies, by name (0.5
    where none is given).  rows: on how many rows both were fitted; 0: they were not."""

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_decisions(folder: Path, labels: tuple[str, ...]) -> Decisions:
    """The file of a model folder, the defaults where there is none; ModelError if it does not fit the model."""
    path = folder / DECISIONS
    if not path.is_file():
        return Decisions()
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        temperature, thresholds = float(content["temperature"]), dict(content["thresholds"])
        good = math.isfinite(temperature) and temperature > 0
        good = good and all(name in labels and 0 <= value <= 1 for name, value in thresholds.items())
        rows = int(content.get("rows", 0))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        good = False
    if not good:
        raise ModelError(
            "the file does not say how the scores of this model become decisions",
            where=path,
            fix="delete it, or write it again with `trivium eval MODEL DATA --calibrate FOLDER`",
        )
    return Decisions(temperature, thresholds, rows)
