"""The machine loses power before every call of the writer: what the disk then holds is old or new.

Two extremes are built at each call. In one, nothing is on the disk that was not waited for: files have the bytes of
their last fsync, folders the names of theirs. In the other, all names are on the disk and only bytes that were waited
for (the classic file of length zero after a rename). Real file systems lie between.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trivium.artifacts import faults, manifest, writer
from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.manifest import verify
from trivium.artifacts.writer import JsonLines, write_artifact, write_file


class Disk:
    """Watches the writer through the hook, and knows at any time what two kinds of disk would hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.folders: set[int] = set()
        self.check: Callable[[Path], None] | None = None
        self.checked = 0
        self._pending: Path | None = None
        self._open: dict[int, int] = {}
        for path in [root, *root.rglob("*")]:
            self._waited_for(path)

    def __call__(self, operation: str, path: Path) -> None:
        if self._pending is not None:
            self._waited_for(self._pending)
        self._pending = path if operation == "fsync" else None
        if self.check is not None and operation not in ("open", "read", "listdir"):
            self.cut_power()

    def finish(self) -> None:
        self("end", self.root)

    def cut_power(self) -> None:
        for build in (self._only_what_was_waited_for, self._all_names):
            after = self.root.parent / "after"
            build(after)
            assert self.check is not None
            hook, faults.hook = faults.hook, None
            self.check(after)
            faults.hook = hook
            shutil.rmtree(after)
            self.checked += 1

    def _hold(self, path: Path) -> None:
        """Keeps the number of a file from being given to another one once it is deleted."""
        number = path.stat().st_ino
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _waited_for(self, path: Path) -> None:
        if path.exists():
            for held in (path, *(path.iterdir() if path.is_dir() else ())):
                self._hold(held)
        if path.is_dir():
            self.names[path.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
            self.folders |= {entry.inode() for entry in os.scandir(path) if entry.is_dir()}
        elif path.exists():
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def _only_what_was_waited_for(self, after: Path) -> None:
        def build(number: int, place: Path) -> None:
            if number in self.folders:
                place.mkdir()
                for name, inner in self.names.get(number, {}).items():
                    build(inner, place / name)
            else:
                place.write_bytes(self.bytes.get(number, b""))

        self.folders.add(self.root.stat().st_ino)
        build(self.root.stat().st_ino, after)

    def _all_names(self, after: Path) -> None:
        shutil.copytree(self.root, after)
        for path in self.root.rglob("*"):
            if path.is_file():
                (after / path.relative_to(self.root)).write_bytes(self.bytes.get(path.stat().st_ino, b""))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """An empty folder on a watched disk; one thread, so that the calls have an order."""
    for module in (writer, manifest):
        monkeypatch.setattr(module, "THREADS", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root)
    faults.hook = disk
    yield disk
    faults.hook = None
    disk.close()
    assert threading.active_count() < 20


def fill(folder: Path, content: bytes) -> None:
    """Written without the hooks, as other libraries do."""
    (folder / "inner" / "most").mkdir(parents=True)
    (folder / "a").write_bytes(content)
    (folder / "inner" / "most" / "b").write_bytes(content)


def save(folder: Path, content: bytes) -> None:
    with write_artifact(folder / "thing", kind="test", replace=True) as temporary:
        fill(temporary, content)


def content_of(folder: Path) -> bytes:
    verify(folder / "thing")
    return (folder / "thing" / "inner" / "most" / "b").read_bytes()


def test_new_artifact_in_new_folders(disk: Disk) -> None:
    inner = Path("runs") / "first"

    def absent_or_whole(after: Path) -> None:
        assert not (after / inner / "thing").exists() or content_of(after / inner) == b"new"

    disk.check = absent_or_whole
    save(disk.root / inner, b"new")
    disk.finish()
    disk._only_what_was_waited_for(disk.root.parent / "end")
    assert content_of(disk.root.parent / "end" / inner) == b"new"
    assert disk.checked > 20


def test_replaced_artifact(disk: Disk) -> None:
    save(disk.root, b"old")

    def old_or_new(after: Path) -> None:
        assert content_of(after) in (b"old", b"new")

    disk.check = old_or_new
    save(disk.root, b"new")
    disk.finish()
    disk._only_what_was_waited_for(disk.root.parent / "end")
    assert content_of(disk.root.parent / "end") == b"new"


def test_file(disk: Disk) -> None:
    write_file(disk.root / "file", "old")

    def old_or_new(after: Path) -> None:
        assert (after / "file").read_text() in ("old", "new")

    disk.check = old_or_new
    write_file(disk.root / "file", "new")
    disk.finish()
    disk._only_what_was_waited_for(disk.root.parent / "end")
    assert (disk.root.parent / "end" / "file").read_text() == "new"


def test_lines_before_the_last_sync_stay(disk: Disk) -> None:
    lines = JsonLines(disk.root / "metrics.jsonl")
    for step in range(3):
        lines.append({"step": step})
    lines.sync()

    def synced(after: Path) -> None:
        assert [row["step"] for row in JsonLines(after / "metrics.jsonl").read()][:3] in ([0, 1, 2], [0, 1])

    disk.check = synced
    lines.append({"step": 3})
    lines.cut_back(lambda row: row["step"] < 2)
    disk.finish()
    disk._only_what_was_waited_for(disk.root.parent / "end")
    assert [row["step"] for row in JsonLines(disk.root.parent / "end" / "metrics.jsonl").read()] == [0, 1]


def test_checkpoints(disk: Disk) -> None:
    """After a power cut the newest finished checkpoint is found, and two are there."""
    store = CheckpointStore(disk.root)
    for step in (1, 2):
        store.save(step, lambda folder: fill(folder, b"state"))
    finished = [2]

    def two_are_left(after: Path) -> None:
        checkpoints = CheckpointStore(after)
        named = (after / "latest").read_text().strip()
        verify(after / "checkpoints" / named)
        newest = checkpoints.latest()
        assert newest is not None and int(newest.name[5:]) >= finished[-1]
        assert checkpoints.messages == []
        assert len(checkpoints.steps()) >= 2

    disk.check = two_are_left
    for step in (3, 4):
        store.save(step, lambda folder: fill(folder, b"state"))
        finished.append(step)
    disk.finish()
    assert disk.checked > 60
