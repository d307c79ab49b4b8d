"""A command forked from the warm server is, for itself and for who runs it, what it is in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.warm import warm_call

PROBE = """
import json, os, random, sys
told = {
    "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
    "main": [__name__, __spec__.name, __file__, sys.modules["__main__"].__dict__ is globals()],
    "input": sys.stdin.read(), "open": os.listdir("/proc/self/fd"),
}
told |= {"warm": "torch" in sys.modules, "random": random.random(), "process": os.getpid()}
print(json.dumps(told), flush=True)
print("to stderr", file=sys.stderr)
if "wait" in sys.argv:
    import time
    time.sleep(60)
if "die" in sys.argv:
    os.kill(os.getpid(), 9)
sys.exit(3)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the server is only for Linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.py").write_text(PROBE)
    return tmp_path


def variables(folder: Path, **more: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**inherited, "PYTHONPATH": str(folder), **more}


def run(call: str, *words: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*shlex.split(call), *words]
    environment = variables(folder, **more)
    return subprocess.run(command, cwd=folder, env=environment, input="é\n", capture_output=True, text=True)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@linux
def test_a_command_finds_what_it_finds_in_a_process_of_its_own(folder: Path) -> None:
    plain = run(shlex.join([sys.executable, "-m", "probe"]), "a word", folder=folder, OTHER="1")
    warm, again = (run(warm_call("probe"), "a word", folder=folder, OTHER="1") for _ in range(2))
    assert (warm.returncode, warm.stderr) == (plain.returncode, plain.stderr) == (3, "to stderr\n")
    first, second, wanted = told(warm), told(again), told(plain)
    assert (first.pop("warm"), wanted.pop("warm")) == (True, False)
    assert len({said.pop("random") for said in (first, second, wanted)}) == 3
    assert len({said.pop("process") for said in (first, second, wanted)}) == 3
    assert first == wanted


@linux
def test_a_variable_that_libraries_have_read_asks_for_a_process_of_its_own(folder: Path) -> None:
    assert not told(run(warm_call("probe"), folder=folder, OMP_NUM_THREADS="7"))["warm"]


@linux
def test_signals_reach_the_command_and_its_death_is_seen(folder: Path) -> None:
    assert run(warm_call("probe"), "die", folder=folder).returncode == -signal.SIGKILL
    for number in (signal.SIGTERM, signal.SIGKILL):
        started = subprocess.Popen(
            [*shlex.split(warm_call("probe")), "wait"],
            cwd=folder,
            env=variables(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert started.stdout is not None
        process = json.loads(started.stdout.readline())["process"]
        assert process != started.pid
        started.send_signal(number)
        started.communicate()
        assert started.returncode == -number
        end = time.monotonic() + 20
        while Path(f"/proc/{process}").exists():
            assert time.monotonic() < end, "the command lives on"
            time.sleep(0.01)
