"""From sources to clean documents: cleaned, without duplicates, split so that nothing held out is ever trained on.

documents.train.jsonl, documents.validation.jsonl   {"id", "text", "source", "licence", "meta"} a line
duplicates.jsonl                                    what was removed, what it is like, and how much
quarantine.jsonl                                    rows that could not be read (on_error: quarantine)
report.json                                         the account: input = kept + dropped + quarantined
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.artifacts.manifest import verify
from trivium.artifacts.writer import write_artifact, write_file, write_plain
from trivium.data.cleaning import clean
from trivium.data.dedup import PLACES, Signer, clusters, similarity
from trivium.data.documents import Document
from trivium.data.intake import Intake, OnError
from trivium.data.reading import PREPARED_TRAIN, fingerprint, read_documents, source_parent
from trivium.data.workbench import Part, Workbench, code_fingerprint, workbench
from trivium.errors import DataError
from trivium.recipe import Source

TRAIN = PREPARED_TRAIN
VALIDATION = "documents.validation.jsonl"
REPORT = "report.json"

_PART_BYTES = 8 << 20
_HASH_BYTES = 16

Progress = Callable[[str, int], None]
"""Called with the name of a stage and how many documents have passed it."""


@dataclass(frozen=True)
class PreparedDocuments:
    """The folder that was written, its two files (no `validation` if nothing is held out) and the account."""

    folder: Path
    train: Path
    validation: Path | None
    report: Mapping[str, Any]


def prepare_documents(
    sources: Sequence[Source] | Source,
    output: Path,
    *,
    validation_fraction: float = 0.05,
    seed: int = 0,
    least_characters: int = 1,
    on_error: OnError = "error",
    on_progress: Progress | None = None,
) -> PreparedDocuments:
    """Write the artifact `output` (kind "documents"); what is there already from the same sources is left as it is.

    Groups (a module, a book: `Document.group`) are held out as a whole, each with probability `validation_fraction`
    and decided by its name and the seed alone. Of duplicates one stays; where one of them is held out, none
    stays in the training data. Killed and started again, it goes on where it was.

    Takes about 1 kB of memory a document beyond the part that is being read. Raises DataError.
    """
    sources = [sources] if isinstance(sources, Source) else list(sources)
    settings = {
        "sources": [source.model_dump() for source in sources],
        "validation_fraction": validation_fraction,
        "least_characters": least_characters,
        "on_error": on_error,
    }
    found = [fingerprint(source) for source in sources]
    key = hashlib.sha256(json.dumps([code_fingerprint(), settings, seed, found]).encode()).hexdigest()
    progress = on_progress or (lambda stage, done: None)
    with workbench(output, key=key) as bench:
        if not _is_done(output, key):
            intake = Intake(on_error)
            read = _read(sources, intake, bench, least_characters, progress)
            decided = _decide(read, validation_fraction, seed, progress)
            report = {"key": key, **_report(read, decided, intake)}
            parents = [source_parent(source, "documents") for source in sources]
            with write_artifact(
                output, kind="documents", parents=parents, config=settings, seed=seed, replace=True
            ) as folder:
                _write(folder, read, decided, intake, report, progress)
    verify(output)
    report = json.loads((output / REPORT).read_bytes())
    held_out = output / VALIDATION
    return PreparedDocuments(output, output / TRAIN, held_out if held_out.exists() else None, report)


def _is_done(output: Path, key: str) -> bool:
    try:
        return bool(json.loads((output / REPORT).read_bytes())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


# Reading and cleaning, in parts that survive


@dataclass(frozen=True)
class _Read:
    """Clean documents in parts, and what is needed to compare them."""

    parts: Sequence[Part]
    signatures: NDArray[np.uint32]
    exact: list[bytes]
    groups: list[str]
    dropped: Counter[str]

    def lines(self) -> Iterator[bytes]:
        """The documents as JSON lines."""
        for part in self.parts:
            with part.files["jsonl"].open("rb") as stream:
                yield from stream


def _read(
    sources: Sequence[Source], intake: Intake, bench: Workbench, least_characters: int, progress: Progress
) -> _Read:
    documents = (document for source in sources for document in read_documents(source, intake))
    seen = sum(part.facts["input"] for part in bench.parts)
    for _ in islice(documents, seen):  # read again, for the account of what cannot be read, but not cleaned again
        pass
    signer = Signer()
    while files := _part(documents, signer, least_characters):
        facts = files.pop("facts")
        bench.commit(files, facts)
        seen += facts["input"]
        progress("cleaned", seen)
    signatures = [np.fromfile(part.files["signatures"], dtype="<u4").reshape(-1, PLACES) for part in bench.parts]
    exact = b"".join(part.files["exact"].read_bytes() for part in bench.parts)
    return _Read(
        parts=bench.parts,
        signatures=np.concatenate(signatures) if signatures else np.zeros((0, PLACES), dtype=np.uint32),
        exact=[exact[at : at + _HASH_BYTES] for at in range(0, len(exact), _HASH_BYTES)],
        groups=[group for part in bench.parts for group in json.loads(part.files["groups"].read_bytes())],
        dropped=sum((Counter(part.facts["dropped"]) for part in bench.parts), Counter[str]()),
    )


def _part(documents: Iterator[Document], signer: Signer, least_characters: int) -> dict[str, Any]:
    """The files of the next part; empty at the end."""
    lines: list[bytes] = []
    signatures: list[NDArray[np.uint32]] = []
    exact: list[bytes] = []
    groups: list[str] = []
    dropped: Counter[str] = Counter()
    count = size = 0
    for document in documents:
        count += 1
        size += len(document.text)
        text = clean(document.text)
        if len(text) < max(1, least_characters):
            dropped["too short" if text else "empty text"] += 1
        else:
            lines.append(_line(document, text))
            signatures.append(signer.signature(text))
            exact.append(hashlib.sha256(text.encode()).digest()[:_HASH_BYTES])
            groups.append(document.group)
        if size >= _PART_BYTES:
            break
    if not count:
        return {}
    return {
        "jsonl": b"".join(lines),
        "signatures": b"".join(signature.astype("<u4").tobytes() for signature in signatures),
        "exact": b"".join(exact),
        "groups": json.dumps(groups).encode(),
        "facts": {"input": count, "dropped": dict(dropped)},
    }


def _line(document: Document, text: str) -> bytes:
    row = {
        "id": document.id,
        "text": text,
        "source": document.source,
        "licence": document.licence,
        "meta": dict(document.meta),
    }
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


# What stays


@dataclass(frozen=True)
class _Decided:
    """For each document the split it stays in, or None and what it is like."""

    splits: list[str | None]
    held_out: NDArray[np.bool_]
    like: NDArray[np.int64]
    reasons: list[str | None]


def _decide(read: _Read, fraction: float, seed: int, progress: Progress) -> _Decided:
    """Of each cluster the first document stays, or the first held-out one if there is any."""
    progress("comparing", 0)
    cluster = clusters(read.signatures, read.exact)
    held_out = np.array([is_held_out(group, fraction=fraction, seed=seed) for group in read.groups], dtype=np.bool_)
    keeper = np.arange(len(cluster), dtype=np.int64)
    for number in np.flatnonzero(held_out)[::-1].tolist():
        keeper[cluster[number]] = number  # the first held-out one is written last
    like = keeper[cluster]
    splits: list[str | None] = []
    reasons: list[str | None] = []
    for number, kept in enumerate(like.tolist()):
        stays = number == kept
        same = "exact" if read.exact[number] == read.exact[kept] else "near"
        leak = " of a held-out document" if held_out[kept] and not held_out[number] else ""
        splits.append(("validation" if held_out[number] else "train") if stays else None)
        reasons.append(None if stays else f"{same} duplicate{leak}")
    progress("comparing", len(cluster))
    for split in ("train", "validation"):
        if split not in splits and (split == "train" or fraction > 0):
            raise DataError(
                f"no document is left for {split}",
                value=f"{len(set(read.groups))} groups, validation_fraction {fraction}",
                fix="give more documents, or change validation_fraction or the seed",
            )
    return _Decided(splits, held_out, like, reasons)


def is_held_out(group: str, *, fraction: float, seed: int) -> bool:
    """Whether a group belongs to the validation data: a function of its name and the seed alone."""
    digest = hashlib.sha256(f"held out\0{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


# Writing


def _report(read: _Read, decided: _Decided, intake: Intake) -> dict[str, Any]:
    kept = Counter(split for split in decided.splits if split is not None)
    dropped = read.dropped + Counter(reason for reason in decided.reasons if reason is not None)
    account = intake.summary()
    total = sum(part.facts["input"] for part in read.parts) + sum(account["quarantined"].values())
    assert total == kept.total() + dropped.total() + sum(account["quarantined"].values()), "the account must close"
    groups = Counter("validation" if held_out else "train" for held_out in _by_group(read, decided).values())
    return {"input": total, "kept": dict(kept), "dropped": dict(dropped), **account, "groups": dict(groups)}


def _by_group(read: _Read, decided: _Decided) -> dict[str, bool]:
    return dict(zip(read.groups, decided.held_out.tolist(), strict=True))


def _write(
    folder: Path, read: _Read, decided: _Decided, intake: Intake, report: dict[str, Any], progress: Progress
) -> None:
    sizes = {}
    for split, name in (("train", TRAIN), ("validation", VALIDATION)):
        if split in decided.splits:
            chosen = (line for line, given in zip(read.lines(), decided.splits, strict=True) if given == split)
            write_plain(folder / name, _blocks(chosen))
            sizes[split] = (folder / name).stat().st_size
            progress("written", report["kept"][split])
    write_plain(folder / "duplicates.jsonl", _blocks(_duplicates(read, decided)))
    if intake.examples:
        rows = (json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n" for row in intake.examples)
        write_plain(folder / "quarantine.jsonl", _blocks(rows))
    write_file(folder / REPORT, json.dumps({**report, "bytes": sizes}, indent=1, ensure_ascii=False) + "\n")


def _duplicates(read: _Read, decided: _Decided) -> Iterator[bytes]:
    """One line for each removed document: its id, the one that stays, and their estimated similarity."""
    ids = [json.loads(line)["id"] for line in read.lines()]
    for number, (kept, reason) in enumerate(zip(decided.like.tolist(), decided.reasons, strict=True)):
        if reason is not None:
            alike = float(similarity(read.signatures[number], read.signatures[kept]))
            row = {"removed": ids[number], "kept": ids[kept], "reason": reason, "similarity": round(alike, 3)}
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _blocks(lines: Iterable[bytes], size: int = 1 << 20) -> Iterator[bytes]:
    """The same bytes in larger pieces."""
    held: list[bytes] = []
    length = 0
    for line in lines:
        held.append(line)
        length += len(line)
        if length >= size:
            yield b"".join(held)
            held, length = [], 0
    yield b"".join(held)
