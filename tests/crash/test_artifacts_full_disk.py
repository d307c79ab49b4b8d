"""A disk that is really full: a file system of one megabyte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivium.artifacts import checkpoints
from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.manifest import verify
from trivium.artifacts.writer import DiskFull, JsonLines, write_file, write_plain

pytestmark = pytest.mark.crash


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(folder: Path) -> None:
    write_plain(folder / "state", iter([b"s" * 300_000]))


@pytest.mark.parametrize("foreseen", [True, False])
def test_checkpoints_survive_and_go_on_when_there_is_room_again(
    foreseen: bool, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not foreseen:
        monkeypatch.setattr(checkpoints, "_ROOM", 0)
    store = CheckpointStore(small_disk)
    store.save(1, fill)
    store.save(2, fill)
    (small_disk / "ballast").write_bytes(b"b" * 200_000)
    for _ in range(3):
        with pytest.raises(DiskFull):
            store.save(3, fill)
        assert store.steps() == [1, 2]
        assert store.latest() == store.path(2)
        assert not list(small_disk.rglob("*~trivium"))
    (small_disk / "ballast").unlink()
    store.save(3, fill)
    assert store.steps() == [2, 3]
    verify(store.path(3))


def test_files_and_lines_keep_what_they_had(small_disk: Path) -> None:
    write_file(small_disk / "status.json", "old")
    (small_disk / "ballast").write_bytes(b"b" * 100_000)
    lines = JsonLines(small_disk / "metrics.jsonl")
    lines.append({"step": 0})
    with pytest.raises(DiskFull):
        write_file(small_disk / "status.json", "x" * 2_000_000)
    assert (small_disk / "status.json").read_text() == "old"
    with pytest.raises(DiskFull):
        for step in range(1, 10_000):
            lines.append({"step": step, "text": "x" * 1000})
    kept = [row["step"] for row in lines.read()]
    assert kept == list(range(len(kept)))
    with pytest.raises(DiskFull):
        lines.cut_back(lambda row: row["step"] < 3)
    assert len(lines.read()) == len(kept)
    (small_disk / "ballast").unlink()
    lines.append({"step": len(kept)})
    assert [row["step"] for row in lines.read()] == list(range(len(kept) + 1))
    lines.cut_back(lambda row: row["step"] < 3)
    lines.append({"step": 3})
    assert [row["step"] for row in lines.read()] == [0, 1, 2, 3]
    lines.close()
