"""`trivium sweep`: many runs of a recipe with other settings, proposed by a sampler, to find the best.

    <runs>/<name>-sweep/
      sweep.yaml         the complete recipe and search
      study.db           the memory of the sampler (SQLite)
      trials/0007/       an ordinary run folder for each trial, and 0007.log with what it said
      sweep.json         all trials, the best, importances
      sweep.html         the same as one page
      best.yaml          the best recipe, for `trivium train`
      front/0007.yaml    with several goals: each recipe that none beats in all of them

The same command continues what was stopped or killed: finished trials stay, a running one goes on from its last
checkpoint. A trial that diverges or finds no memory is a failed trial; what is wrong with the input ends the sweep.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import selectors
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from trivium.artifacts.checkpoints import CheckpointStore
from trivium.artifacts.writer import make_folder, remove_artifact, write_file
from trivium.config import resolve
from trivium.core.plan import MARGIN, describe_machine
from trivium.core.progress import Progress, readable_bytes, readable_seconds
from trivium.data.pipeline.errors import WorkerFailed, from_json
from trivium.data.sealing import sealed_folders
from trivium.drivers.run_folder import FREE_TO_CHANGE, alone_in, refuse_differences, set_aside_alone
from trivium.drivers.single import say
from trivium.drivers.sweep_cma import value_at
from trivium.drivers.sweep_study import Study, Trial, front
from trivium.errors import ConfigError, Interrupted
from trivium.marked_yaml import dump_yaml
from trivium.search_space import Search, read_search

FREE = (*FREE_TO_CHANGE, *(f"sweep.{name}" for name in ("trials", "minutes", "processes", "keep")))
"""Keys that may differ when a sweep is continued."""
DRAWN = 12
"""Trials drawn at random for a forecast."""
STARTING = 4.0
"""Seconds that a trial takes besides its updates, about."""
WRITE_EVERY = 30.0
"""Seconds between two versions of the page while a sweep runs."""


@dataclass(frozen=True)
class Sweep:
    """A sweep on the disk.

    best:  the complete trial that is best by the first goal, None if there is none.
    front: the complete trials that no other beats in all goals; with one goal, the best.
    """

    folder: Path
    goals: list[str]
    trials: list[Trial]
    best: Trial | None
    front: list[Trial]
    seconds: float

    @property
    def recipe(self) -> Path | None:
        """The best recipe as a file."""
        return self.folder / "best.yaml" if self.best else None

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.folder / "sweep.html"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "folder": str(self.folder),
            "goals": self.goals,
            "best": self.best.as_dict() if self.best else None,
            "recipe": str(self.recipe) if self.recipe else None,
            "front": [one.number for one in self.front],
            "report": str(self.report),
            "seconds": self.seconds,
            "trials": [one.as_dict() for one in self.trials],
        }


def sweep(
    recipe: str | Path | Mapping[str, Any] | Search,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
) -> Sweep:
    """Searches as the section `sweep` of a recipe says, or goes on with it, and returns what was found.

    recipe:    path of a YAML file, or the same tree as a dictionary.
    overrides: changes such as `sweep.trials=30` or `train.steps=200`.
    fresh:     sets an earlier sweep of this name aside and starts over.

    Raises TriviumError for wrong input, Interrupted when it was asked to stop and has saved everything.
    """
    search = recipe if isinstance(recipe, Search) else read_search(recipe, overrides)
    folder = search.folder
    busy = "another process runs this sweep"
    if fresh and (aside := set_aside_alone(folder, busy)):
        say(f"the earlier sweep lies in {aside} now")
    with alone_in(folder, busy):
        stored = folder / "sweep.yaml"
        if stored.exists():
            refuse_differences(read_search(stored).dump(), search.dump(), stored, what="this sweep", free=FREE)
        refuse_too_many(search)
        write_file(stored, dump_yaml(search.dump()))
        make_folder(folder / "trials")
        return Sweeping(search, Study(search, folder / "study.db")).run()


class Sweeping:
    """The loop of a sweep: free processes get the next trial, and what they say is told to the study."""

    def __init__(self, search: Search, study: Study) -> None:
        self.search = search
        self.study = study
        self.folder = search.folder
        self.processes = [TrialProcess(slot) for slot in range(search.settings.processes)]
        self.stopped_by: str | None = None
        self.began = time.monotonic()
        self.before = study.seconds
        self.written = 0.0
        self.opened = False
        """Whether a trial has read the data, which are then there for all: the first one does it alone."""
        self.progress = Progress(search.trials, search.base.recipe.name)

    @property
    def seconds(self) -> float:
        """Time of the sweep, earlier calls included."""
        return self.before + time.monotonic() - self.began

    def run(self) -> Sweep:
        """To the last trial, or as far as time and the user allow."""
        backlog = deque(self.study.unfinished())
        try:
            with self.signals(), self.progress, selectors.DefaultSelector() as ready:
                while True:
                    for process in self.processes:
                        if process.number is None and (task := self.next(backlog)):
                            self.begin(process, *task)
                            ready.register(process.messages_from, selectors.EVENT_READ, process)
                    if all(process.number is None for process in self.processes):
                        break
                    for key, _ in ready.select():
                        process = key.data
                        stream = process.messages_from
                        for message in process.messages():
                            self.handle(process, message)
                        if process.number is None:
                            ready.unregister(stream)
        finally:
            for process in self.processes:
                process.end()
            self.study.took(self.seconds)
        return self.finish()

    def next(self, backlog: deque[tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]] | None:
        """The next trial to run: (number, values); None if there is none."""
        limit = self.search.settings.minutes
        alone = not self.opened and any(process.number is not None for process in self.processes)
        if self.stopped_by or alone:
            return None
        if backlog:
            return backlog.popleft()
        if len(self.study.trials()) >= self.search.trials or (limit is not None and self.seconds >= 60 * limit):
            return None
        return self.study.ask()

    def begin(self, process: TrialProcess, number: int, values: dict[str, Any]) -> None:
        """Gives a trial to a free process."""
        process.begin(
            number,
            {
                "recipes": self.recipes(number, values),
                "goals": [goal.metric for goal in self.search.settings.goals],
                "slot": process.slot,
                "log": str(self.folder / "trials" / f"{number:04d}.log"),
            },
        )

    def recipes(self, number: int, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The recipes of a trial, one for each seed."""
        recipe, settings = self.search.base.recipe, self.search.settings
        top: dict[str, Any] = {"runs": str(self.folder / "trials")}
        if sealed := sealed_folders(recipe):
            top["data.sealed"] = [
                str(path) for path in sealed
            ]  # those beside the user's runs are not beside the trials
        if settings.processes > 1 and recipe.train.threads is None:
            top["train.threads"] = max(1, describe_machine().cores // settings.processes)
        return [
            self.search.recipe(values, **top, name=name, seed=recipe.seed + seed)
            for seed, name in enumerate(self.names(number))
        ]

    def names(self, number: int) -> list[str]:
        """Of the runs of a trial."""
        seeds = self.search.settings.seeds
        return [f"{number:04d}-seed{seed}" for seed in range(seeds)] if seeds > 1 else [f"{number:04d}"]

    def handle(self, process: TrialProcess, message: dict[str, Any]) -> None:
        """Does what a message of a trial asks for."""
        number = process.number
        assert number is not None
        match message:
            case {"seen": step, "figures": figures, "share": share}:
                process.answer(stop=self.judge(number, step, figures))
                self.progress.label = f"{self.search.base.recipe.name} (trial {number} at {share:.0%})"
            case {"result": found}:
                self.close(process, **self.result(found))
            case {"pruned": reason}:
                self.close(process, state="pruned", reason=reason)
            case {"failed": reason}:
                self.close(process, state="failed", reason=reason)
            case {"error": error}:
                raise from_json(error)
            case {"opened": _}:
                self.opened = True
            case {"ended": code}:
                self.opened = True
                if process.told is None and self.stopped_by is None:
                    self.died(process, code)
                if process.told is None:
                    self.study.add_seconds(number, process.seconds)
                process.number = None

    def judge(self, number: int, step: int, figures: Mapping[str, float]) -> bool:
        """Whether a trial should end early, by its figures at a validation."""
        goals = [goal for goal in self.search.settings.goals if goal.intermediate]
        for goal in goals:
            if goal.metric not in figures:
                known = ", ".join(sorted(figures))
                raise ConfigError(
                    "runs do not measure this goal", where="sweep.goals", value=goal.metric, fix=f"one of {known}"
                )
        return bool(goals) and self.study.report(number, step, figures[goals[0].metric])

    def result(self, found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """What to tell the study of a trial that went to its end: means over the seeds."""
        measures = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
        goals = [goal.metric for goal in self.search.settings.goals]
        wrong = next((goal for goal in goals if not math.isfinite(measures[goal])), None)
        if wrong is not None:
            return {"state": "failed", "reason": f"{wrong} is {measures[wrong]}"}
        spread = statistics.stdev(one[goals[0]] for one in found) if len(found) > 1 else None
        finite = {name: value for name, value in measures.items() if math.isfinite(value)}
        return {"state": "complete", "goals": [measures[g] for g in goals], "measures": finite, "spread": spread}

    def died(self, process: TrialProcess, code: int) -> None:
        """A trial whose process ended without a word: mostly the system took it for its memory."""
        if code >= 0:
            assert process.number is not None
            log = self.folder / "trials" / f"{process.number:04d}.log"
            raise WorkerFailed(f"the process of trial {process.number} ended with code {code}; see {log}")
        name = signal.Signals(-code).name
        words = ", mostly too little memory" if -code == signal.SIGKILL else ""
        self.close(process, state="failed", reason=f"its process was ended by {name}{words}")

    def close(self, process: TrialProcess, *, state: str, **told: Any) -> None:
        """Tells the study how a trial ended, and the user."""
        number = process.number
        assert number is not None
        self.study.add_seconds(number, process.seconds)
        self.study.tell(number, state, **told)
        self.study.took(self.seconds)
        process.told = state
        trials = self.study.trials()
        best = front(trials, self.search.settings.goals)
        self.clear(number, trials, best)
        done = sum(one.state != "running" for one in trials)
        figures = {f"best {self.search.settings.goals[0].metric}": best[0].goals[0]} if best else {}
        self.progress.update(done, **figures)
        self.progress.note(describe(trials[number], self.search, best))
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()

    def clear(self, number: int, trials: Sequence[Trial], best: Sequence[Trial]) -> None:
        """Removes what is not to be kept of trials that are over."""
        keep, places = self.search.settings.keep, self.folder / "trials"
        if keep == "all":
            return
        for name in self.names(number):
            CheckpointStore(places / name).clear()
        if keep == "best":
            kept = {one.number for one in best}
            for one in trials:
                for name in self.names(one.number) if one.state == "complete" and one.number not in kept else ():
                    if (places / name / "final").is_dir():
                        remove_artifact(places / name / "final")

    def finish(self) -> Sweep:
        """Writes everything; Interrupted if it was asked to stop, ConfigError if no trial went to its end."""
        found = self.write()
        done = sum(one.state != "running" for one in found.trials)
        if self.stopped_by:
            raise Interrupted(
                f"stopped by {self.stopped_by} after {done} of {self.search.trials} trials; everything is saved",
                where=self.folder,
                fix="run the same command again; it goes on from there",
            )
        if found.best is None:
            reasons = [one.reason for one in found.trials if one.reason]
            raise ConfigError(
                f"none of {len(found.trials)} trials went to its end",
                where=self.folder,
                value=reasons[-1] if reasons else "no trial was begun",
                fix="narrow the space (sweep.space), or see trials/*.log; --fresh starts over",
            )
        return found

    def write(self) -> Sweep:
        """`sweep.json`, the best recipes and the page, as things stand."""
        from trivium.report.sweep import write_sweep_report

        trials = self.study.trials()
        goals = self.search.settings.goals
        best = front(trials, goals)
        names = [goal.metric for goal in goals]
        found = Sweep(self.folder, names, trials, best[0] if best else None, best, self.seconds)
        for one in best:
            if one is best[0]:
                self.write_recipe(self.folder / "best.yaml", one, f"{self.search.base.recipe.name}-best")
            if len(goals) > 1:
                name = f"{self.search.base.recipe.name}-{one.number:04d}"
                self.write_recipe(self.folder / "front" / f"{one.number:04d}.yaml", one, name)
        how, shares = self.study.importances()
        content = {
            **found.as_dict(),
            "name": self.search.base.recipe.name,
            "wanted": self.search.trials,
            "settings": self.search.settings.model_dump(mode="json"),
            "maximize": [goal.maximize for goal in goals],
            "space": {
                axis.key: axis.dimension.model_dump(mode="json", exclude_defaults=True) for axis in self.search.axes
            },
            "own": {axis.key: self.search.own(axis.key) for axis in self.search.axes},
            "runs": {str(one.number): self.names(one.number) for one in trials},
            "importance": {"how": how, "shares": shares},
        }
        write_file(self.folder / "sweep.json", json.dumps(content, indent=1))
        write_sweep_report(content, found.report)
        self.written = time.monotonic()
        return found

    def write_recipe(self, path: Path, trial: Trial, name: str) -> None:
        """The user's recipe with the values of a trial."""
        plain = self.search.recipe(trial.values, name=name)
        write_file(path, f"# trivium train {path}\n{dump_yaml(plain)}")

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C asks the trials to save and ends the sweep; the second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            again = self.stopped_by is not None
            self.stopped_by = signal.Signals(number).name
            for process in self.processes:
                if again:
                    process.kill()
                elif process.number is not None:
                    process.answer(stop="save")

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class TrialProcess:
    """A process that runs one trial after the other; see `sweep_trial`.

    number: of the trial it runs, None while it has nothing to do.   told: how that trial ended, once it is known.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.number: int | None = None
        self.told: str | None = None
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    @property
    def messages_from(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    @property
    def seconds(self) -> float:
        """Since its trial began."""
        return time.monotonic() - self._began

    def begin(self, number: int, task: Mapping[str, Any]) -> None:
        """Gives it a trial; the process is started if there is none."""
        if self._process is None:
            path = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trivium.drivers.sweep_trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the sweep
            )
        self.number, self.told, self._began = number, None, time.monotonic()
        self._send({"task": dict(task)})

    def answer(self, **message: Any) -> None:
        """A line to the trial."""
        self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, and that will be read
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> list[dict[str, Any]]:
        """What has come; `ended` if the process is gone."""
        data = os.read(self.messages_from.fileno(), 1 << 16)
        if not data:
            assert self._process is not None
            code = self._process.wait()
            self.end()
            return [{"ended": code}]
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """Ends it and its trial at once."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends it, if it runs, and closes what connects to it."""
        if self._process is not None:
            self.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._process, self._rest = None, b""


def describe(trial: Trial, search: Search, best: Sequence[Trial]) -> str:
    """A trial that is over, in one line."""
    values = " ".join(f"{key}={shown(value)}" for key, value in trial.values.items())
    goals = search.settings.goals
    if trial.state == "complete":
        figures = ", ".join(f"{goal.metric} {value:.4g}" for goal, value in zip(goals, trial.goals, strict=True))
        good = " (best so far)" if best and best[0].number == trial.number else ""
    else:
        figures, good = trial.state if trial.state == "pruned" else f"failed: {trial.reason}", ""
    return f"trial {trial.number}: {figures}{good}, {values}, {readable_seconds(trial.seconds)}"


def shown(value: Any) -> str:
    """A value as one would write it."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


@dataclass(frozen=True)
class SweepForecast:
    """What a sweep would need: time as a range, memory of all processes and disk at most."""

    trials: int
    seconds_low: float
    seconds: float
    seconds_high: float
    memory_bytes: int
    disk_bytes: int


def forecast_sweep(search: Search) -> SweepForecast:
    """From the plans of a few trials drawn at random from the space; trials that end early make it shorter."""
    from trivium.core.machines import load_machine
    from trivium.drivers.planning import plan_recipe

    base, settings = search.base.recipe, search.settings
    machine = load_machine("here", folder=Path(base.runs), recipe=base)
    plans = [plan_recipe(resolve(search.recipe(values)), machine) for values in drawn(search)]
    runs = search.trials * settings.seeds
    low, typical, high = (
        math.ceil(search.trials / settings.processes)
        * settings.seeds
        * (STARTING + statistics.fmean(getattr(plan.seconds, name) for plan in plans))
        for name in ("low", "typical", "high")
    )
    if settings.minutes is not None:
        low, typical, high = (min(seconds, 60 * settings.minutes) for seconds in (low, typical, high))
    final = max(plan.forecast.disk_bytes - 3 * plan.forecast.checkpoint_bytes for plan in plans)
    running = max(plan.forecast.disk_bytes for plan in plans)
    kept = {"all": runs * running, "models": runs * max(0, final), "best": 0}[settings.keep]
    peak = max(plan.forecast.memory.peak for plan in plans)
    return SweepForecast(
        search.trials, low, typical, high, settings.processes * peak, kept + settings.processes * running
    )


def drawn(search: Search) -> list[dict[str, Any]]:
    """A few trials at random."""
    rng = random.Random(search.settings.seed)
    found = []
    for _ in range(min(DRAWN, search.trials)):
        values: dict[str, Any] = {}
        for axis in search.axes:
            if axis.dimension.holds(values):
                choices = axis.dimension.choices
                values[axis.key] = rng.choice(choices) if choices is not None else value_at(axis, rng.random())
        found.append(values)
    return found


def refuse_too_many(search: Search) -> None:
    """Raises ConfigError if the trials at the same time cannot be in memory together."""
    if search.settings.processes == 1:
        return
    device = search.base.recipe.engine.device
    if device not in ("auto", "cpu"):
        return
    free = MARGIN * describe_machine(search.folder).memory_bytes
    needed = forecast_sweep(search).memory_bytes
    if needed > free:
        fitting = int(free / (needed / search.settings.processes))
        raise ConfigError(
            f"{search.settings.processes} trials need about {readable_bytes(needed)} of memory together, "
            f"{readable_bytes(free)} may be used",
            where="sweep.processes",
            value=search.settings.processes,
            fix=f"set sweep.processes={fitting}" if fitting else "choose a smaller model, or train.micro_batch_size=1",
        )


def forecast_lines(search: Search) -> tuple[dict[str, Any], str]:
    """The forecast as JSON values and as a line."""
    found = forecast_sweep(search)
    settings = search.settings
    early = ", less where trials end early" if settings.pruner.name != "none" else ""
    seeds = f" of {settings.seeds} runs" if settings.seeds > 1 else ""
    at_once = f", {settings.processes} at a time" if settings.processes > 1 else ""
    text = (
        f"{found.trials} trials{seeds}{at_once}: {readable_seconds(found.seconds)} "
        f"({readable_seconds(found.seconds_low)} to {readable_seconds(found.seconds_high)}){early}, "
        f"{readable_bytes(found.memory_bytes)} memory, {readable_bytes(found.disk_bytes)} disk"
    )
    return asdict(found), text
