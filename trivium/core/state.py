"""What a run is made of: everything with a `state_dict`, registered once under a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Stateful(Protocol):
    """Anything that can be saved and restored exactly."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progression:
    """Where the run is. All other randomness and order derives from these numbers.

    step:        finished updates, skipped ones included.
    position:    updates of data consumed; equals `step` unless a method makes several updates of one rollout.
    tokens:      trained tokens over all ranks.
    skipped:     updates that were skipped because loss or gradient was not finite.
    consecutive: skipped updates since the last good one.
    empty:       updates in which nothing was trained.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    skipped: int = 0
    consecutive: int = 0
    empty: int = 0

    def state_dict(self) -> dict[str, Any]:
        """All counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores all counters."""
        for name, value in state.items():
            setattr(self, name, value)


class RunState:
    """The registry of everything that a checkpoint must hold besides the models."""

    def __init__(self) -> None:
        self.parts: dict[str, Stateful] = {}

    def register(self, name: str, part: Stateful) -> None:
        """Adds a part; a name can be used once."""
        assert name not in self.parts, f"{name} is registered already"
        self.parts[name] = part

    def state_dict(self) -> dict[str, Any]:
        """State of every part by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores every part; both sides must name the same parts."""
        if set(state) != set(self.parts):
            raise ValueError(f"checkpoint holds {sorted(state)}, the run needs {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
