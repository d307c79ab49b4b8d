"""`python -m tests.distributed.one_run RECIPE.json UNTIL`: train; with UNTIL > 0 get SIGTERM after that update."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import trivium as tv
from trivium.core.callbacks import Metrics
from trivium.errors import Interrupted


def main() -> None:
    """Exit code 5 when it was interrupted."""
    recipe, until = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2])
    original = Metrics.update_end

    def update_end(self: Metrics, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.progression.step == until:
            os.kill(os.getpid(), signal.SIGTERM)

    Metrics.update_end = update_end  # type: ignore[method-assign]
    try:
        tv.train(recipe)
    except Interrupted as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
