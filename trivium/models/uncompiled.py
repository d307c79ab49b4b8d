"""Running compiled blocks as they are written, where compiling for another shape would cost more than it saves.

torch's switch for that belongs to the process, and puts back what it found. Threads that generate side by side end in
another order than they began, and one of them would leave the switch on for good. So they are counted.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

import torch


class _Uncompiled:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.switch: Any = None

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            # Where nothing is compiled, asking would import the compiler.
            if self.switch is None and "torch._dynamo" in sys.modules:
                self.switch = torch.compiler.set_stance("force_eager")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.switch is not None:
                self.switch.__exit__(kind, error, trace)
                self.switch = None


UNCOMPILED = _Uncompiled()
"""Inside, in all threads, compiled blocks run eagerly, until the last thread has left."""
