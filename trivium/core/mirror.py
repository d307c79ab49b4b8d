"""Metrics for TensorBoard. The files of the run are the truth; a mirror that fails never stops or slows a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tensorboard_mirror(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that copies the numbers of a line of metrics into TensorBoard event files.

    Writing happens in TensorBoard's own thread. After the first failure it says so once and goes silent.
    """
    from tensorboard.summary import Writer

    writer = Writer(str(folder))
    working = True

    def mirror(line: dict[str, Any]) -> None:
        nonlocal working
        if not working:
            return
        try:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("step", "tokens"):
                    writer.add_scalar(f"{line['kind']}/{name}", float(value), line["step"])
            writer.flush()
        except Exception as error:
            working = False
            print(f"TensorBoard files are no longer written: {error}", file=sys.stderr)

    return mirror
