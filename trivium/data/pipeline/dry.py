"""What each step would remove, and why, seen on the first documents; nothing is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trivium.data.documents import Document
from trivium.data.intake import Intake
from trivium.data.pipeline.account import Ledger
from trivium.data.pipeline.plan import Pipeline, resolve_pipeline
from trivium.data.pipeline.work import make_step
from trivium.data.reading import read_documents
from trivium.data.step import CorpusStep, Dropped, Merged, Result, Step
from trivium.errors import DataError

_EXCERPTS = 3
_WIDTH = 160


def dry_run(
    pipeline: str | Path | Mapping[str, Any] | Pipeline, overrides: Sequence[str] = (), *, documents: int
) -> dict[str, Any]:
    """The account of the first `documents` documents, and for each step and reason a few of those it removes.

    Steps that decide about the whole corpus see only these documents.
    """
    resolved = resolve_pipeline(pipeline, overrides)
    intake = Intake(resolved.pipeline.on_error)
    held = list(
        islice(chain.from_iterable(read_documents(source, intake) for source in resolved.pipeline.sources), documents)
    )
    read = {"name": "read", "in": len(held) + intake.quarantined.total(), "added": 0, "kept": len(held)}
    read |= {"dropped": {}, "merged": {}, "quarantined": dict(intake.quarantined)}
    rejected = [{"id": row.where, "reason": row.message.partition("\n")[0], "evidence": ""} for row in intake.examples]
    steps: list[dict[str, Any]] = [{**read, "examples": rejected[:_EXCERPTS]}]
    for chosen in resolved.steps:
        step, ledger = make_step(chosen.cls, chosen.dump(), resolved.pipeline.seed), Ledger()
        examples: dict[str, list[dict[str, Any]]] = {}
        kept: list[Document] = []
        for document, result in zip(held, _results(step, held, resolved.pipeline.on_error), strict=True):
            kept += ledger.enter(document, result)
            _keep_example(examples, document, result)
        held = kept
        told = [example for found in examples.values() for example in found]
        steps.append({"name": chosen.name, **ledger.account.to_json(), "examples": told})
    return {"documents": documents, "steps": steps}


def shown(found: Mapping[str, Any]) -> str:
    """For people."""
    return "\n".join(line for step in found["steps"] for line in _step_lines(step))


def _step_lines(step: Mapping[str, Any]) -> Iterator[str]:
    yield f"{step['name']}: {step['in']:,} in, {step['kept']:,} kept" + (
        f", {step['added']:,} added" if step["added"] else ""
    )
    for outcome in ("dropped", "merged", "quarantined"):
        for reason, count in sorted(step[outcome].items(), key=lambda item: (-item[1], item[0])):
            yield f"  {count:>6,} {outcome}: {reason}"
            for example in step["examples"]:
                if example["reason"] == reason:
                    yield f"         {example['id']}" + (f": {example['evidence']}" if example["evidence"] else "")
                    if example.get("text"):
                        yield f"           | {example['text']}"


def _results(step: Step | CorpusStep, documents: Sequence[Document], on_error: str) -> Sequence[Result]:
    if not isinstance(step, CorpusStep):
        return [_tried(lambda one: step.apply_all(one)[0], document, on_error) for document in documents]
    try:
        return _decided(step, documents)
    except DataError:
        if on_error == "error":
            raise
    tried = [_tried(step.sketch, document, on_error) for document in documents]
    usable = [one for one, found in zip(documents, tried, strict=True) if not isinstance(found, DataError)]
    decided = iter(_decided(step, usable))
    return [found if isinstance(found, DataError) else next(decided) for found in tried]


def _decided(step: CorpusStep, documents: Sequence[Document]) -> Sequence[Result]:
    with tempfile.TemporaryDirectory() as folder:
        sketches = {}
        for name, data in step.sketch(documents).items():
            sketches[name] = Path(folder) / f"sketch.{name}"
            sketches[name].write_bytes(data)
        reports = Path(folder) / "reports"
        reports.mkdir()
        return step.apply_all(documents, step.decide([sketches], reports)[0])


def _tried(use: Callable[[Sequence[Document]], Any], document: Document, on_error: str) -> Any:
    try:
        return use([document])
    except DataError as error:
        if on_error == "error":
            raise
        return error


def _keep_example(examples: dict[str, list[dict[str, Any]]], document: Document, result: Any) -> None:
    if isinstance(result, Dropped):
        reason, evidence = result.reason, result.evidence
    elif isinstance(result, Merged):
        reason, evidence = result.reason, f"like {result.into} ({result.similarity:.2f})"
    elif isinstance(result, DataError):
        reason, evidence = result.problem, ""
    else:
        return
    found = examples.setdefault(reason, [])
    if len(found) < _EXCERPTS:
        text = " ".join(document.text.split())
        excerpt = text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"
        found.append({"id": document.id, "reason": reason, "evidence": evidence, "text": excerpt})
