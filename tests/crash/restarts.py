"""A program that is killed and started again until it finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def start_python(code: str, *words: str | Path) -> subprocess.Popen[bytes]:
    """Python code in a process of its own; at its end it prints `finished`."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def workers_of(process: int) -> list[int]:
    """Its child processes."""
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def run_with_kills(
    start: Callable[[], subprocess.Popen[bytes]], kills: int, draw: random.Random, lifetime: float
) -> int:
    """Start again until it finishes; returns how many processes were killed: the program and, in turn, one worker.

    Each attempt lives for a random part of `lifetime` seconds.
    """
    killed = 0
    while True:
        child = start()
        if killed < kills:
            try:
                child.wait(draw.uniform(0.1, lifetime))
            except subprocess.TimeoutExpired:
                workers = workers_of(child.pid)
                if killed % 2 and workers:
                    os.kill(draw.choice(workers), signal.SIGKILL)  # the parent replaces it and goes on
                    killed += 1
                    time.sleep(0.2)
                child.kill()
                child.communicate()
                killed += 1
                continue
        output = child.communicate()[0]
        assert child.returncode == 0
        assert b"finished" in output
        return killed
