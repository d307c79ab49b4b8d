"""Checkpoints: saved, verified, set aside when damaged, and never fewer than two that are good."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.artifacts import checkpoints, faults
from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.manifest import MANIFEST, FileEntry, Manifest
from trivium.artifacts.record import parent_of, read_record
from trivium.artifacts.writer import DiskFull
from trivium.errors import ArtifactError


class Stop(BaseException):
    """Stands for the death of the process: nothing of the writer runs any more, not even its cleaning up."""


def fill(folder: Path, step: int = 0) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text(f"weights {step}")
    (folder / "train.json").write_text(f"state {step}")


def save(store: CheckpointStore, step: int) -> Path:
    return store.save(step, lambda folder: fill(folder, step), seed=1)


def good(run: Path) -> set[int]:
    """The steps whose files are those of their manifest, judged without the code under test."""
    return {int(path.name[5:]) for path in run.glob("checkpoints/step-*") if whole(path)}


def whole(path: Path) -> bool:
    try:
        manifest = (path / MANIFEST).read_bytes()
        files = {name: FileEntry(**entry) for name, entry in json.loads(manifest)["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    there = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in there.items() if name != MANIFEST}
    return Manifest(files).to_bytes() == manifest and hashes == {name: entry.sha256 for name, entry in files.items()}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waiting for the disk is tested by the power-loss tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    faults.hook = None


def test_saves_keep_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    assert store.latest() is None
    assert store.steps() == []
    for step in (10, 20, 30, 40, 50):
        path = save(store, step)
        assert path == tmp_path / "checkpoints" / f"step-{step:08d}"
        assert store.latest() == path
        assert (tmp_path / "latest").read_text() == f"{path.name}\n"
    assert store.steps() == [30, 40, 50]
    record = read_record(store.path(50))
    assert record is not None and (record.kind, record.seed) == ("checkpoint", 1)


def test_parents_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text("x")
    run = tmp_path / "runs" / "a"
    CheckpointStore(run).save(1, fill, parents=[parent_of(tmp_path / "corpus", "data")], config={"lr": 1})
    record = read_record(run / "checkpoints" / "step-00000001")
    assert record is not None and record.parents[0].path == "../../../../corpus"


def test_fewer_than_two_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="at least two"):
        CheckpointStore(tmp_path, keep=1)


def test_damaged_ones_are_set_aside_and_the_next_newest_is_used(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        save(store, step)
    (store.path(3) / "model" / "weights").write_text("weights x")
    (store.path(2) / MANIFEST).write_text("{")
    assert store.latest() == store.path(1)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    assert sorted(path.name for path in store.folder.glob("damaged-*")) == [
        "damaged-step-00000002",
        "damaged-step-00000003",
    ]
    assert len(store.messages) == 2
    assert "weights" in store.messages[0] and "set aside as damaged-step-00000003" in store.messages[0]
    save(store, 3)
    (store.path(3) / "train.json").unlink()
    assert store.latest() == store.path(1)
    assert (store.folder / "damaged-step-00000003-2").exists()


def test_when_all_are_damaged_there_is_none_and_latest_names_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (store.path(1) / "train.json").write_text("")
    assert store.latest() is None
    assert not (tmp_path / "latest").exists()


def test_saving_over_a_damaged_newest_and_over_the_same_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)
    for name in ("model/weights", MANIFEST, "trivium.json"):
        (store.path(2) / name).write_text("{")
        save(store, 2)
        assert good(tmp_path) == {1, 2}
    (store.path(2) / MANIFEST).write_text("{")
    save(store, 3)
    assert good(tmp_path) == {1, 3}


def test_an_unreadable_checkpoint_is_skipped_but_not_set_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)

    def fail(operation: str, path: Path) -> None:
        if operation == "read" and unreadable in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))

    unreadable = "step-00000002"
    faults.hook = fail
    assert store.latest() == store.path(1)
    assert "skipped" in store.messages[0]
    unreadable = "step-00000001"
    store.prune()
    faults.hook = None
    assert store.steps() == [1, 2]
    assert store.latest() == store.path(2)


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    monkeypatch.setattr(checkpoints, "_ROOM", 1e18)
    with pytest.raises(DiskFull, match="a checkpoint needs"):
        store.save(2, lambda folder: pytest.fail("must not be written"))
    assert store.latest() == store.path(1)
    with pytest.raises(DiskFull, match="keeping the checkpoints"):
        store.require_space(10**17)
    store.require_space(1000)


def test_a_disk_that_fills_up_loses_nothing_and_the_next_save_succeeds(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)

    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull):
        store.save(3, full)
    assert good(tmp_path) == {1, 2}
    save(store, 3)
    assert good(tmp_path) == {2, 3}
    assert [path.name for path in tmp_path.rglob("*~trivium")] == []


def test_unfinished_folders_are_no_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (store.folder / "step-00000009").mkdir()
    (store.folder / "notes.txt").write_text("x")
    assert store.steps() == [1]
    assert store.latest() == store.path(1)
    assert "step-00000009 is damaged" in store.messages[0]
    (store.folder / "step-00000002").mkdir()
    (store.folder / "step-00000002" / "weights").write_text("the manifest was deleted")
    save(store, 2)
    assert good(tmp_path) == {1, 2}


class Watch:
    """At every call: no good checkpoint is lost below two, and `latest` names a complete one. May stop the process."""

    def __init__(self, run: Path, stop_at: int) -> None:
        self.run, self.stop_at, self.calls, self.stopped = run, stop_at, 0, False
        self.before = ""
        self.harmed = self.names_incomplete()
        self.floor = min(2, len(good(run)))

    def __call__(self, operation: str, path: Path) -> None:
        if self.stopped:
            raise Stop
        if operation in ("rename", "exchange") or (operation == "unlink" != self.before):
            self.look()
        self.calls, self.before = self.calls + 1, operation
        if self.calls == self.stop_at:
            self.stopped = True
            raise Stop

    def look(self) -> None:
        hook, faults.hook = faults.hook, None
        found = good(self.run)
        assert len(found) >= self.floor
        assert self.names_incomplete() in (None, self.harmed)
        faults.hook = hook

    def names_incomplete(self) -> str | None:
        """What `latest` names, if that is not complete."""
        latest = self.run / "latest"
        name = latest.read_text().strip() if latest.exists() else ""
        return name if name and not (self.run / "checkpoints" / name / MANIFEST).exists() else None


def harm(run: Path, choose: random.Random) -> None:
    """One kind of damage to one file of one checkpoint."""
    files = sorted(path for path in run.glob("checkpoints/step-*/**/*") if path.is_file())
    if not files:
        return
    path = choose.choice(files)
    content = path.read_bytes()
    kind = choose.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(content[: len(content) // 2])
    elif kind == 2:
        place = choose.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        path.write_bytes(b"\0" * len(content))


actions = st.lists(
    st.tuples(
        st.sampled_from(["save", "save", "save", "save again", "latest", "prune", "harm"]),
        st.integers(1, 150),  # the call at which the process stops, if it gets there
        st.booleans(),  # whether it may stop
    ),
    min_size=1,
    max_size=14,
)


def play(run: Path, history: list[tuple[str, int, bool]], keep: int) -> None:
    """One life of a run with restarts; damage from outside is the only thing that may cost a good checkpoint."""
    step, choose = 0, random.Random(len(history))
    for action, stop_at, stops in history:
        store = CheckpointStore(run, keep=keep)
        if action == "harm":
            harm(run, choose)
            continue
        before = good(run)
        watch = Watch(run, stop_at if stops else -1)
        faults.hook = watch
        try:
            if action == "latest":
                newest = store.latest()
                assert newest == (store.path(max(before)) if before else None)
            elif action == "prune":
                store.prune()
            else:
                step += action == "save" or step == 0
                save(store, step)
        except Stop:
            pass
        finally:
            faults.hook = None
        watch.look()
        if not watch.stopped:
            assert not action.startswith("save") or step in good(run)
            assert not list(run.glob("checkpoints/.*")) or action == "prune"
            assert action != "save" or len(store.steps()) <= keep or len(good(run)) < keep
    store = CheckpointStore(run, keep=keep)
    before = good(run)
    assert store.latest() == (store.path(max(before)) if before else None)
    for path in run.glob("checkpoints/step-*"):
        assert (path / MANIFEST).exists() or int(path.name[5:]) not in store.steps()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=actions, keep=st.sampled_from([2, 2, 3]))
def test_any_history_keeps_two_good_checkpoints(
    history: list[tuple[str, int, bool]], keep: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    play(run, history, keep)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=actions, keep=st.sampled_from([2, 2, 3]))
def test_many_histories_keep_two_good_checkpoints(
    history: list[tuple[str, int, bool]], keep: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    play(run, history, keep)
