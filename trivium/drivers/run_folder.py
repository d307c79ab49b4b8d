"""The folder of a run: who may write into it, what it was started with, and in which state it is."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.artifacts.environment import environment, other_arithmetic
from trivium.artifacts.secrets import redact_command
from trivium.artifacts.temporary import is_at
from trivium.artifacts.writer import make_folder, write_file
from trivium.config import ResolvedRecipe, resolve
from trivium.errors import ConfigError

FREE_TO_CHANGE = (
    "trivium_version",
    "runs",
    "engine",
    "data.prefetch",
    "data.probe",
    "train.micro_batch_size",
    "train.compile",
    "train.activation_checkpointing",
    "train.checkpoint_every_block",
    "train.offload",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.validate_every",
    "train.validation_batches",
    "train.sample_every",
    "train.sample_prompts",
    "train.sample_tokens",
    "train.tensorboard",
    "train.threads",
    "train.max_nonfinite",
)
"""Keys that may differ when a run is continued: they change where and how it is computed, not what."""


BUSY = "another process is training in this folder"


@dataclass(frozen=True)
class Run:
    """A run on the disk.

    folder: everything about it.  final: the trained model folder, None if the run did not go to its end.
    """

    folder: Path
    final: Path | None


class RunFolder:
    """Reads and writes what a run folder says about itself."""

    def __init__(self, resolved: ResolvedRecipe) -> None:
        self.resolved = resolved
        self.path = Path(resolved.recipe.runs) / resolved.recipe.name
        self.final = self.path / "final"
        self.main = os.environ.get("RANK", "0") == "0"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one run may train in a folder; its main process holds the lock."""
        if not self.main:
            yield
            return
        with alone_in(self.path, BUSY):
            yield

    def set_aside(self) -> Path | None:
        """Moves an earlier run out of the way (`--fresh`); nothing is deleted. Refuses while it is running."""
        return set_aside_alone(self.path, BUSY)

    def begin(self, *, has_checkpoint: bool) -> list[str]:
        """Writes configuration and environment; refuses to continue a run that was started with other settings.

        Returns what to say of it.
        """
        stored, now, others = self.path / "config.yaml", environment(), list[str]()
        if has_checkpoint and stored.exists():
            self.refuse_other_settings(stored)
            others = other_arithmetic(self.read_json("environment.json"), now)
        write_file(stored, self.resolved.to_yaml())
        differences = {key: list(pair) for key, pair in self.resolved.differences_from_defaults().items()}
        write_file(self.path / "differences.json", json.dumps(differences, indent=1, default=str))
        write_file(self.path / "environment.json", json.dumps(now, indent=1))
        different = "; ".join(others)
        return (
            [f"not bit for bit what it would have been, since numbers are rounded otherwise: {different}"]
            if others
            else []
        )

    def refuse_other_settings(self, stored: Path) -> None:
        """Compares with what the run was started with, key by key."""
        refuse_differences(
            resolve(stored).dump(), self.resolved.dump(), stored, what=str(self.path), free=FREE_TO_CHANGE
        )

    def status(self, state: str, step: int, reason: str = "") -> None:
        """`status.json`: running, finished, interrupted, diverged or crashed."""
        command = " ".join(["trivium", *redact_command(sys.argv)[1:]])
        line = {"state": state, "step": step, "reason": reason, "command": command}
        write_file(self.path / "status.json", json.dumps(line, indent=1))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty if it is missing or cut."""
        with suppress(OSError, ValueError):
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file of the run."""
        write_file(self.path / name, json.dumps(content, indent=1, default=str))


def set_aside(path: Path) -> Path:
    """Renames a file or folder to the first free `<name>.<number>` beside it."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


@contextmanager
def alone_in(folder: Path, problem: str) -> Iterator[None]:
    """Only one process at a time works in a folder; ConfigError with the problem for all others."""
    descriptor = _take(folder, problem)
    try:
        yield
    finally:
        os.close(descriptor)


def set_aside_alone(folder: Path, problem: str) -> Path | None:
    """`set_aside` of a folder that nobody works in; None if it is not there."""
    if not folder.exists():
        return None
    with alone_in(folder, problem):
        return set_aside(folder)


def _take(folder: Path, problem: str) -> int:
    """A descriptor that holds the lock of the folder, which is made if it is not there."""
    while True:
        make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(problem, where=folder, fix="wait for it, stop it, or choose another name=...") from None
        if is_at(folder, descriptor):
            return descriptor
        os.close(descriptor)  # somebody set the folder aside in between


def refuse_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], stored: Path, *, what: str, free: Sequence[str] = ()
) -> None:
    """Raises ConfigError if `what` was started with other settings than now, but for those that are free to change."""
    before, after = _flat(then), _flat(now)
    for key in sorted(before.keys() | after.keys()):
        allowed = any(key == name or key.startswith(f"{name}.") for name in free)
        if not allowed and before.get(key) != after.get(key):
            raise ConfigError(
                f"{what} was started with another {key}",
                where=f"{stored}: {key}",
                value=f"{before.get(key)} then, {after.get(key)} now",
                fix="choose another name=..., go back to the old value, or start over with --fresh",
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in _flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }
