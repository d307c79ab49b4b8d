"""The checkpoints of a run: saved all or nothing, verified before they are trusted, never fewer than two left.

    checkpoints/step-00000200/     an artifact of kind "checkpoint"
    checkpoints/damaged-step-...   set aside, for a look by a person
    latest                         the name of the newest complete checkpoint

One process per run uses the store (in a distributed run: rank 0).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.artifacts import faults
from trivium.artifacts.manifest import MANIFEST, read_manifest, unreadable, verify
from trivium.artifacts.record import Parent
from trivium.artifacts.temporary import flush, remove_leftovers
from trivium.artifacts.writer import explained, remove_artifact, require_space, write_artifact, write_file
from trivium.errors import ArtifactDamaged, ArtifactError

_NAME = re.compile(r"^step-(\d{8,})$")
_ROOM = 1.05  # of the size of the last checkpoint; they hardly grow


class CheckpointStore:
    """The folder `checkpoints` and the file `latest` of a run folder; keeps the `keep` newest that verify (>= 2)."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        """Nothing is read or written before the first call of a method."""
        if keep < 2:
            raise ArtifactError("at least two checkpoints must be kept", where="keep", value=keep, fix="use 2 or more")
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep
        self.messages: list[str] = []
        """What a person should know: checkpoints set aside, and why."""
        self._latest_file = Path(run_dir) / "latest"

    def save(
        self,
        step: int,
        fill: Callable[[Path], None],
        *,
        parents: Sequence[Parent] = (),
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Path:
        """Write the checkpoint of `step`: `fill` gets a folder to write into. Then `latest` moves, then old ones go.

        Raises DiskFull, before writing where that can be foreseen; the checkpoints that exist stay as they are, so a
        caller may go on training and try again later.
        """
        path = self.path(step)
        require_space(self.folder, int(self._newest_size() * _ROOM), purpose="a checkpoint")
        if path.exists():  # written before the run went back to an older one: if damaged, it must not be in the way
            self._verified(len(self._all_steps()))
        with write_artifact(
            path, kind="checkpoint", parents=parents, config=config, seed=seed, replace=True
        ) as temporary:
            fill(temporary)
        write_file(self._latest_file, f"{path.name}\n")
        self._prune(just_written=path)
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies, None without one. Damaged newer ones are set aside with a message."""
        if self.folder.is_dir():
            with explained(self.folder):
                remove_leftovers(self.folder)
        verified = self._verified(1)
        return verified[0] if verified else None

    def prune(self) -> None:
        """Remove checkpoints older than the `keep` newest that verify, after verifying those."""
        self._prune(just_written=None)

    def clear(self) -> None:
        """Remove every checkpoint, of a run that will not go on."""
        self._point_to(None)
        for step in self._all_steps():
            remove_artifact(self.path(step))

    def _prune(self, *, just_written: Path | None) -> None:
        verified = self._verified(self.keep, just_written=just_written)
        if len(verified) == self.keep:
            for step in self.steps():
                if step < self._step(verified[-1]):
                    remove_artifact(self.path(step))

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return [step for step in self._all_steps() if (self.path(step) / MANIFEST).is_file()]

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies, or will lie."""
        return self.folder / f"step-{step:08d}"

    def require_space(self, checkpoint_bytes: int) -> None:
        """Raise DiskFull unless the checkpoints of a whole run fit, given the size of one (before the run starts)."""
        have = len(self.steps())
        require_space(self.folder, (self.keep + 1 - have) * checkpoint_bytes, purpose="keeping the checkpoints")

    def _all_steps(self) -> list[int]:
        """Those that lost their manifest as well; a save never leaves such a folder behind."""
        try:
            entries = faults.listdir(self.folder) if self.folder.is_dir() else []
        except OSError as error:
            raise unreadable(self.folder, error) from error
        return sorted(int(match[1]) for match in (_NAME.match(entry.name) for entry in entries) if match)

    def _newest_size(self) -> int:
        for step in reversed(self.steps()):
            with contextlib.suppress(ArtifactDamaged):
                return read_manifest(self.path(step)).size
        return 0

    def _verified(self, count: int, *, just_written: Path | None = None) -> list[Path]:
        """The `count` newest that verify. `latest` is set before the damaged ones on the way are set aside.

        What was just written was hashed as it lay on the disk a moment ago, and is not read once more.
        """
        verified: list[Path] = []
        damaged: list[tuple[Path, str]] = []
        for step in reversed(self._all_steps()):
            path = self.path(step)
            try:
                if path != just_written:
                    verify(path)
            except ArtifactDamaged as error:
                damaged.append((path, str(error)))
            except ArtifactError as error:
                self.messages.append(f"{path.name} is skipped: {error}")
            else:
                verified.append(path)
            if len(verified) == count:
                break
        if damaged:
            self._point_to(verified[0] if verified else None)
        for path, reason in damaged:
            self._set_aside(path, reason)
        return verified

    def _point_to(self, newest: Path | None) -> None:
        if newest is not None:
            write_file(self._latest_file, f"{newest.name}\n")
        elif self._latest_file.exists():
            with explained(self._latest_file):
                faults.unlink(self._latest_file)
                flush(self._latest_file.parent)

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(f"damaged-{path.name}")
        number = 2
        while aside.exists():
            aside = path.with_name(f"damaged-{path.name}-{number}")
            number += 1
        with explained(path):
            faults.rename(path, aside)
            flush(path.parent)
        self.messages.append(f"{path.name} is damaged and was set aside as {aside.name}: {reason}")

    @staticmethod
    def _step(path: Path) -> int:
        return int(path.name.removeprefix("step-"))
