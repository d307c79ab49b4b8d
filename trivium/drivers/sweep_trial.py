"""One trial of a sweep in a process of its own, so that what it does to memory ends with it.

    python -m trivium.drivers.sweep_trial

The process imports what a run needs, waits for a task (a JSON line on standard input), and does it in a fork: the next
task starts at once, and a trial that the system kills for its memory takes nothing with it. Where there is no fork it
does one task itself and ends. Messages go to standard output: `opened` (the data are read), `seen` (figures at a
validation; an answer says whether to go on), `result`, `pruned`, `failed`, `interrupted`, `error`, and `ended` with
the exit code.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trivium.artifacts.writer import JsonLines
from trivium.core.callbacks import Callback, due
from trivium.core.plan import NoRoom, folder_bytes, out_of_memory
from trivium.data.pipeline.errors import to_json
from trivium.errors import ConfigError, Interrupted, TrainingDiverged

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer

NO_STEP = {"kind", "step", "player", "samples", "lr", "grad_norm", "tokens", "skipped"}
"""What a line of metrics holds besides figures that could be a goal."""
FORKS = hasattr(os, "fork") and sys.platform == "linux"
PRUNER = "the pruner of the sweep"


class Line:
    """The connection to the sweep: JSON lines in both directions."""

    def __init__(self, out: int) -> None:
        self.out = out
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def send(self, **message: Any) -> None:
        """One message; without a reader the sweep is gone, and with it the reason for this process."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self.out, data) :]
        except BrokenPipeError:
            os._exit(0)

    def ask(self, **message: Any) -> dict[str, Any]:
        """One message, and the answer to it."""
        self.send(**message)
        return self.answers.get()

    def listen(self) -> None:
        """Passes answers on. `stop` is what SIGTERM is; the end of the line ends this process at once."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if message.get("stop") == "save":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.answers.put(message)
        os._exit(0)


class Watch(Callback):
    """Sends the figures of each validation to the sweep, and stops the run if the sweep says so."""

    def __init__(self, line: Line, folder: Path) -> None:
        self.line = line
        self.folder = folder
        self.pruned = False

    def start(self, trainer: Trainer) -> None:
        """The data are read and lie ready for other trials."""
        self.line.send(opened=True)

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """After a validation, or when one would be due."""
        step, total, every = trainer.progression.step, trainer.total, trainer.settings.validate_every
        if not due(step, every, total):
            return
        length = every or max(1, total // 10)
        figures = figures_at(self.folder, step, length)
        answer = self.line.ask(seen=-(-step // length), share=step / total, figures=figures)
        if answer["stop"] and step < total:
            self.pruned, trainer.stop_signal = True, PRUNER


def figures_at(folder: Path, step: int, length: int) -> dict[str, float]:
    """The figures of a run at an update: validation of that update, training as the mean of the last `length`."""
    found: dict[str, float] = {}
    window: dict[str, list[float]] = {}
    for line in JsonLines(folder / "metrics.jsonl").read():
        numbers = {name: value for name, value in line.items() if name not in NO_STEP and isinstance(value, float)}
        if line["kind"] == "validation" and line["step"] == step:
            found |= {f"validation.{name}": value for name, value in numbers.items()}
        if line["kind"] == "train" and step - length < line["step"] <= step:
            for name, value in numbers.items():
                window.setdefault(name, []).append(value)
    return found | {f"train.{name}": fmean(values) for name, values in window.items()}


def measures(folder: Path, final: Path) -> dict[str, float]:
    """Everything that a finished run was measured by, under the names of the goals."""
    forecast = json.loads((folder / "forecast.json").read_text(encoding="utf-8"))
    plan, fact = forecast["forecast"], forecast.get("fact", {})
    total = int(plan["steps"])
    timings = JsonLines(folder / "timings.jsonl").read()
    seconds = sum(line["seconds"] for line in timings)
    lines = JsonLines(folder / "metrics.jsonl").read()
    tokens = next((line["tokens"] for line in reversed(lines) if line["kind"] == "train"), 0)
    found = figures_at(folder, total, max(1, total // 10))
    found |= {"seconds": seconds, "tokens_per_second": tokens / seconds if seconds else 0.0}
    found |= {"parameters": plan["parameters"], "parameters.trained": plan["trainable_parameters"]}
    found["bytes"] = folder_bytes(final)
    if "peak_memory_bytes" in fact:
        found["memory"] = fact["peak_memory_bytes"]
    evaluated = folder / "eval" / "validation" / "metrics.json"
    if evaluated.is_file():
        for name, figure in json.loads(evaluated.read_text(encoding="utf-8"))["metrics"].items():
            if isinstance(figure.get("value"), int | float):
                found[f"evaluation.{name}"] = figure["value"]
    return {name: float(value) for name, value in found.items()}


def run_trial(task: Mapping[str, Any], line: Line) -> None:
    """Trains the recipes of a trial (one for each seed) and says what came of it."""
    from trivium.config import resolve
    from trivium.drivers.run_folder import RunFolder
    from trivium.drivers.single import train

    found: list[dict[str, float]] = []
    for number, recipe in enumerate(task["recipes"]):
        resolved = resolve(own_device(recipe, task["slot"]))
        watch = Watch(line, RunFolder(resolved).path)
        try:
            run = train(resolved, callbacks=[watch] if number == 0 else [])
        except Interrupted as error:
            line.send(**({"pruned": error.problem} if watch.pruned else {"interrupted": True}))
            return
        except (TrainingDiverged, NoRoom) as error:
            line.send(failed=error.problem)
            return
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            line.send(failed=f"out of memory: {' '.join(str(error).split())[:200]}")
            return
        assert run.final is not None
        found.append(measures(run.folder, run.final))
        missing = [goal for goal in task["goals"] if goal not in found[-1]]
        if missing:
            known = ", ".join(sorted(found[-1]))
            raise ConfigError(
                "runs do not measure this goal", where="sweep.goals", value=missing[0], fix=f"use {known}"
            )
    line.send(result=found)


def own_device(recipe: dict[str, Any], slot: int) -> dict[str, Any]:
    """Of several GPUs, each trial at the same time gets its own, unless the recipe names one."""
    import torch

    count = torch.cuda.device_count()
    named = recipe.get("engine", {}).get("device", "auto")
    if count < 2 or named not in ("auto", "cuda"):
        return recipe
    return {**recipe, "engine": {**recipe.get("engine", {}), "device": f"cuda:{slot % count}"}}


def do(task: Mapping[str, Any], line: Line) -> None:
    """One trial from beginning to end; what it says besides goes into its log."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=line.listen, daemon=True).start()
    try:
        run_trial(task, line)
    except Exception as error:
        line.send(error=to_json(error))


def main() -> None:
    """Tasks from standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep, which asks the trials to save
    line = Line(os.dup(1))
    os.dup2(2, 1)

    import trivium.core.checkpoint
    import trivium.drivers.session
    import trivium.drivers.single
    import trivium.report.report  # noqa: F401

    for text in sys.stdin.buffer:
        message = json.loads(text)
        if "task" not in message:  # an answer that came too late
            continue
        if not FORKS:
            do(message["task"], line)
            return
        child = os.fork()
        if child == 0:
            try:
                do(message["task"], line)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        line.send(ended=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
