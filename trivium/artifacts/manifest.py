"""The manifest of an artifact: size and SHA-256 of every file, written last, so that its presence means "complete".

A folder inside an artifact (`checkpoints/step-00000200/model`) is covered by the manifest of the artifact around
it. Folders without any manifest (downloaded models, raw data) have a content hash too; it equals the hash the same
files have inside an artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.artifacts import faults
from trivium.artifacts.paths import relative_name
from trivium.errors import ArtifactDamaged, ArtifactError

MANIFEST = "MANIFEST.json"
RECORD = "trivium.json"
THREADS = 4
_FORMAT = 1
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str

    def __str__(self) -> str:
        """For messages."""
        return f"{self.size} bytes, sha256 {self.sha256[:16]}…"


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written: what the manifest says, and what is there."""

    file: str
    expected: str
    actual: str


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact by their name relative to its folder, with `/` on every system."""

    files: dict[str, FileEntry]

    @property
    def content(self) -> str:
        """SHA-256 over names and hashes of the content: equal content, equal hash, whenever and however made."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            if name not in (RECORD, MANIFEST) and not any(part.startswith(".") for part in name.split("/")):
                digest.update(f"{json.dumps(name)} {self.files[name].sha256}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def below(self, prefix: str) -> Manifest:
        """The part that describes the folder `prefix` (ending in `/`, or empty for everything)."""
        return Manifest({name[len(prefix) :]: entry for name, entry in self.files.items() if name.startswith(prefix)})

    def to_bytes(self) -> bytes:
        """The one way to write this manifest; it ends with a seal over itself, so that a change of any byte shows."""
        files = {name: {"size": e.size, "sha256": e.sha256} for name, e in sorted(self.files.items())}
        seal = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return (json.dumps({"format": _FORMAT, "files": files, "seal": seal}, indent=1) + "\n").encode()


def verify(folder: Path) -> Manifest:
    """The manifest of the artifact (or of a folder inside one), after reading and comparing every byte.

    Raises ArtifactDamaged naming the first wrong, missing or unexpected file with what was expected and found;
    ArtifactError if the folder is no artifact or cannot be read.
    """
    manifest, found = _compare(folder)
    if found:
        first, others = found[0], len(found) - 1
        more = f" (and {others} more)" if others else ""
        raise ArtifactDamaged(
            f"a file is not what was written{more}: {first.file}",
            where=folder / first.file,
            value=f"expected {first.expected}; found {first.actual}",
            fix="restore the folder from a copy, or delete it and make it again",
        )
    return manifest


def damages(folder: Path) -> list[Damage]:
    """Every file of the artifact that is not what was written; empty if all is well."""
    return _compare(folder)[1]


def content_hash(path: Path) -> str:
    """What identifies the content of an artifact, of a folder inside one, of any other folder, or of a single file.

    For an artifact this is what its manifest says (`verify` compares the bytes); otherwise the files are read.
    Provenance (`trivium.json`), the manifest itself and dot-files do not count.
    """
    if path.is_file():
        return hash_file(path).sha256
    if not path.is_dir():
        raise ArtifactError("there is no such file or folder", where=path, fix="check the path")
    covered = find_manifest(path)
    if covered is not None:
        return covered.content
    names = [name.relative_to(path).as_posix() for name in path.rglob("*") if name.is_file()]
    return Manifest(hash_files(path, [name for name in names if "/." not in f"/{name}"])).content


def find_manifest(folder: Path) -> Manifest | None:
    """The manifest of this artifact or of the folder's part of the artifact around it; None if there is neither."""
    root = artifact_root(folder)
    return None if root is None else read_manifest(root).below(_prefix(root, folder))


def artifact_root(folder: Path) -> Path | None:
    """The artifact that `folder` is, or lies in; a single file can lie in one too."""
    folder = folder.resolve()
    for root in (folder, *folder.parents):
        if (root / MANIFEST).is_file():
            if root == folder or folder.relative_to(root).as_posix() in read_manifest(root).files:
                return root
            return root if read_manifest(root).below(_prefix(root, folder)).files else None
    return None


def find_artifacts(folder: Path, *, depth: int = 5) -> Iterator[Path]:
    """`folder` if it is an artifact, otherwise all artifacts at most `depth` folders below it, in order of name.

    Hidden folders and links are not entered.
    """
    if (folder / MANIFEST).is_file():
        yield folder
    elif depth and folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from find_artifacts(entry, depth=depth - 1)


def read_manifest(root: Path) -> Manifest:
    """The manifest of the artifact `root`, checked for its own integrity only; the files are not read."""
    path = root / MANIFEST
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactDamaged(
            f"the folder has no {MANIFEST}: it is no artifact, or was never finished",
            where=root,
            fix="give the folder of a finished artifact, or make it again",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        content = json.loads(found)
        files = {name: FileEntry(int(e["size"]), str(e["sha256"])) for name, e in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        content, files = {}, {}
    manifest = Manifest(files)
    if content.get("format", _FORMAT) != _FORMAT:
        raise ArtifactError(
            "the artifact was written by a newer version of Trivium", where=path, fix="update Trivium to read it"
        )
    if found != manifest.to_bytes():
        raise ArtifactDamaged(
            "the manifest is not what was written",
            where=path,
            value=f"expected seal {_seal(manifest)[:16]}…; found {str(content.get('seal'))[:16]}…",
            fix="restore the folder from a copy, or delete it and make it again",
        )
    for name in files:
        relative_name(name, root=root)
    return manifest


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of one file, read once."""
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_CHUNK))
    descriptor = faults.open(path, os.O_RDONLY)
    try:
        while count := faults.read_into(descriptor, buffer, path):
            digest.update(buffer[:count])
            size += count
    finally:
        os.close(descriptor)
    return FileEntry(size, digest.hexdigest())


def hash_files(root: Path, names: list[str]) -> dict[str, FileEntry]:
    """Several files of one folder, hashed in threads (hashing releases the interpreter lock)."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(root / name), names), strict=True))


def plain_files(root: Path) -> Iterator[tuple[str, bool]]:
    """Everything below `root` that is not a folder: its relative name, and whether it is a regular file."""
    pending = [root]
    while pending:
        folder = pending.pop()
        for entry in faults.listdir(folder):
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield Path(entry.path).relative_to(root).as_posix(), stat.S_ISREG(mode)


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """The message for a file that the system does not let us read."""
    return ArtifactError(
        f"cannot be read: {error.strerror or error}", where=path, fix="check the permissions and the disk, try again"
    )


def _compare(folder: Path) -> tuple[Manifest, list[Damage]]:
    root = artifact_root(folder) or folder
    prefix = _prefix(root, folder)
    manifest = read_manifest(root).below(prefix)
    folder = root / prefix
    try:
        present = dict(plain_files(folder))
        regular = [name for name in manifest.files if present.get(name)]
        actual = hash_files(folder, regular)
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    found: list[Damage] = []
    for name, expected in manifest.files.items():
        if name not in present:
            found.append(Damage(name, str(expected), "no such file"))
        elif not present[name]:
            found.append(Damage(name, str(expected), "a link or special file"))
        elif actual[name] != expected:
            found.append(Damage(name, str(expected), str(actual[name])))
    allowed = set(manifest.files) | ({MANIFEST} if not prefix else set())
    found += [Damage(name, "no such file", "an extra file") for name in sorted(set(present) - allowed)]
    return manifest, found


def _prefix(root: Path, folder: Path) -> str:
    relative = folder.resolve().relative_to(root.resolve()).as_posix()
    return "" if relative == "." else f"{relative}/"


def _seal(manifest: Manifest) -> Any:
    return json.loads(manifest.to_bytes())["seal"]
