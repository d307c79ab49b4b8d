"""A process that has imported torch and forks for each `python -m trivium ...` that a test runs.

Most of the time of a small command is the import of libraries. The server imports them once; nothing of `trivium` is
among them, so each command still imports the package itself, in an order of its own. The server never computes:
threads do not survive a fork, and with a thread of a library it would not serve. As in a process of its own a command
finds streams, folder, environment, `sys.path`, `__main__`, signals, exit code and the state of random numbers. What all
commands share: the libraries, and the seed of Python's hashes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import re
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "torch.distributed.checkpoint",
    "numpy.typing",
    "pydantic.type_adapter",
    "pydantic.json_schema",
    "yaml",
    "typer.main",
    "rich.progress",
    "jinja2.sandbox",
    "tokenizers",
    "safetensors.torch",
)
"""Without those that start a thread when they are imported: pyarrow."""
READ_AT_IMPORT = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|TORCH|CUDA|LC)_\w+|LANG|PYTHON(?!PATH$)\w+|NO_COLOR|FORCE_COLOR|TOKENIZERS_\w+"
)
"""Variables that a library may have read already: a command with other values is not served."""


def warm_call(module: str) -> str:
    """Shell words that run `python -m MODULE`, warm where this machine can."""
    plain = [sys.executable, "-m", module]
    if (server := _server()) is None:
        return shlex.join(plain)
    client = Path(__file__).with_name("warm_client.py")
    return shlex.join([sys.executable, "-ISE", str(client), str(server), *plain])


@cache
def _server() -> Path | None:
    """The socket of this process's server, which ends with it; None where there can be none."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    place = Path(tempfile.mkdtemp(prefix="warm-")) / "socket"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON"))}
    # In a session of its own: Ctrl-C is for the tests, which end it by closing its input.
    server = subprocess.Popen(
        [sys.executable, __file__, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    _kept.append(server)
    assert server.stdout is not None
    return place if server.stdout.readline() == b"ready\n" else None


_kept: list[subprocess.Popen[bytes]] = []
"""A server ends when its input is closed, as it is when nothing refers to it any more."""


def main() -> None:
    """Serves; a child comes back from it, too, and becomes the command it was asked for."""
    place = Path(sys.argv[1])
    del sys.path[0]  # the folder of this file, which the command does not have
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    asked = None
    if len(list(Path("/proc/self/task").iterdir())) == 1:
        gc.collect()
        gc.freeze()  # no child copies memory to look for what nobody uses
        asked = Server(place).run()
    if asked:
        become(*asked)
    else:
        shutil.rmtree(place.parent, ignore_errors=True)


@dataclass(eq=False)
class Job:
    """A command that runs."""

    process: int
    descriptor: int
    connection: socket.socket
    ended: bool = False


class Server:
    """Forks for each command asked for, and tells who asked how it ended."""

    def __init__(self, place: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(place))
        self.listener.listen(64)
        self.lifeline = os.dup(0)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.lifeline, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.jobs: set[Job] = set()

    def run(self) -> list[Any] | None:
        """In the server, None when nobody is left to ask; in a child, what it was asked for."""
        os.write(1, b"ready\n")
        while True:
            for key, _ in self.selector.select():
                if key.fd == self.lifeline:
                    for job in self.jobs:
                        os.kill(job.process, signal.SIGKILL)
                    return None
                if key.fileobj is self.listener:
                    if asked := self.start(self.listener.accept()[0]):
                        return asked
                elif key.data.ended:
                    pass
                elif key.fileobj is key.data.connection:  # who asked was killed, and so is the command
                    self.selector.unregister(key.fileobj)
                    os.kill(key.data.process, signal.SIGKILL)
                else:
                    self.end(key.data)

    def start(self, connection: socket.socket) -> list[Any] | None:
        """In a child, what it was asked for."""
        asked, streams = receive(connection)
        known = {key: value for key, value in os.environ.items() if READ_AT_IMPORT.fullmatch(key)}
        if not asked or known != {key: value for key, value in asked[2].items() if READ_AT_IMPORT.fullmatch(key)}:
            process = None
        elif not (process := os.fork()):
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            self.close(connection)
            return asked
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % (process or 0))
        if not process:
            connection.close()
            return None
        job = Job(process, os.pidfd_open(process), connection)
        self.jobs.add(job)
        self.selector.register(job.descriptor, selectors.EVENT_READ, job)
        self.selector.register(connection, selectors.EVENT_READ, job)
        return None

    def end(self, job: Job) -> None:
        """Tells how it ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(job.process, 0)[1])
        job.ended = True
        self.jobs.remove(job)
        self.selector.unregister(job.descriptor)
        os.close(job.descriptor)
        with contextlib.suppress(KeyError):
            self.selector.unregister(job.connection)
        with contextlib.suppress(OSError):
            job.connection.sendall(b"%d\n" % code)
        job.connection.close()

    def close(self, connection: socket.socket) -> None:
        """In a child: nothing of the server stays open."""
        self.selector.close()
        for held in (self.listener, connection, *(job.connection for job in self.jobs)):
            held.close()
        for descriptor in (self.lifeline, *(job.descriptor for job in self.jobs)):
            os.close(descriptor)


def receive(connection: socket.socket) -> tuple[list[Any] | None, list[int]]:
    """What is asked, and the three streams; None from somebody who died in the middle."""
    first, streams, _, _ = socket.recv_fds(connection, 8, 3)
    rest = b""
    while len(first) == 8 and len(rest) < int.from_bytes(first, "big") and (more := connection.recv(1 << 20)):
        rest += more
    whole = len(first) == 8 and len(rest) == int.from_bytes(first, "big") and len(streams) == 3
    return (json.loads(rest) if whole else None), streams


def become(command: list[str], folder: str, environment: dict[str, str], ignored: list[int]) -> None:
    """This process, with its streams in place already, runs `python -m MODULE ...`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)  # it remembers whether the stream of the server can seek
        buffering = 1 if name == "stderr" else -1
        stream = open(number, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    # Both were seeded when they were imported.
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.argv = command[2:]
    runpy.run_module(command[2], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
