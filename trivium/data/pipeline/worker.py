"""A worker process: reads tasks as JSON lines, writes what becomes of them; ends with the process that started it.

python -m trivium.data.pipeline.worker
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from trivium.data.pipeline.errors import to_json
from trivium.data.pipeline.work import Job, run_task


def answer(job: str, task: str) -> list[str]:
    """All messages of one task; the last one is its result or its error."""
    messages: list[str] = []
    work(Job(**json.loads(job)), json.loads(task), lambda message: messages.append(json.dumps(message)))
    return messages


def work(job: Job, task: Mapping[str, Any], send: Callable[[Mapping[str, Any]], None]) -> None:
    """Do a task and send what it emits and its result, or its error."""
    try:
        result = run_task(job, task, lambda values: send({"emitted": values}))
    except Exception as error:
        send({"error": to_json(error)})
    else:
        send({"result": result})


def main() -> None:
    """Tasks from standard input; what steps print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that started this one, which ends it
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()

    def send(message: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[out.write(data) :]
        except BrokenPipeError:
            os._exit(0)

    job: Job | None = None
    while True:
        message = json.loads(lines.get())
        if "job" in message:
            job = Job(**json.loads(message["job"]))
        else:
            assert job is not None
            work(job, message["task"], send)


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Passes lines on; at their end the parent is gone, and whatever is being done is of no use any more."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
