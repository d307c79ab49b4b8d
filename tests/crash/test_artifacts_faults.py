"""Every call of the artifact writer to the operating system fails once, in every way: what remains is old or new.

For each scenario the N-th call fails, for N = 1, 2, ... until none fails any more. Whatever happens, a reader then
finds what was there before or what was to be written, whole; the same operation, done again, succeeds and leaves no
trace of the failure. The default run takes a part of the calls, `-m "slow and crash"` all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trivium.artifacts import faults
from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.manifest import verify
from trivium.artifacts.writer import DiskFull, JsonLines, write_artifact, write_file, write_plain
from trivium.errors import ArtifactError

OLD, NEW = b"old" * 5000, b"new" * 7000
KINDS = ["disk full", "input/output error", "short write", "killed"]
KILLED = 137


def no_exchange(one: Path, other: Path) -> bool:
    """As on a system that cannot swap two names in one step."""
    faults._before("exchange", other)
    return False


@dataclass
class Fault:
    """Counts the calls and makes number `at` fail. A full disk stays full; a kill is real, in a forked process."""

    kind: str
    at: int
    calls: int = 0
    hit: str = ""
    dying: bool = False
    growing: tuple[str, ...] = field(default=("create", "write", "mkdir"))

    def __call__(self, operation: str, path: Path) -> int | None:
        self.calls += 1
        if self.kind == "disk full":
            if self.calls < self.at or operation not in self.growing:
                return None
        elif self.calls != self.at and not self.dying:
            return None
        self.hit = self.hit or f"call {self.calls}: {operation} of {path}"
        if self.kind == "killed" and (self.dying or operation != "write"):
            os._exit(KILLED)
        if self.kind in ("killed", "short write"):
            self.dying = self.kind == "killed"  # in the middle of the write: at the next call
            return 1000 if operation == "write" else None
        code = errno.ENOSPC if self.kind == "disk full" else errno.EIO
        raise OSError(code, os.strerror(code), str(path))


def fill(folder: Path, content: bytes) -> None:
    write_plain(folder / "a.bin", iter([content]))
    (folder / "model").mkdir()
    write_plain(folder / "model" / "b.bin", iter([content[:100], content[100:]]))


def save(folder: Path, content: bytes, *, replace: bool = False) -> None:
    with write_artifact(folder / "thing", kind="test", replace=replace) as temporary:
        fill(temporary, content)


def seen(folder: Path) -> bytes | None:
    """What a reader finds; an error if it is not whole."""
    if not (folder / "thing").exists():
        return None
    verify(folder / "thing")
    content = (folder / "thing" / "a.bin").read_bytes()
    assert (folder / "thing" / "model" / "b.bin").read_bytes() == content
    return content


def seen_or_aside(folder: Path) -> bytes | None:
    """Without an exchange of names there is an instant at which the old artifact has only its other name."""
    asides = list(folder.glob(".thing.old-*"))
    if not (folder / "thing").exists() and asides:
        asides[0].rename(folder / "thing")
        content = seen(folder)
        (folder / "thing").rename(asides[0])
        return content
    return seen(folder)


def seen_file(folder: Path) -> bytes | None:
    path = folder / "file"
    return path.read_bytes() if path.exists() else None


def prepare_lines(folder: Path) -> None:
    lines = JsonLines(folder / "metrics.jsonl")
    for step in range(4):
        lines.append({"step": step})
    lines.close()


def cut_and_append(folder: Path) -> None:
    lines = JsonLines(folder / "metrics.jsonl")
    lines.cut_back(lambda row: row["step"] < 2)
    lines.sync()
    lines.close()


def seen_lines(folder: Path) -> list[int]:
    return [row["step"] for row in JsonLines(folder / "metrics.jsonl").read()]


def prepare_checkpoints(folder: Path) -> None:
    for step in (100, 200):
        CheckpointStore(folder).save(step, lambda temporary: fill(temporary, OLD))


def save_checkpoint(folder: Path) -> None:
    CheckpointStore(folder).save(300, lambda temporary: fill(temporary, NEW))


def seen_checkpoints(folder: Path) -> tuple[int, ...]:
    """The steps that verify: never fewer than two; and `latest` names one of them."""
    good = []
    for path in sorted((folder / "checkpoints").glob("step-*")):
        verify(path)
        good.append(int(path.name[5:]))
    assert len(good) >= 2
    assert int((folder / "latest").read_text().strip()[5:]) in good
    return tuple(good)


@dataclass
class Scenario:
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    seen: Callable[[Path], object]
    allowed: list[object]  # the first is what was before, the last what is to be
    exchange: bool = True


SCENARIOS = {
    "new artifact": Scenario(lambda f: None, lambda f: save(f, NEW), seen, [None, NEW]),
    "replace": Scenario(lambda f: save(f, OLD), lambda f: save(f, NEW, replace=True), seen, [OLD, NEW]),
    "replace in two steps": Scenario(
        lambda f: save(f, OLD), lambda f: save(f, NEW, replace=True), seen_or_aside, [OLD, NEW], exchange=False
    ),
    "new file": Scenario(lambda f: None, lambda f: write_file(f / "file", NEW), seen_file, [None, NEW]),
    "file": Scenario(
        lambda f: write_file(f / "file", OLD), lambda f: write_file(f / "file", NEW), seen_file, [OLD, NEW]
    ),
    "lines": Scenario(prepare_lines, cut_and_append, seen_lines, [[0, 1, 2, 3], [0, 1]]),
    "checkpoint": Scenario(
        prepare_checkpoints, save_checkpoint, seen_checkpoints, [(100, 200), (100, 200, 300), (200, 300)]
    ),
}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that dies loses no bytes the system has; waiting for the disk is for the power-loss test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    faults.hook = None


def attempt(act: Callable[[Path], None], folder: Path, fault: Fault) -> tuple[bool, str]:
    """Run with the fault; whether the operation reported success, and whether the fault was reached."""
    if fault.kind == "killed":
        child = os.fork()
        if child == 0:
            faults.hook = fault
            try:
                act(folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, KILLED)
        return code == 0, "killed" if code else ""
    faults.hook = fault
    try:
        act(folder)
    except ArtifactError as error:
        assert isinstance(error, DiskFull) == (fault.kind == "disk full")
        assert len(str(error).splitlines()) <= 5
        return False, fault.hit
    finally:
        faults.hook = None
    return True, fault.hit


def fail_everywhere(scenario: Scenario, root: Path, kind: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns how many calls were made to fail."""
    if not scenario.exchange:
        monkeypatch.setattr(faults, "exchange", no_exchange)
    pristine = root / "pristine"
    pristine.mkdir()
    scenario.prepare(pristine)
    number, hits, misses = 1, 0, 0
    while misses < 2:
        folder = root / f"{number}"
        shutil.copytree(pristine, folder)
        succeeded, hit = attempt(scenario.act, folder, Fault(kind, number))
        if kind != "killed" and not scenario.exchange:
            assert (folder / "thing").exists(), f"after an error, the old artifact must have its name back: {hit}"
        if kind == "input/output error" and ": fsync of" in hit:
            assert not succeeded, f"what may not be on the disk must not be called written: {hit}"
        found = scenario.seen(folder)
        assert found in scenario.allowed, hit
        assert found == scenario.allowed[-1] or kind != "short write" or not succeeded, hit
        scenario.act(folder)
        assert scenario.seen(folder) == scenario.allowed[-1], hit
        assert [path for path in folder.rglob("*") if "~trivium" in path.name] == [], hit
        shutil.rmtree(folder)
        hits, misses = hits + bool(hit), 0 if hit else misses + 1
        number += stride
    return hits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_some_calls_fail(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_everywhere(SCENARIOS[name], tmp_path, kind, 7, monkeypatch) >= 1


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_call_fails(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_everywhere(SCENARIOS[name], tmp_path, kind, 1, monkeypatch) >= 3
