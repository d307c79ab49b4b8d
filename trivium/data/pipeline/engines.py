"""Who does the tasks of a pipeline: this process, several processes of this machine, or a Ray cluster.

Each engine has one method, `run(job, tasks, more)`: the results by name. `more` is called with a task and what it
emits, and returns further tasks. Neither the order of the tasks nor how often they are begun changes their results.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

from trivium.data.pipeline.errors import from_json
from trivium.data.pipeline.work import Job, run_task
from trivium.errors import DataError, TriviumError

Task = Mapping[str, Any]
More = Callable[[Task, Mapping[str, Any]], Sequence[Task]]

ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a worker: there are as many of them as cores."""

_TRIES = 3


class Engine(Protocol):
    """See the module."""

    def run(self, job: Job, tasks: Sequence[Task], more: More) -> dict[str, Any]:
        """The result of each task by its name; raises the first error."""

    def close(self) -> None:
        """End what was started."""


class HereEngine:
    """One task after the other in this process."""

    def run(self, job: Job, tasks: Sequence[Task], more: More) -> dict[str, Any]:
        """See `Engine`."""
        results: dict[str, Any] = {}
        waiting = deque(tasks)
        while waiting:
            task = waiting.popleft()
            emitted: list[Mapping[str, Any]] = []
            results[task["name"]] = run_task(job, task, emitted.append)
            waiting += [new for values in emitted for new in more(task, values)]
        return results

    def close(self) -> None:
        """Nothing was started."""


class ProcessEngine:
    """Worker processes, each single-threaded; one that dies is replaced, and its task is done again."""

    def __init__(self, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]

    def run(self, job: Job, tasks: Sequence[Task], more: More) -> dict[str, Any]:
        """See `Engine`."""
        results: dict[str, Any] = {}
        waiting = deque(tasks)
        tries: dict[str, int] = {}
        with selectors.DefaultSelector() as ready:
            while True:
                for idle in self._workers:
                    if idle.task is None and waiting:
                        idle.begin(job, waiting.popleft())
                        ready.register(idle.answers, selectors.EVENT_READ, idle)
                if not any(worker.task for worker in self._workers):
                    return results
                for key, _ in ready.select():
                    worker = key.data
                    task = worker.task
                    messages = worker.messages()
                    if messages is None:
                        ready.unregister(key.fileobj)
                        tries[task["name"]] = tries.get(task["name"], 0) + 1
                        worker.died(task, final=tries[task["name"]] == _TRIES)
                        waiting.appendleft(task)
                    for message in messages or ():
                        if "error" in message:
                            raise from_json(message["error"])
                        if "emitted" in message:
                            waiting.extend(more(task, message["emitted"]))
                        else:
                            ready.unregister(key.fileobj)
                            results[task["name"]], worker.task = message["result"], None

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process that is started with its first task."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Job | None = None
        self._rest = b""

    @property
    def answers(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    def begin(self, job: Job, task: Task) -> None:
        """Give it a task."""
        self.task = task
        if self._process is None:
            command = [sys.executable, "-m", "trivium.data.pipeline.worker"]
            path = os.pathsep.join(filter(None, sys.path))
            environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        lines = [] if job is self._job else [{"job": job.to_json()}]
        self._job = job
        assert self._process.stdin is not None
        message = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, {"task": task}])
        with contextlib.suppress(BrokenPipeError):  # it died, and its missing answer says so
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def messages(self) -> list[dict[str, Any]] | None:
        """What has come; None if the process has died."""
        data = os.read(self.answers.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def died(self, task: Task, *, final: bool) -> None:
        """Clear up after the process died over a task."""
        assert self._process is not None
        code = self._process.wait()
        self.end()
        if final:
            raise DataError(
                f"a worker process died {_TRIES} times over the same part of the data",
                where=task["name"],
                value=f"signal {-code}" if code < 0 else f"exit code {code}",
                fix="signal 9 is mostly too little memory: use fewer workers; finished parts are kept",
            )

    def end(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._process, self._job, self.task, self._rest = None, None, None, b""


class RayEngine:
    """Tasks of a Ray cluster (`RAY_ADDRESS`, else one on this machine) that sees the same file system."""

    def __init__(self, workers: int | None) -> None:
        ray = _ray()
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                self._connect(workers)
            except Exception as error:  # Ray raises all kinds, bare ones too
                ray.shutdown()
                raise TriviumError(
                    "Ray did not start, or cannot be reached",
                    where=os.environ.get("RAY_ADDRESS", "engine: ray"),
                    value=str(error) or type(error).__name__,
                    fix="try again when the machine has less to do, check RAY_ADDRESS, or use engine: local",
                ) from error
        self._at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _connect(self, workers: int | None) -> None:
        variables = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        said: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if "RAY_ADDRESS" in os.environ:
            self._ray.init(runtime_env={"env_vars": variables}, **said)
        else:  # a runtime_env would hang where the path of the interpreter holds a space
            with _environment(variables):
                self._ray.init(num_cpus=workers, include_dashboard=False, **said)

    def run(self, job: Job, tasks: Sequence[Task], more: More) -> dict[str, Any]:
        """See `Engine`."""
        from trivium.data.pipeline.worker import answer

        begin = self._ray.remote(num_cpus=1, max_retries=_TRIES)(answer)
        settings = self._ray.put(job.to_json())
        results: dict[str, Any] = {}
        waiting, running = deque(tasks), dict[Any, Task]()
        while waiting or running:
            while waiting and len(running) < self._at_once:
                task = waiting.popleft()
                running[begin.remote(settings, json.dumps(task))] = task
            (done, *_), _ = self._ray.wait(list(running))
            task = running.pop(done)
            try:
                *emitted, last = map(json.loads, self._ray.get(done))
            except self._ray.exceptions.RayError as error:
                raise DataError(
                    f"Ray gave up a part of the data: {type(error).__name__}",
                    where=task["name"],
                    value=str(error),
                    fix="see the logs of the cluster; finished parts are kept",
                ) from error
            if "error" in last:
                raise from_json(last["error"])
            results[task["name"]] = last["result"]
            waiting += [new for message in emitted for new in more(task, message["emitted"])]
        return results

    def close(self) -> None:
        """End the cluster if it was started here."""
        if self._own:
            self._ray.shutdown()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes that are started inherit these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        fix = 'pip install "trivium[ray]", or engine: local'
        raise TriviumError("the engine ray needs the package ray", where="engine", fix=fix) from error
    return ray
