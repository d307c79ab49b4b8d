"""`python warm_client.py SOCKET COMMAND...`: has the server of `tests.warm` run a command as if this process did.

Standard streams, folder and environment are those of this process, signals are passed on, and it ends as the command
does. Where there is no server, or the server declines, this process becomes the command itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def ask(server: str, command: list[str]) -> int | None:
    """How the command ended, as `os.waitstatus_to_exitcode` says it; None if nobody runs it."""
    ignored = [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    asked = json.dumps([command, os.getcwd(), dict(os.environ), ignored]).encode()  # noqa: PTH109  pathlib takes its time
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            socket.send_fds(connection, [len(asked).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(asked)
            answers = connection.makefile()
            process = int(answers.readline())
        except (OSError, ValueError):
            return None
        if not process:
            return None
        for number in PASSED_ON:
            if number not in ignored:
                signal.signal(number, lambda number, _: os.kill(process, number))
        return int(answers.readline())


def main() -> None:
    server, *command = sys.argv[1:]
    code = None if any(map(os.isatty, range(3))) else ask(server, command)
    if code is None:
        os.execv(command[0], command)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL is nobody's to handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
