"""From a pipeline file to the artifact: plan units, have them worked on, decide between stages, join the parts.

documents.<split>.jsonl           {"id", "text", "source", "licence", "meta"} a line
report.json                       the account of every step
steps/<number>-<name>/            decisions.jsonl: each document that did not simply pass, and why; reports of the step
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivium.artifacts.manifest import hash_file, verify
from trivium.artifacts.record import Parent, parent_of, read_record
from trivium.artifacts.temporary import discard
from trivium.artifacts.writer import check_target, make_folder, write_artifact, write_file, write_plain
from trivium.data.intake import Intake
from trivium.data.pipeline.account import Account
from trivium.data.pipeline.engines import Engine, HereEngine, ProcessEngine, RayEngine, Task
from trivium.data.pipeline.plan import Pipeline, ResolvedPipeline, resolve_pipeline
from trivium.data.pipeline.units import UNIT_BYTES, Unit, plan_units
from trivium.data.pipeline.work import (
    DECISIONS,
    DOCUMENTS,
    PART_BYTES,
    REJECTED,
    SKETCH,
    SPLIT,
    Job,
    make_step,
    stages_of,
)
from trivium.data.reading import no_documents, source_parent
from trivium.data.workbench import code_fingerprint, work_folder
from trivium.errors import ArtifactError, DataError, Interrupted

REPORT = "report.json"
STEPS = "steps"
DECIDED = "decisions.jsonl"
READ = "00-read"
_BLOCK = 1 << 20

Progress = Callable[[str, int], None]
"""Called with the name of a stage and how many documents have passed it."""


@dataclass(frozen=True)
class PipelineRun:
    """The folder that was written, its account, and the seconds that all workers together spent in each step.

    seconds is empty if everything was there already.
    """

    folder: Path
    report: Mapping[str, Any]
    seconds: Mapping[str, float]


def run_pipeline(
    pipeline: str | Path | Mapping[str, Any] | Pipeline,
    overrides: Sequence[str] = (),
    *,
    on_progress: Progress | None = None,
) -> PipelineRun:
    """Run a pipeline and write its artifact (kind "documents"); what is there already from the same is left as it is.

    Killed and started again, it goes on where it was. The files do not depend on the number of workers, on the engine,
    nor on how often it was killed. Raises ConfigError for a wrong pipeline, DataError, and Interrupted after Ctrl-C.
    """
    return run_resolved(resolve_pipeline(pipeline, overrides), on_progress=on_progress)


def run_resolved(
    resolved: ResolvedPipeline, *, needed: Sequence[str] = (), on_progress: Progress | None = None
) -> PipelineRun:
    """The same for a pipeline that was checked; `needed` are splits that must not be empty."""
    output = resolved.output
    check_target(output, kind="documents", replace=True)
    parents = _parents(resolved)
    key = resolved.key(code_fingerprint(), UNIT_BYTES, PART_BYTES, _outside(resolved), [p.hash for p in parents])
    seconds: dict[str, float] = {}
    with work_folder(output, key=key) as folder:
        if not _is_done(output, key):
            done = _Run(resolved, folder, key, on_progress or (lambda stage, count: None)).all()
            report = done.report(resolved)
            _refuse_empty(report, needed)
            config = {"key": key, "pipeline": resolved.depends}
            seed = resolved.pipeline.seed
            with write_artifact(
                output, kind="documents", parents=parents, config=config, seed=seed, replace=True
            ) as place:
                done.write(place, resolved, report)
            seconds = done.seconds(resolved)
    verify(output)
    return PipelineRun(output, json.loads((output / REPORT).read_bytes()), seconds)


def step_folder(number: int, name: str) -> str:
    """Where what a step left out is written, inside the artifact; numbers count from 1."""
    return f"{number:02d}-{name.rpartition(':')[2]}"


def _parents(resolved: ResolvedPipeline) -> list[Parent]:
    found = [source_parent(source, "documents") for source in resolved.pipeline.sources]
    for chosen in resolved.steps:
        step = make_step(chosen.cls, chosen.dump(), resolved.pipeline.seed)
        found += [parent_of(path, chosen.name) for path in step.parents()]
    return found


def _outside(resolved: ResolvedPipeline) -> list[str]:
    """The code of steps that are not part of Trivium."""
    files = [sys.modules[chosen.cls.__module__].__file__ for chosen in resolved.steps if ":" in chosen.name]
    return [hash_file(Path(file)).sha256 for file in files if file]


def _is_done(output: Path, key: str) -> bool:
    try:
        record = read_record(output)
        return record is not None and record.config is not None and record.config["key"] == key
    except (ArtifactError, KeyError):
        return False


def _refuse_empty(report: Mapping[str, Any], needed: Sequence[str]) -> None:
    left = {**report["dropped"], **report["merged"], **report["quarantined"]}
    why = ", ".join(f"{reason}: {count}" for reason, count in sorted(left.items(), key=lambda item: -item[1]))
    if not report["kept"]:
        raise DataError("no document is left", value=why, fix="see what each step removes: trivium data run --dry-run")
    for split in needed:
        if split not in report["kept"]:
            raise DataError(
                f"no document is left for {split}",
                value=f"{sum(report['kept'].values())} documents for {', '.join(report['kept'])}; {why}",
                fix="give more documents, or change the share that is held out or the seed",
            )


# Working


@dataclass
class _Run:
    """One pass through the stages."""

    resolved: ResolvedPipeline
    folder: Path
    key: str
    progress: Progress

    def __post_init__(self) -> None:
        pipeline = self.resolved.pipeline
        self.stages = stages_of([chosen.cls for chosen in self.resolved.steps])
        self.job = Job(
            folder=str(self.folder.resolve()),
            key=self.key,
            seed=pipeline.seed,
            on_error=pipeline.on_error,
            part_bytes=PART_BYTES,
            sources=[source.model_dump(mode="json") for source in pipeline.sources],
            steps=[chosen.dump() for chosen in self.resolved.steps],
        )

    def all(self) -> _Done:
        """Every stage that is not done yet."""
        intake = Intake(self.resolved.pipeline.on_error)
        units = plan_units(self.resolved.pipeline.sources, intake, size=UNIT_BYTES)
        done = _Done(intake.summary(), Path(self.job.folder))
        with _engine(self.resolved.pipeline) as engine:
            for number, stage in enumerate(self.stages):
                before = done.stages[-1] if done.stages else []
                found = self._summary(number)
                if found is None:
                    found = self._first(engine, units) if number == 0 else self._next(engine, number, before)
                    write_file(self._place(number), json.dumps(found))
                    _forget([*before, *found["raw"]])
                done.raw += found["raw"]
                done.stages.append(found["parts"])
                if number == 0:
                    self._refuse_nothing(done)
                if stage.sketched is not None:
                    self._decide(engine, stage.sketched, found["parts"])
        return done

    def _place(self, number: int) -> Path:
        return self.folder / f"stage-{number}.json"

    def _summary(self, number: int) -> Any:
        """What is known of a stage that was finished before; the next one needs its documents, older ones are gone."""
        try:
            return json.loads(self._place(number).read_bytes())
        except FileNotFoundError:
            return None

    def _first(self, engine: Engine, units: Sequence[Unit]) -> dict[str, list[Any]]:
        """What one process reads for others, and the parts of the first stage, both in order."""
        tasks = [
            {"do": "read" if unit.alone else "work", "stage": 0, "name": _unit_name(number), "unit": unit.to_json()}
            for number, unit in enumerate(units)
        ]
        tasks.sort(key=lambda task: task["do"] != "read")  # those take longest, and make work for others
        results = self._done_by(engine, 0, tasks)
        raw, parts = [], []
        for number, unit in enumerate(units):
            found = results[_unit_name(number)]
            if unit.alone:
                raw += found
                found = [part for at in range(len(found)) for part in results[_piece_name(_unit_name(number), at)]]
            parts += found
        return {"raw": raw, "parts": parts}

    def _next(self, engine: Engine, number: int, before: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """The parts of a later stage, one for each of the stage before."""
        tasks = []
        for at, part in enumerate(before):
            place = Path(part["files"][DOCUMENTS])
            bench = place.parent.relative_to(self.job.folder).as_posix()
            tasks.append(_part_task(number, f"stage-{number}/{at:07d}", bench, int(place.name[5:10]), at))
        results = self._done_by(engine, number, tasks)
        return {"raw": [], "parts": [part for task in tasks for part in results[task["name"]]]}

    def _decide(self, engine: Engine, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        self.progress(f"deciding: {self.resolved.steps[step].name}", 0)
        named = [
            {name.removeprefix(SKETCH): path for name, path in part["files"].items() if name.startswith(SKETCH)}
            for part in parts
        ]
        engine.run(self.job, [{"do": "decide", "name": f"decide-{step}", "step": step, "parts": named}], _nothing_more)

    def _done_by(self, engine: Engine, number: int, tasks: Sequence[Task]) -> dict[str, Any]:
        stage = self.stages[number]
        steps = [*([] if stage.applied is None else [stage.applied]), *stage.alone]
        names = ", ".join(self.resolved.steps[step].name for step in steps) or "reading"
        count = 0

        def more(task: Task, emitted: Mapping[str, Any]) -> Sequence[Task]:
            nonlocal count
            if "raw" in emitted:
                at = emitted["raw"]
                return [_part_task(0, _piece_name(task["name"], at), task["name"], at, 0)]
            count += emitted["part"]
            self.progress(names, count)
            return []

        return engine.run(self.job, tasks, more)

    def _refuse_nothing(self, done: _Done) -> None:
        for number, source in enumerate(self.resolved.pipeline.sources):
            read = [part for part in done.reading() if part["source"] == number]
            if not any(part["input"] or part["intake"]["quarantined"] for part in read):
                raise no_documents(source)


def _unit_name(number: int) -> str:
    return f"stage-0/{number:07d}"


def _piece_name(unit: str, number: int) -> str:
    return f"{unit}-{number:07d}"


def _part_task(stage: int, name: str, bench: str, number: int, at: int) -> Task:
    """Pass part `number` of a workbench, the one at place `at` in the corpus, through a stage."""
    return {"do": "work", "stage": stage, "name": name, "bench": bench, "number": number, "at": at}


def _nothing_more(task: Task, emitted: Mapping[str, Any]) -> Sequence[Task]:
    return ()


def _forget(parts: Sequence[Mapping[str, Any]]) -> None:
    """Documents that have passed the next stage are not needed any more."""
    for part in parts:
        if (path := part["files"].get(DOCUMENTS)) is not None:
            discard(Path(path))


@contextmanager
def _engine(pipeline: Pipeline) -> Iterator[Engine]:
    workers = pipeline.workers or os.cpu_count() or 1
    engine: Engine
    if pipeline.engine == "ray":
        engine = RayEngine(pipeline.workers)
    else:
        engine = HereEngine() if workers == 1 else ProcessEngine(workers)
    try:
        yield engine
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what was finished is kept", where=pipeline.output, fix="run the same command again to go on"
        ) from None
    finally:
        engine.close()


# Putting together


@dataclass
class _Done:
    """The facts about all parts of all stages, in order.

    plan: formats and skipped files.  raw: what one process has read for others.
    """

    plan: Mapping[str, Any]
    folder: Path
    raw: list[Any] = field(default_factory=list)
    stages: list[list[Any]] = field(default_factory=list)

    def reading(self) -> Iterator[Mapping[str, Any]]:
        """What was noted in reading."""
        yield from (part for part in (*self.raw, *self.stages[0]) if "input" in part)

    def seconds(self, resolved: ResolvedPipeline) -> dict[str, float]:
        """Seconds in each step, over all workers."""
        found: Counter[int] = Counter()
        for part in (part for stage in self.stages for part in stage):
            for number, spent in part["seconds"].items():
                found[int(number)] += spent
        return {step_folder(at + 1, chosen.name): float(found[at]) for at, chosen in enumerate(resolved.steps)}

    def accounts(self, count: int) -> list[Account]:
        """The account of reading and of each step; each of them closes, and each begins with what the last one kept."""
        found = [Account() for _ in range(count + 1)]
        for part in self.reading():
            quarantined = Counter(part["intake"]["quarantined"])
            found[0] += Account(part["documents"] + quarantined.total(), 0, part["documents"], quarantined=quarantined)
        for part in (part for stage in self.stages for part in stage):
            for number, values in part["steps"].items():
                found[int(number) + 1] += Account.from_json(values)
        for before, account in zip([None, *found], found, strict=False):
            account.check()
            assert before is None or before.kept == account.entered, "each step must see all that the last one kept"
        return found

    def report(self, resolved: ResolvedPipeline) -> dict[str, Any]:
        """The account, for people and programs."""
        accounts = self.accounts(len(resolved.steps))
        splits: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for part in self.stages[-1]:
            splits.update(part["splits"])
            sizes.update({name: Path(path).stat().st_size for name, path in _splits(part)})
        assert splits.total() == accounts[-1].kept, "all that is kept is written"
        total = Account()
        for account in accounts:
            total += account
        skipped = Counter(self.plan["skipped"])
        for part in self.reading():
            skipped.update(part["intake"]["skipped"])
        names = ["read", *(chosen.name for chosen in resolved.steps)]
        reasons = total.to_json()
        return {
            "name": resolved.pipeline.name,
            "input": accounts[0].entered,
            "added": total.added,
            "kept": dict(sorted(splits.items())),
            **{name: reasons[name] for name in ("dropped", "merged", "quarantined")},
            "formats": dict(sorted(self.plan["formats"].items())),
            "skipped": dict(sorted(skipped.items())),
            "bytes": dict(sorted(sizes.items())),
            "steps": [{"name": name, **account.to_json()} for name, account in zip(names, accounts, strict=True)],
        }

    def write(self, place: Path, resolved: ResolvedPipeline, report: Mapping[str, Any]) -> None:
        """The files of the artifact."""
        for split in report["kept"]:
            parts = (path for part in self.stages[-1] for name, path in _splits(part) if name == split)
            write_plain(place / f"documents.{split}.jsonl", _joined(parts))
        rejected = [part["files"][REJECTED] for part in self.reading() if REJECTED in part["files"]]
        if rejected:
            make_folder(place / STEPS / READ)
            write_plain(place / STEPS / READ / DECIDED, _joined(rejected))
        for number, chosen in enumerate(resolved.steps):
            folder = place / STEPS / step_folder(number + 1, chosen.name)
            make_folder(folder)
            for path in sorted(self.folder.glob(f"reports-{number}/**/*")):
                target = folder / path.relative_to(self.folder / f"reports-{number}")
                make_folder(target.parent if path.is_file() else target)
                if path.is_file():
                    write_plain(target, _joined([str(path)]))
            files = (part["files"].get(f"{DECISIONS}{number}") for stage in self.stages for part in stage)
            write_plain(folder / DECIDED, _joined(path for path in files if path))
        write_file(place / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _splits(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name.removeprefix(SPLIT), path) for name, path in part["files"].items() if name.startswith(SPLIT))


def _joined(paths: Iterable[str]) -> Iterator[bytes]:
    """The bytes of files, one after the other."""
    for path in paths:
        with Path(path).open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
