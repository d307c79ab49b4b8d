"""`trivium.json`: what an artifact is and what it was made from."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trivium
from trivium.artifacts.manifest import RECORD, artifact_root, content_hash, unreadable
from trivium.artifacts.secrets import redact
from trivium.errors import ArtifactDamaged

_FORMAT = 1


@dataclass(frozen=True)
class Parent:
    """Something an artifact was made from: where it lay, the hash of its content, and what part it played.

    What is not on the disk (a built-in source of data) has a name instead of a path.
    """

    path: str
    hash: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of `trivium.json`. `id` is the hash of the artifact's content; `created` is UTC in ISO 8601."""

    kind: str
    id: str
    parents: tuple[Parent, ...]
    config: dict[str, Any] | None
    seed: int | None
    code: dict[str, str]
    created: str

    def to_bytes(self) -> bytes:
        """The JSON text that is stored."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, default=str) + "\n").encode()


def parent_of(path: Path, role: str) -> Parent:
    """A reference to an artifact, a folder inside one, any other folder, or a file, as it is now."""
    return Parent(str(path), content_hash(path), role)


def new_record(
    target: Path,
    *,
    kind: str,
    content: str,
    parents: tuple[Parent, ...],
    config: Mapping[str, Any] | None,
    seed: int | None,
) -> Record:
    """The record of an artifact that is about to be named `target`.

    Parent paths become relative to it, so that a folder of runs can be moved; secrets leave the configuration.
    """
    return Record(
        kind=kind,
        id=content,
        parents=tuple(Parent(_relative(parent.path, target), parent.hash, parent.role) for parent in parents),
        config=None if config is None else redact(config),
        seed=seed,
        code=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_record(folder: Path) -> Record | None:
    """The record of the artifact that `folder` is or lies in; None where there is none."""
    path = (artifact_root(folder) or folder) / RECORD
    try:
        content = json.loads(path.read_bytes())
        parents = tuple(Parent(str(p["path"]), str(p["hash"]), str(p["role"])) for p in content["parents"])
        return Record(
            kind=str(content["kind"]),
            id=str(content["id"]),
            parents=parents,
            config=content["config"],
            seed=content["seed"],
            code=dict(content["code"]),
            created=str(content["created"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactDamaged(
            "the record of the artifact is not what was written",
            where=path,
            value=str(error),
            fix="restore the folder from a copy, or delete it and make it again",
        ) from error


@functools.cache
def code_version() -> dict[str, str]:
    """Version of Trivium; where it runs from a checkout also the commit, and whether files differ from it."""
    version = {"trivium": trivium.__version__}
    checkout = Path(trivium.__file__).parent.parent
    if (checkout / ".git").exists():
        commit, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain", "--", "trivium")
        if commit:
            version |= {"commit": commit, "state": "modified" if changes else "clean"}
    return version


def _git(checkout: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _relative(path: str, target: Path) -> str:
    if not Path(path).exists():
        return path
    absolute, here = Path(path).resolve(), target.resolve()
    shared = os.path.commonpath([absolute, here])
    return str(absolute) if shared == absolute.anchor else Path(os.path.relpath(absolute, here)).as_posix()
