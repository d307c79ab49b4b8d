"""Which artifacts hold a document, or were made from one that does; and what must be made again without it.

A corpus (kind "documents") is searched for the document itself. Everything else is found by its parents: tokens of the
corpus hold it; a model that was trained on it has seen it if the run went through the whole corpus at least once, and
may have seen it otherwise: what is recorded is the corpus, not each sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trivium.artifacts.manifest import find_artifacts, read_manifest
from trivium.artifacts.record import Record, read_record
from trivium.errors import ArtifactError, DataError

_BLOCK = 1 << 24
_DEPTH = 6
_DATA = (".jsonl", ".jsonl.gz", ".parquet", ".csv", ".txt")

Knowledge = Literal["holds it", "has seen it", "may have seen it", "was measured on it", "was made from what holds it"]
_STRENGTH: tuple[Knowledge, ...] = (
    "holds it",
    "has seen it",
    "may have seen it",
    "was made from what holds it",
    "was measured on it",
)


@dataclass(frozen=True)
class Touched:
    """An artifact that a document went into.

    because: what it holds, or which parent of it does.
    again:   the command, or what else, makes it again.
    """

    path: str
    kind: str
    knowledge: Knowledge
    because: str
    again: str


@dataclass
class Trace:
    """What became of a document: the artifacts in an order in which they can be made again; where it was left out.

    sources: where it was read.  hashes: SHA-256 of its text as it was read.
    """

    document: str
    hashes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def trace_document(document: str, folders: Sequence[Path]) -> Trace:
    """Everything below `folders` that the document went into.

    document: its id, or the SHA-256 of its text as it was read. The same text under other ids is found too.
    Raises DataError if no corpus there knows it.
    """
    artifacts = {path: record for folder in folders for path in _artifacts(folder) if (record := read_record(path))}
    trace = Trace(document)
    words = {document}
    corpora = [path for path, record in artifacts.items() if record.kind == "documents"]
    for path in corpora:
        for row in (row for file in _files(path) for row in rows_with(file, document, keys=("id", "sha256"))):
            words.add(row["meta"].get("sha256", document))
        for row in _decisions(path, document):
            trace.left_out.append(f"{path}: {row['outcome']}: {row['reason']} {row['evidence']}".strip())
            if row["outcome"] == "merged":
                words.add(row["into"])
    trace.hashes = sorted(word for word in words if len(word) == 64 and set(word) <= set("0123456789abcdef"))
    tainted = _Tainted(trace)
    for path in corpora:
        tainted.search(path, artifacts[path], sorted(words))
    if not trace.touched and not trace.left_out:
        raise DataError(
            "no corpus here knows this document",
            where=", ".join(map(str, folders)),
            value=document,
            fix="name the folders with the corpora; ids near this one: trivium data why CORPUS ID",
        )
    tainted.spread(artifacts)
    return trace


def render_trace(trace: Trace) -> str:
    """For people: what the document went into."""
    rows = [f"{seen.kind}  {seen.path}  {seen.knowledge}: {seen.because}" for seen in trace.touched]
    rows += [f"left out  {line}" for line in trace.left_out]
    return "\n".join([f"document {trace.document}", *(f"  {row}" for row in rows)])


def render_takedown(trace: Trace) -> str:
    """For people: what must be done, in order, so that nothing is left of it."""
    rows = [f"remove it from the source: {source}" for source in trace.sources]
    for seen in trace.touched:
        measured = seen.knowledge == "was measured on it"
        rows.append(f"{'measure' if measured else 'make'} again: {seen.kind} {seen.path} ({seen.again})")
    lines = [f"  {number}. {row}" for number, row in enumerate(rows, 1)]
    return "\n".join(
        [f"to take down {trace.document}:", *lines] if rows else ["nothing holds it; nothing is to be done"]
    )


def rows_with(file: Path, word: str, *, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file whose `id`, or `sha256` in `meta`, is `word`; other lines are not parsed."""
    wanted = json.dumps(word, ensure_ascii=False).encode("utf-8", "backslashreplace")
    for line in _lines_with(file, wanted):
        row = json.loads(line)
        known = {"id": row["id"], "sha256": row.get("meta", {}).get("sha256")}
        if any(known[key] == word for key in keys):
            yield row


def _lines_with(file: Path, wanted: bytes) -> Iterator[bytes]:
    """Lines that hold these bytes, searched in large blocks."""
    rest = b""
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            data = rest + block
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            at = data.find(wanted, 0, end)
            while at >= 0:
                begin, stop = data.rfind(b"\n", 0, at) + 1, data.index(b"\n", at) + 1
                yield data[begin:stop]
                at = data.find(wanted, stop, end)


def _artifacts(folder: Path) -> Iterator[Path]:
    """Artifacts below a folder, those in the cache of runs too."""
    if not folder.is_dir():
        raise ArtifactError("there is no such folder", where=folder, fix="check the path")
    yield from find_artifacts(folder, depth=_DEPTH)
    for cache in sorted({*folder.glob(".cache"), *folder.glob("*/.cache")}):
        yield from find_artifacts(cache)


def _files(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("documents.*.jsonl"))


def _decisions(corpus: Path, document: str) -> Iterator[dict[str, Any]]:
    for file in sorted(corpus.glob("steps/*/decisions.jsonl")):
        yield from (row for row in rows_with(file, document, keys=("id",)) if row["outcome"] != "added")


class _Tainted:
    """Hashes of what holds the document or was made from it, with what is known of each."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._known: dict[str, tuple[Knowledge, str]] = {}
        self._done: set[Path] = set()

    def search(self, corpus: Path, record: Record, words: Sequence[str]) -> None:
        """Look for the document in a corpus."""
        manifest = read_manifest(corpus)
        held = []
        for file in _files(corpus):
            rows = [row for word in words for row in rows_with(file, word, keys=("id", "sha256"))]
            if rows:
                held.append(file.name)
                self._known[manifest.files[file.name].sha256] = ("holds it", f"{corpus}/{file.name}")
                self._trace.sources = list(dict.fromkeys([*self._trace.sources, *(row["source"] for row in rows)]))
        if held:
            self._add(corpus, record, "holds it", ", ".join(held))

    def spread(self, artifacts: Mapping[Path, Record]) -> None:
        """Add what was made from what is known; a corpus only if the document was found in it."""
        order = _parents_first(artifacts)
        for path in order:
            record = artifacts[path]
            if path not in self._done and record.kind != "documents" and (found := self._of(path, record)) is not None:
                self._add(path, record, *found)
        self._trace.touched.sort(key=lambda seen: order.index(Path(seen.path)))

    def _of(self, path: Path, record: Record) -> tuple[Knowledge, str] | None:
        """The strongest that follows from the parents."""
        found = []
        for parent in record.parents:
            if parent.hash in self._known:
                before, name = self._known[parent.hash]
                known, why = _follows(path, record.kind, parent.role, parent.path, before)
                found.append((known, f"{parent.role} {name}{why}"))
        return min(found, key=lambda item: _STRENGTH.index(item[0])) if found else None

    def _add(self, path: Path, record: Record, knowledge: Knowledge, because: str) -> None:
        self._done.add(path)
        self._trace.touched.append(Touched(str(path), record.kind, knowledge, because, _again(path, record)))
        if knowledge == "was measured on it":  # a report about a model; the model itself has not changed
            return
        files = record.kind != "documents"  # of a corpus only the files that hold it, and these are known
        for each in _hashes(path, files=files):
            self._known.setdefault(each, (knowledge, str(path)))


def _hashes(path: Path, *, files: bool = True) -> set[str]:
    """By what an artifact can be named as a parent: its content, that of the folders in it, and files of data."""
    manifest = read_manifest(path)
    found = {manifest.content}
    if files:
        found |= {entry.sha256 for name, entry in manifest.files.items() if entry.size and name.endswith(_DATA)}
        folders = {f"{name.split('/')[0]}/" for name in manifest.files if "/" in name}
        found |= {manifest.below(prefix).content for prefix in folders}
    return found


def _parents_first(artifacts: Mapping[Path, Record]) -> list[Path]:
    """The artifacts in an order in which they could have been made."""
    owners: dict[str, list[Path]] = {}
    for path in artifacts:
        for each in _hashes(path):
            owners.setdefault(each, []).append(path)
    order: list[Path] = []
    seen: set[Path] = set()

    def visit(path: Path) -> None:
        if path not in seen:
            seen.add(path)
            for parent in artifacts[path].parents:
                for owner in owners.get(parent.hash, ()):
                    visit(owner)
            order.append(path)

    for path in artifacts:
        visit(path)
    return order


def _follows(path: Path, kind: str, role: str, source: str, before: Knowledge) -> tuple[Knowledge, str]:
    """What is known of an artifact from one parent, and the reason."""
    if role == "validation data":
        return "was measured on it", ""
    if kind == "tokens" and role != "tokenizer":
        return before, ""
    if kind in ("model", "checkpoint") and role == "training data" and before == "holds it":
        epochs = _epochs(path, source)
        if epochs is None:
            return "may have seen it", "; how much of it was drawn is not recorded"
        if epochs >= 1:
            return "has seen it", f"; {epochs:.2f} passes over it"
        return "may have seen it", f"; {epochs:.2f} passes over it, and the samples are not recorded"
    if kind in ("model", "checkpoint") and role == "base":
        return before, ""
    return "was made from what holds it", ""


def _epochs(path: Path, source: str) -> float | None:
    """Passes of a run over a source of its training data; of a checkpoint those of the whole run."""
    for folder in list(path.resolve().parents)[:3]:
        try:
            sources = json.loads((folder / "data.json").read_bytes())["train"]["sources"]
            named = [each for each in sources if Path(source).name in str(each["source"])]
            return min(float(each["epochs"]) for each in named or sources)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _again(path: Path, record: Record) -> str:
    """How an artifact is made again."""
    config = record.config or {}
    if record.kind == "documents" and "pipeline" in config:
        return f"trivium data run, the pipeline {config['pipeline']['name']!r}"
    for folder in list(path.parents)[:2]:
        if (folder / "config.yaml").is_file():
            return f"trivium train {folder / 'config.yaml'}"
    if ".cache" in path.parts:
        return "delete it; training makes it again"
    return "the command that made it"
