"""Who loses documents when a corpus is cleaned: rates of loss by group, dialect, topic, source, language and length.

A group is told by words that occur, a dialect by its markers, so all of this says something about texts that *mention*
people, and nothing about who wrote them. Each part of the corpus is compared with all the rest of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trivium.artifacts.manifest import RECORD
from trivium.data.documents import Document
from trivium.data.hashes import hash64
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.data.safety.phrases import Phrases, read_lists
from trivium.data.safety.rates import adjusted, difference, p_value, wilson
from trivium.data.safety.redaction import redaction_report
from trivium.data.safety.topics import Topics
from trivium.errors import ArtifactError, ConfigError, DataError
from trivium.recipe import Source

LISTS = Path(__file__).with_name("audit_lists.yaml")
"""Words of groups and markers of dialects; a copy of it can be edited."""
LEVEL = 0.05
FOUR_FIFTHS = 0.8
"""Kept at less than this share of the rate of the rest: the rule of thumb of US employment law for adverse impact."""
_KINDS = ("group", "dialect", "language", "topic", "source", "length")
_MARKERS = 2
_MOST_SOURCES = 200
_LENGTHS = ((100, "under 100 words"), (500, "100 to 499 words"), (2000, "500 to 1,999 words"))


@dataclass(frozen=True)
class Row:
    """One part of the corpus against the rest.

    kind, name:   "group", "women".
    documents, lost, share: before; how many of them are not there after; their share, with its interval.
    rest:         the share lost of all other documents.
    difference:   share - rest, with its interval.
    kept_ratio:   share kept, divided by that of the rest.
    p, adjusted:  of the test of no difference; after correction for the number of comparisons.
    flag:         "more" or "less" is lost than of the rest, beyond chance; empty otherwise.
    four_fifths:  whether the kept share is below four fifths of the rest's.
    reasons:      what took the documents, of a pipeline: step and reason, the most frequent first.
    """

    kind: str
    name: str
    documents: int
    lost: int
    share: float
    low: float
    high: float
    rest: float
    difference: float
    difference_low: float
    difference_high: float
    kept_ratio: float
    p: float
    adjusted: float
    flag: str
    four_fifths: bool
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The comparison of a corpus before and after.

    few:  parts with too few documents to compare, by kind.
    notes: what a reader must know about this comparison.
    redactions: what the step `redact` did to the documents that are there after.
    """

    documents: int
    lost: int
    rows: Sequence[Row]
    few: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    redactions: Mapping[str, Any]
    reasons: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Corpora:
    """Sources before and after, and what is known of the way between: hash of the id -> step and reason."""

    before: Sequence[Source]
    after: Sequence[Source]
    reasons: Mapping[int, str]


def of_pipeline(folder: Path) -> Corpora:
    """The sources of a pipeline's output, the output, and its decisions. ArtifactError if it is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sources = [Source.model_validate(source) for source in record["config"]["pipeline"]["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            "this folder was not written by a pipeline",
            where=folder,
            fix="name the corpus before and after: trivium data audit BEFORE AFTER",
        ) from error
    reasons = {}
    for file in sorted(folder.glob("steps/*/decisions.jsonl")):
        for line in file.read_bytes().splitlines():
            row = json.loads(line)
            if row["outcome"] != "added":
                reasons[hash64(row["id"])] = f"{file.parent.name}: {row['reason']}"
    after = [Source(path=str(file)) for file in sorted(folder.glob("documents.*.jsonl"))]
    return Corpora(sources, after, reasons)


def two_corpora(before: str, after: str) -> Corpora:
    """Two sources; an artifact with documents stands for all its splits."""
    return Corpora([*_parts(before)], [*_parts(after)], {})


def _parts(path: str) -> Iterator[Source]:
    files = sorted(Path(path).expanduser().glob("documents.*.jsonl")) if Path(path).expanduser().is_dir() else []
    yield from (Source(path=str(file)) for file in files)
    if not files:
        yield Source(path=path)


def audit(
    corpora: Corpora,
    *,
    lists: Path | None = None,
    topics: int = 10,
    topic_field: str | None = None,
    least: int = 20,
    level: float = LEVEL,
    seed: int = 0,
) -> Audit:
    """Compare a corpus before and after cleaning.

    topics:      how many clusters; topic_field: the entry of `meta` that names the topic instead.
    least:       parts of fewer documents are not compared.
    level:       share of false flags among all flags that is accepted.
    Reads the corpus before twice (once with a topic field), the one after once; holds eight bytes for each
    document of it.
    """
    known, redactions = _kept(corpora.after)
    traits = _Traits(read_lists_by_kind(lists or LISTS), topic_field)
    if topic_field is None and not traits.has_topics and topics > 0:
        traits.clusters = Topics(_documents(corpora.before), count=topics, seed=seed)
    counts: dict[tuple[str, str], list[int]] = {}
    reasons: dict[tuple[str, str], Counter[str]] = {}
    total = lost = 0
    for document in _documents(corpora.before):
        name = hash64(document.id)
        gone = not _contains(known, name)
        why = corpora.reasons.get(name, "") if gone else ""
        total += 1
        lost += gone
        for trait in [("", ""), *traits.of(document)]:
            count = counts.setdefault(trait, [0, 0])
            count[0] += 1
            count[1] += gone
            if why:
                reasons.setdefault(trait, Counter())[why] += 1
    if lost == total and total:
        raise DataError(
            "no document of the corpus before is in the one after",
            value=f"{total} documents before, {len(known)} ids after",
            fix="documents are told by their id: give both corpora the same, or audit the folder of a pipeline",
        )
    rows = _rows(counts, reasons, total, lost, least=least, level=level)
    few = {
        kind: sorted(name for (one, name), count in counts.items() if one == kind and count[0] < least)
        for kind in sorted({kind for kind, _ in counts if kind})
    }
    notes = _notes(len(known), total, lost, rows)
    return Audit(
        total, lost, rows, {k: v for k, v in few.items() if v}, notes, redactions, dict(reasons.get(("", ""), {}))
    )


def read_lists_by_kind(path: Path) -> dict[str, dict[str, list[str]]]:
    """`groups`, `dialects` and `topics` of the file, each a list of words by name."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError("the lists cannot be read", where=path, value=str(error), fix=f"begin with {LISTS}") from error
    kinds = ("groups", "dialects", "topics")
    if not isinstance(content, dict) or not content or not set(content) <= set(kinds):
        found = list(content) if isinstance(content, dict) else content
        raise ConfigError("the lists stand under groups, dialects and topics", where=path, value=found)
    return {kind: read_lists(path, kind) if content.get(kind) else {} for kind in kinds}


class _Traits:
    """What parts of the corpus a document belongs to."""

    def __init__(self, lists: Mapping[str, Mapping[str, Sequence[str]]], topic_field: str | None) -> None:
        self._phrases = Phrases({f"{kind}\0{name}": words for kind in lists for name, words in lists[kind].items()})
        self.has_topics = bool(lists["topics"])
        self.topic_field = topic_field
        self.clusters: Topics | None = None
        self._sources: set[str] = set()

    def of(self, document: Document) -> Iterator[tuple[str, str]]:
        """(kind, name) of each."""
        found: dict[str, set[str]] = {}
        words = 0
        for label, phrase, _, _ in self._phrases.find(document.text):
            found.setdefault(label, set()).add(phrase)
        for label, phrases in found.items():
            kind, _, name = label.partition("\0")
            if kind != "dialects" or len(phrases) >= _MARKERS:
                yield kind.removesuffix("s"), name
        for kind in ("language", "dialect"):
            if isinstance(document.meta.get(kind), str) and not (
                kind == "dialect" and f"dialects\0{document.meta[kind]}" in found
            ):
                yield kind, str(document.meta[kind])
        yield from self._topic(document)
        yield "source", self._source(document)
        words = document.text.count(" ") + document.text.count("\n") + 1
        yield "length", next((name for limit, name in _LENGTHS if words < limit), "2,000 words or more")

    def _topic(self, document: Document) -> Iterator[tuple[str, str]]:
        if self.topic_field is not None:
            yield "topic", str(document.meta.get(self.topic_field, "not stated"))
        elif self.clusters is not None:
            yield "topic", self.clusters.of(document.text)

    def _source(self, document: Document) -> str:
        """The file of a row, the folder of a file; after 200 of them, the others."""
        place, _, row = document.source.rpartition(":")
        name = place if place and row.isdigit() else str(Path(document.source).parent)
        if name not in self._sources and len(self._sources) >= _MOST_SOURCES:
            return "others"
        self._sources.add(name)
        return name


def _rows(
    counts: Mapping[tuple[str, str], Sequence[int]],
    reasons: Mapping[tuple[str, str], Counter[str]],
    total: int,
    lost: int,
    *,
    least: int,
    level: float,
) -> list[Row]:
    """The parts that can be compared, those that lost most above the rest first."""
    parts = sorted(trait for trait, count in counts.items() if trait[0] and least <= count[0] < total)
    tests = [
        p_value(counts[trait][1], counts[trait][0], lost - counts[trait][1], total - counts[trait][0])
        for trait in parts
    ]
    found = []
    for trait, p, corrected in zip(parts, tests, adjusted(tests), strict=True):
        number, gone = counts[trait]
        others, others_gone = total - number, lost - gone
        gap, low, high = difference(gone, number, others_gone, others)
        kept, rest_kept = 1 - gone / number, 1 - others_gone / others
        ratio = kept / rest_kept if rest_kept else float("inf")
        flag = ("more" if gap > 0 else "less") if corrected < level and gap else ""
        found.append(
            Row(
                *trait, number, gone, gone / number, *wilson(gone, number), others_gone / others, gap, low, high,
                ratio, p, corrected, flag, ratio < FOUR_FIFTHS, dict(reasons.get(trait, Counter[str]()).most_common(3)),
            )
        )  # fmt: skip
    return sorted(found, key=lambda row: (_KINDS.index(row.kind), -row.difference, row.name))


def _notes(after: int, total: int, lost: int, rows: Sequence[Row]) -> list[str]:
    notes = [
        "Words tell what a document mentions, not who wrote it; quotations and other senses of a word count too.",
        "Parts overlap, and length, topic and source go with groups: a flag says where to look, not what the cause is.",
    ]
    if total - lost < after:
        notes.append(
            f"{after - (total - lost):,} documents after have an id that no document before has: made, or cut, since."
        )
    if not any(row.flag for row in rows):
        notes.append(
            "No part lost more or less than the rest beyond chance; small differences in small parts cannot be seen."
        )
    return notes


# Documents


def _documents(sources: Sequence[Source]) -> Iterator[Document]:
    for source in sources:
        yield from read_documents(source, Intake("quarantine"))


def _kept(sources: Sequence[Source]) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """(hashes of the ids after and of what they were made from, sorted; what was redacted)."""
    names: list[np.ndarray[Any, Any]] = []
    block: list[int] = []

    def noted() -> Iterable[Document]:
        for document in _documents(sources):
            block.append(hash64(document.id))
            if isinstance(document.meta.get("parent"), str):
                block.append(hash64(document.meta["parent"]))
            if len(block) > 1 << 16:
                names.append(np.array(block, dtype=np.uint64))
                block.clear()
            yield document

    redactions = redaction_report(noted())
    names.append(np.array(block, dtype=np.uint64))
    return np.unique(np.concatenate(names)), redactions


def _contains(known: np.ndarray[Any, Any], name: int) -> bool:
    at = int(np.searchsorted(known, np.uint64(name)))
    return at < len(known) and int(known[at]) == name


# Text


def as_text(result: Audit) -> str:
    """A table for each kind."""
    share = result.lost / max(result.documents, 1)
    lines = [f"{result.documents:,} documents before, {result.lost:,} of them lost ({share:.1%})"]
    for kind in dict.fromkeys(row.kind for row in result.rows):
        table: list[tuple[str, ...]] = [
            ("", "documents", "lost", "share lost", "95 %", "rest", "difference", "95 %", "")
        ]
        table += [_cells(row) for row in result.rows if row.kind == kind]
        widths = [max(len(line[at]) for line in table) for at in range(9)]
        lines += ["", f"by {kind}"]
        lines += [
            "  ".join(
                cell.ljust(width) if at in (0, 8) else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        if kind in result.few:
            lines.append(
                f"too few documents to compare: {', '.join(result.few[kind][:12])}"
                + (" ..." if len(result.few[kind]) > 12 else "")
            )
    if result.redactions.get("counts"):
        lines += ["", "personal data replaced in the documents after"]
        for name, number in result.redactions["counts"].items():
            lines.append(f"{name}  {number:,}  {'  '.join(result.redactions['shapes'].get(name, ())[:3])}")
    return "\n".join([*lines, "", *result.notes])


def _cells(row: Row) -> tuple[str, ...]:
    reason = next(iter(row.reasons), "")
    words = {"more": "MORE", "less": "less", "": ""}[row.flag] + (" (four fifths)" if row.four_fifths else "")
    return (
        row.name[:48],
        f"{row.documents:,}",
        f"{row.lost:,}",
        f"{row.share:.1%}",
        f"{row.low:.1%}-{row.high:.1%}",
        f"{row.rest:.1%}",
        f"{row.difference:+.1%}",
        f"{row.difference_low:+.1%} {row.difference_high:+.1%}",
        f"{words}  {reason}".strip() if row.flag else words,
    )
