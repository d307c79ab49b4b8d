"""Setting the number of threads, and what it leaves MKL."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ASK = """
import ctypes, json, sys
import torch
from trivium.threads import use_threads

library = ctypes.CDLL(torch._C.__file__)
get = getattr(library, "mkl_serv_get_dynamic", None)
said = {}
for name, change in (("torch", torch.set_num_threads), ("ours", use_threads)):
    for number in (1, 3):
        told = change(number)
        threads = library.MKL_Get_Max_Threads() if told else None
        said[f"{name} {number}"] = [torch.get_num_threads(), told, threads, None if get is None else bool(get())]
print(json.dumps(said))
"""


def test_mkl_follows_and_may_take_fewer() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True, timeout=120)
    said = json.loads(done.stdout)
    for number in (1, 3):
        threads, told, mkl, adapts = said[f"ours {number}"]
        assert threads == number
        if told:
            assert 1 <= mkl <= number  # not more than there are cores
        if told and adapts is not None:
            assert adapts and not said[f"torch {number}"][3]


def test_a_build_without_mkl_still_gets_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from trivium import threads

    monkeypatch.setattr(threads.ctypes, "CDLL", lambda path: object())
    before = torch.get_num_threads()
    assert not threads.use_threads(2)
    assert torch.get_num_threads() == 2
    threads.use_threads(before)


@pytest.mark.parametrize(
    ("asked", "ranks", "threads"),
    [("3", 1, 3), ("3", 2, 2), ("1", 4, 1), ("4,2", 1, 4), ("0", 1, 4), ("", 1, 4), (None, 1, 4), (None, 8, 1)],
)
def test_a_process_alone_takes_the_threads_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, ranks: int, threads: int
) -> None:
    from trivium.threads import default_threads

    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads(ranks) == threads
