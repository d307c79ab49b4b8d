"""What a worker does: reads one unit, passes it through the steps of a stage, and commits parts of bounded size.

A stage is a run of steps that look at documents alone; it begins with what the step before it decided about the whole
corpus, and ends with what the step after it must know. All that is done here is a function of the settings and of the
unit, so it does not matter who does it, nor how often it was begun.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from trivium.artifacts.temporary import discard
from trivium.artifacts.writer import make_folder
from trivium.data.documents import Document
from trivium.data.intake import Intake, Quarantined
from trivium.data.pipeline.account import Ledger, to_line
from trivium.data.pipeline.units import Unit
from trivium.data.step import CorpusStep, Result, Step
from trivium.data.workbench import Part, Workbench, busy, finished_part
from trivium.errors import ArtifactDamaged, DataError
from trivium.recipe import Source

PART_BYTES = 8 << 20
"""Characters of text in one part: what a kill can cost, and what a worker holds."""
_SPLIT_NAME = re.compile(r"\w[\w.-]{0,99}\Z")
_CHUNK_DOCUMENTS = 256
_CHUNK_BYTES = 1 << 20

DOCUMENTS = "documents"
SPLIT = "split."
SKETCH = "sketch."
DECISIONS = "decisions."
DECISION = "decision"
REJECTED = "rejected"

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    """Numbers of steps: the one whose decision is applied first, those in between, the one that is sketched."""

    applied: int | None
    alone: Sequence[int]
    sketched: int | None


def stages_of(steps: Sequence[type[Any]]) -> list[Stage]:
    """The steps, cut at those that decide about the whole corpus."""
    found: list[Stage] = []
    applied, alone = None, list[int]()
    for number, step in enumerate(steps):
        if issubclass(step, CorpusStep):
            found.append(Stage(applied, alone, number))
            applied, alone = number, []
        else:
            alone.append(number)
    return [*found, Stage(applied, alone, None)]


@dataclass(frozen=True)
class Job:
    """All that workers must know, as JSON values."""

    folder: str
    key: str
    seed: int
    on_error: Any
    part_bytes: int
    sources: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    def bench(self, name: str) -> Workbench:
        """The workbench of this name."""
        return Workbench(Path(self.folder) / name, key=self.key)

    def decided(self, step: int) -> Workbench:
        """What a step decided about each part."""
        return self.bench(f"decided-{step}")

    def reports(self, step: int) -> Path:
        """Where a step writes reports while it decides."""
        return Path(self.folder) / f"reports-{step}"


def run_task(job: Job, task: Mapping[str, Any], emit: Emit) -> Any:
    """Does one task; the same result however often it was begun. `emit` is told about each part."""
    with busy(Path(job.folder), key=job.key):
        if task["do"] == "read":
            return _read(job, Unit.from_json(task["unit"]), task["name"], emit)
        if task["do"] == "decide":
            return _decide(job, task["step"], task["parts"])
        return _work(job, task, emit)


def facts_of(part: Part) -> dict[str, Any]:
    """What the caller is told about a part."""
    return {**part.facts, "files": {name: str(path) for name, path in part.files.items()}}


# Reading


def _read(job: Job, unit: Unit, name: str, emit: Emit) -> list[dict[str, Any]]:
    """Read a unit that one process cannot work on alone, and write what is read in pieces."""
    bench = job.bench(name)
    for number in range(len(bench.parts)):
        emit({"raw": number})
    for documents, rejected, facts in _pieces(job, unit, bench.parts):
        bench.commit({DOCUMENTS: _lines(documents), **rejected}, facts)
        emit({"raw": len(bench.parts) - 1})
    return [facts_of(part) for part in bench.parts]


def _pieces(
    job: Job, unit: Unit, done: Sequence[Part]
) -> Iterator[tuple[list[Document], dict[str, bytes], dict[str, Any]]]:
    """Documents for one part at a time, a file of what was set aside, and the facts; what is done is passed over."""
    if done and done[-1].facts["last"]:
        return
    intake = Intake(job.on_error)
    documents = unit.documents(Source.model_validate(job.sources[unit.source]), intake)
    for _ in islice(documents, sum(part.facts["input"] for part in done)):
        pass
    _clear(intake)
    last = False
    while not last:
        part: list[Document] = []
        count = size = 0
        last = True
        for document in documents:
            count += 1
            size += len(document.text)
            if (kept := _named(document, intake)) is not None:
                part.append(kept)
            if size >= job.part_bytes:
                last = False
                break
        rejected = {REJECTED: b"".join(map(_rejected, intake.examples))} if intake.examples else {}
        facts = {"input": count, "documents": len(part), "last": last, "source": unit.source}
        yield part, rejected, {**facts, "intake": intake.summary()}
        _clear(intake)


def _rejected(row: Quarantined) -> bytes:
    reason = row.message.partition("\n")[0]
    return to_line({"id": row.where, "outcome": "quarantined", "reason": reason, "evidence": row.message})


def _clear(intake: Intake) -> None:
    for counter in (intake.formats, intake.skipped, intake.quarantined):
        counter.clear()
    intake.examples.clear()


def _named(document: Document, intake: Intake) -> Document | None:
    """The document with the hash of its text as it was read; one that has a hash from an earlier pipeline keeps it."""
    try:
        if "sha256" in document.meta:
            document.text.encode()
            return document
        digest = hashlib.sha256(document.text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        found = ascii(document.text[max(0, error.start - 20) : error.start + 20])
        problem = "the text holds half of a surrogate pair, which is no character"
        intake.reject(DataError(problem, where=document.source, value=found, fix="write the file again as UTF-8"))
        return None
    return replace(document, meta={**document.meta, "sha256": digest})


# Working


def _work(job: Job, task: Mapping[str, Any], emit: Emit) -> list[dict[str, Any]]:
    """Pass a unit, or a part of the stage before, through a stage."""
    bench = job.bench(task["name"])
    stage = _maker(job.to_json(), task["stage"])
    if "unit" in task:
        for documents, rejected, read in _pieces(job, Unit.from_json(task["unit"]), bench.parts):
            files, facts = stage.part(documents, None, read)
            emit({"part": bench.commit({**files, **rejected}, facts).facts["kept"]})
    elif not bench.parts:
        documents = list(_documents(_checked(job, task["bench"], task["number"]).files[DOCUMENTS]))
        decision = None
        if stage.stage.applied is not None:
            decided = _checked(job, f"decided-{stage.stage.applied}", task["at"]).files[DECISION]
            decision = json.loads(decided.read_bytes())
        emit({"part": bench.commit(*stage.part(documents, decision, {})).facts["kept"]})
    return [facts_of(part) for part in bench.parts]


def _checked(job: Job, bench: str, number: int) -> Part:
    """A part that an earlier task left."""
    part = finished_part(Path(job.folder) / bench, number, key=job.key)
    if part is None:
        raise ArtifactDamaged(
            "what was done before is damaged",
            where=Path(job.folder) / bench,
            fix=f"delete {job.folder} and run the same command again",
        )
    return part


@lru_cache(maxsize=4)
def _maker(job: str, number: int) -> _Maker:
    """The steps of a stage, made once in a process."""
    settings = json.loads(job)
    classes = step_classes(settings["steps"])
    return _Maker(settings, stages_of(classes)[number], classes)


def step_classes(steps: Sequence[Mapping[str, Any]]) -> list[type[Any]]:
    """The class of each step."""
    from trivium.registry import component

    return [component("data/steps", step["name"], outside=True) for step in steps]


class _Maker:
    """Makes the files and facts of parts in one stage."""

    def __init__(self, job: Mapping[str, Any], stage: Stage, classes: Sequence[type[Any]]) -> None:
        self.stage = stage
        self._on_error = job["on_error"]
        wanted = {*stage.alone, *(number for number in (stage.applied, stage.sketched) if number is not None)}
        self._steps = {number: make_step(classes[number], job["steps"][number], job["seed"]) for number in wanted}

    def part(
        self, documents: list[Document], decision: Any, read: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """(files, facts) of one part."""
        ledgers = {number: Ledger() for number in self._steps}
        seconds: dict[str, float] = {}
        kept: list[Document] = []
        if self.stage.applied is not None:
            documents = self._decided(documents, decision, ledgers, seconds)
        for chunk in _chunks(documents):
            for number in self.stage.alone:
                with _timed(seconds, number):
                    chunk = self._alone(self._steps[number], chunk, ledgers[number])
            kept += chunk
        files: dict[str, bytes] = {}
        splits = dict(Counter(str(document.meta.get("split", "train")) for document in kept))
        if self.stage.sketched is not None:
            with _timed(seconds, self.stage.sketched):
                kept, sketches = self._sketched(kept, ledgers[self.stage.sketched])
            files |= {f"{SKETCH}{name}": data for name, data in sketches.items()}
            files[DOCUMENTS] = _lines(kept)
        else:
            files |= _by_split(kept)
        files |= {f"{DECISIONS}{number}": b"".join(ledger.lines) for number, ledger in ledgers.items() if ledger.lines}
        accounts = {str(number): ledger.account.to_json() for number, ledger in ledgers.items()}
        facts = {"kept": len(kept), "splits": splits, "steps": accounts, "seconds": seconds}
        return files, {"last": True, **read, **facts}

    def _alone(self, step: Step, documents: list[Document], ledger: Ledger) -> list[Document]:
        results = self._tried(step, documents)
        assert len(results) == len(documents), f"{type(step).__name__} must give one result for each document"
        return [new for one, result in zip(documents, results, strict=True) for new in ledger.enter(one, result)]

    def _tried(self, step: Step, documents: list[Document]) -> Sequence[Result]:
        """The results; where a document cannot be used, and such are set aside, the error in its place."""
        try:
            return step.apply_all(documents)
        except DataError as error:
            if self._on_error == "error":
                raise
            if len(documents) == 1:
                return [error]
        return [result for document in documents for result in self._tried(step, [document])]

    def _decided(
        self, documents: list[Document], decision: Any, ledgers: Mapping[int, Ledger], seconds: dict[str, float]
    ) -> list[Document]:
        assert self.stage.applied is not None
        number = self.stage.applied
        with _timed(seconds, number):
            results = self._steps[number].apply_all(documents, decision)
        assert len(results) == len(documents), "a step must give one result for each document"
        return [
            new for one, result in zip(documents, results, strict=True) for new in ledgers[number].enter(one, result)
        ]

    def _sketched(self, documents: list[Document], ledger: Ledger) -> tuple[list[Document], Mapping[str, bytes]]:
        """The documents that the step can use, and what it must know of them; those are counted when it has decided."""
        assert self.stage.sketched is not None
        step: CorpusStep = self._steps[self.stage.sketched]
        try:
            return documents, step.sketch(documents)
        except DataError:
            if self._on_error == "error":
                raise
        kept = []
        for document in documents:
            try:
                step.sketch([document])
                kept.append(document)
            except DataError as error:
                ledger.enter(document, error)
        return kept, step.sketch(kept)


def make_step(cls: type[Any], settings: Mapping[str, Any], seed: int) -> Any:
    """A step out of its name and settings."""
    return cls(cls.Config.model_validate({key: settings[key] for key in settings if key != "name"}), seed=seed)


@contextmanager
def _timed(seconds: dict[str, float], number: int) -> Iterator[None]:
    """Adds the seconds of a block to a step."""
    begin = time.perf_counter()
    yield
    seconds[str(number)] = seconds.get(str(number), 0.0) + time.perf_counter() - begin


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if len(held) == _CHUNK_DOCUMENTS or size >= _CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


# Deciding


def _decide(job: Job, number: int, parts: Sequence[Mapping[str, str]]) -> int:
    """Let a step decide about all parts; how many it decided about."""
    bench = job.decided(number)
    if len(bench.parts) < len(parts):
        step = make_step(step_classes(job.steps)[number], job.steps[number], job.seed)
        discard(job.reports(number))
        make_folder(job.reports(number))
        paths = [{name: Path(path) for name, path in sketches.items()} for sketches in parts]
        decisions = step.decide(paths, job.reports(number))
        assert len(decisions) == len(parts), f"{type(step).__name__} must decide about each part"
        for decision in decisions[len(bench.parts) :]:
            bench.commit({DECISION: json.dumps(decision).encode()}, {})
    return len(parts)


# Documents as lines


def _lines(documents: Iterable[Document]) -> bytes:
    return b"".join(map(document_line, documents))


def document_line(document: Document) -> bytes:
    """A document as a line of a JSON Lines file."""
    row = {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "licence": document.licence,
        "meta": dict(document.meta),
    }
    return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"


def _documents(path: Path) -> Iterator[Document]:
    with path.open("rb") as stream:
        for line in stream:
            yield Document(**json.loads(line))


def _by_split(documents: Iterable[Document]) -> dict[str, bytes]:
    found: dict[str, list[bytes]] = {}
    for document in documents:
        name = str(document.meta.get("split", "train"))
        if not _SPLIT_NAME.match(name):
            fix = "a split is named by letters, digits, dots, dashes and underscores"
            raise DataError("the split of the document cannot name a file", where=document.source, value=name, fix=fix)
        found.setdefault(name, []).append(document_line(document))
    return {f"{SPLIT}{name}": b"".join(lines) for name, lines in found.items()}
