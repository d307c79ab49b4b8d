"""The folder of an unfinished pass: one process at a time, whoever removes it while others wait."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from trivium.data.workbench import busy, work_folder

PROCESSES, ROUNDS = 4, 20


def _hold_and_remove(target: Path, rounds: int) -> None:
    for number in range(rounds):
        with work_folder(target, key=f"key {number % 2}") as folder:
            os.close(os.open(folder / "mine", os.O_CREAT | os.O_EXCL))  # raises if somebody else is in here
            with busy(folder, key=f"key {number % 2}"):
                (folder / "part").write_text(str(os.getpid()))
            assert (folder / "part").read_text() == str(os.getpid())
            (folder / "mine").unlink()
            target.touch()  # so the folder is removed, while others wait for its lock


def test_processes_that_want_the_same_folder_take_turns_while_it_is_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    target = tmp_path / "tokens"
    started = [context.Process(target=_hold_and_remove, args=(target, ROUNDS)) for _ in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * PROCESSES
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_what_another_key_left_is_thrown_away_and_its_late_helpers_are_turned_off(tmp_path: Path) -> None:
    target = tmp_path / "tokens"
    with work_folder(target, key="old") as folder:
        (folder / "part").touch()
    with work_folder(target, key="old") as folder:
        assert (folder / "part").exists()
    with work_folder(target, key="new") as folder:
        assert not (folder / "part").exists()
        with pytest.raises(FileNotFoundError), busy(folder, key="old"):
            pass
        target.touch()
    with pytest.raises(FileNotFoundError), busy(folder, key="new"):
        pass
