"""One pass over sources, and everything that a first look shows."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.data.cleaning import clean
from trivium.data.documents import Document
from trivium.data.filters.words import lines_of
from trivium.data.instructions import Completion
from trivium.data.intake import Intake, Row
from trivium.data.look.measures import Draw, Frequent, Lengths, Repeated, key_of
from trivium.data.look.pipelines import Flow, read_flow, split_files
from trivium.data.messages import Conversation
from trivium.data.plain import unreadable
from trivium.data.reading import documents_in, input_files
from trivium.data.shapes import SHAPES, Item, Judged, Labelled, Plain, Ranked, read_item, shape_of, texts_of
from trivium.data.step import Dropped, Merged, Step
from trivium.errors import DataError
from trivium.recipe import Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

_SHOWN_CHARACTERS = 4000
_LONGEST_LINE = 200
_TOKENS_OF = 20_000
_LANGUAGES_OF = 2_000
_NEAR_AMONG = 5_000
_EXAMPLES = 3


@dataclass(frozen=True)
class Entry:
    """One document or row."""

    id: str
    where: str
    text: str
    shape: str
    item: Item | None
    licence: str | None
    meta: Mapping[str, Any]


@dataclass
class Tried:
    """What one step would do, alone: how many it leaves out, by reason, with examples; how many it changes."""

    name: str
    seen: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    """For each reason a few of (id, evidence, beginning of the text)."""


@dataclass
class Findings:
    """Everything a first look found."""

    sources: list[str]
    entries: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    problem_examples: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    characters: Lengths = field(default_factory=Lengths)
    words: Lengths = field(default_factory=Lengths)
    lines: Lengths = field(default_factory=Lengths)
    tokens: Lengths | None = None
    languages: Counter[str] | None = None
    repeated: Repeated = field(default_factory=Repeated)
    near_share: float | None = None
    near_among: int = 0
    near_pairs: list[tuple[str, str, str, str]] = field(default_factory=list)
    frequent_lines: Frequent = field(default_factory=Frequent)
    odd: Counter[str] = field(default_factory=Counter)
    odd_examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    from_where: dict[str, Frequent] = field(default_factory=dict)
    labels: Frequent = field(default_factory=lambda: Frequent(1000))
    facts: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    samples: list[Entry] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    flow: Flow | None = None


def look(
    sources: Sequence[Source],
    *,
    tokenizer: Tokenizer | None = None,
    samples: int = 8,
    steps: Sequence[tuple[str, Step]] = (),
) -> Findings:
    """Read the sources once. Memory stays the same however long they are; large ones are looked at in samples.

    steps: (name, step) of the steps of a pipeline to try on every entry, each alone.
    """
    found = Findings([source.path for source in sources])
    found.tried = [Tried(name) for name, _ in steps]
    watch = _Watch(found, tokenizer, samples)
    intake = Intake("quarantine")
    for source in sources:
        splits = split_files(Path(source.path))
        if splits:
            found.flow = found.flow or read_flow(Path(source.path))
        for part in [source.model_copy(update={"path": str(path)}) for path in splits] or [source]:
            for entry in _entries(part, intake):
                watch.add(entry)
                for tried, (_, step) in zip(found.tried, steps, strict=True):
                    _try(tried, step, entry)
    found.problems, found.skipped = intake.quarantined, intake.skipped
    found.problem_examples = [problem.message for problem in intake.examples[:5]]
    watch.finish()
    return found


def _entries(source: Source, intake: Intake) -> Iterator[Entry]:
    try:
        for file, reader in input_files(source, intake):
            module = importlib.import_module(f"trivium.data.sources.{reader}")
            try:
                if hasattr(module, "rows") and not hasattr(module, "documents"):
                    yield from (_of_row(row, source, intake) for row in module.rows(file, intake))
                else:
                    yield from map(_of_document, documents_in(file, reader, source, intake))
            except DataError as error:
                intake.reject(error)
    except OSError as error:
        raise unreadable(Path(str(error.filename)), error) from error


def _of_document(document: Document) -> Entry:
    return Entry(document.id, document.source, document.text, "text", None, document.licence, document.meta)


def _of_row(row: Row, source: Source, intake: Intake) -> Entry:
    """A row in its shape; one that cannot be read counts as a problem and is looked at as the text it holds."""
    values = row.values
    name = str(values.get("id") or row.name)
    meta = values["meta"] if isinstance(values.get("meta"), Mapping) else values
    licence = values.get("licence", values.get("license"))
    stated = licence if isinstance(licence, str) else None
    if isinstance(values.get(source.text_field), str) and (source.text_field != "text" or not values["text"].strip()):
        return Entry(name, row.where, values[source.text_field], "text", None, stated, meta)
    try:
        shape = shape_of(row)
        if SHAPES[shape].read is not None:
            _, item, _ = read_item(row, shape)
            text = item.text if isinstance(item, Plain) else "\n\n".join(texts_of(item))
            return Entry(name, row.where, text, shape, item, stated, meta)
    except DataError as error:
        intake.reject(error)
        shape = "not readable"
    texts = [value for value in values.values() if isinstance(value, str)]
    return Entry(name, row.where, "\n\n".join(texts), shape, None, stated, meta)


class _Watch:
    """All measures of one pass."""

    def __init__(self, found: Findings, tokenizer: Tokenizer | None, samples: int) -> None:
        self._found = found
        self._tokenizer = tokenizer
        self._samples: Draw[Entry] = Draw(samples)
        self._tokens: Draw[int] = Draw(_TOKENS_OF)
        self._languages: Draw[str] = Draw(_LANGUAGES_OF)
        self._near: Draw[tuple[Any, str, str]] = Draw(_NEAR_AMONG)
        self._signer: Any = None

    def add(self, entry: Entry) -> None:
        """Look at one entry."""
        found, text = self._found, entry.text
        found.entries += 1
        found.shapes[entry.shape] += 1
        found.characters.add(len(text))
        found.words.add(len(text.split()))
        lines = lines_of(text)
        found.lines.add(len(lines))
        found.frequent_lines.add(
            {line.strip() for line in lines if len(line) <= _LONGEST_LINE and any(map(str.isalpha, line))}
        )
        if text.strip():
            found.repeated.add(key_of(clean(text)), f"{entry.id}: {' '.join(text[:100].split())}")
        self._odd(entry)
        self._origin(entry)
        self._content(entry)
        key = key_of(f"{entry.where} {entry.id}", "sample")
        if self._samples.wants(key) and text.strip():
            shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS]
            self._samples.add(key, Entry(entry.id, entry.where, shown, entry.shape, entry.item, entry.licence, {}))
        self._sampled(entry, key)

    def _sampled(self, entry: Entry, key: int) -> None:
        """The measures that take longer, of a sample."""
        from trivium.data.filters.language import guess

        text = entry.text
        if self._tokenizer is not None and self._tokens.wants(key):
            self._tokens.add(key, len(self._tokenizer.encode(text)))
        if self._languages.wants(key):
            self._languages.add(key, guess(text[:500])[0])
        if self._near.wants(key):
            if self._signer is None:
                from trivium.data.dedup import Signer

                self._signer = Signer()
            self._near.add(key, (self._signer.signature(text[: 10 * _SHOWN_CHARACTERS]), entry.id, text[:300]))

    def finish(self) -> None:
        """What can only be said at the end."""
        found = self._found
        found.samples = self._samples.drawn()
        found.languages = Counter(self._languages.drawn())
        if self._tokenizer is not None:
            found.tokens = Lengths()
            for number in self._tokens.drawn():
                found.tokens.add(number)
        self._near_duplicates()

    def _near_duplicates(self) -> None:
        import numpy as np

        from trivium.data.dedup import clusters

        found, drawn = self._found, self._near.drawn()
        found.near_among = len(drawn)
        if not drawn:
            return
        exact = [
            text.encode("utf-8", "surrogatepass") + str(number).encode() for number, (_, _, text) in enumerate(drawn)
        ]
        roots = clusters(np.stack([signature for signature, _, _ in drawn]), exact)
        alike = [(int(root), number) for number, root in enumerate(roots) if int(root) != number]
        found.near_share = len(alike) / len(drawn)
        for root, number in alike:
            _, one, text = drawn[root]
            _, other, other_text = drawn[number]
            if text != other_text and len(found.near_pairs) < _EXAMPLES:
                found.near_pairs.append((one, text, other, other_text))

    def _odd(self, entry: Entry) -> None:
        for what in odd_about(entry.text, entry.shape):
            self._found.odd[what] += 1
            examples = self._found.odd_examples.setdefault(what, [])
            if len(examples) < _EXAMPLES:
                examples.append((entry.id, " ".join(entry.text[:160].split())))

    def _origin(self, entry: Entry) -> None:
        host = re.match(r"\w+://([^/:]+)", entry.meta["url"]) if isinstance(entry.meta.get("url"), str) else None
        known = {
            "licence": entry.licence,
            "host": host and host.group(1),
            "source": entry.meta.get("source"),
            "split": entry.meta.get("split"),
            "year": str(entry.meta["date"])[:4] if entry.meta.get("date") else None,
            "group": entry.meta.get("group"),
        }
        for name, value in known.items():
            if isinstance(value, str) and value:
                self._found.from_where.setdefault(name, Frequent(2000)).add([value])

    def _content(self, entry: Entry) -> None:
        item, facts = entry.item, self._found.facts
        if isinstance(item, Conversation):
            roles = [message["role"] for message in item.messages]
            self._found.turns[roles.count("assistant")] += 1
            facts["with a system message"] += "system" in roles
            facts["with tools"] += bool(item.tools)
        elif isinstance(item, Completion):
            self._found.turns[1] += 1
        elif isinstance(item, Labelled):
            labels = item.label if isinstance(item.label, list) else [item.label]
            self._found.labels.add(map(str, labels))
        elif isinstance(item, Judged):
            self._found.labels.add(["good" if item.good else "not good"])
        elif isinstance(item, Ranked):
            facts["answers"] += len(item.responses)
            facts["with a tie"] += any(len(tier) > 1 for tier in item.tiers)
            if len(item.tiers) > 1:
                best, worst = (
                    sum(map(len, _words(item.responses[tier[0]]))) for tier in (item.tiers[0], item.tiers[-1])
                )
                facts["the better answer is longer"] += best > worst


def _words(said: Any) -> list[str]:
    return [said] if isinstance(said, str) else [str(message.get("content", "")) for message in said]


_MOJIBAKE = re.compile(
    "\u00c3[\u0080-\u00bf\u00a9\u00b6\u00bc\u00a4]|\u00e2\u20ac[\u0080-\u00ff\u2122\u0153\u02dc\u201c]"
)
_TAGS = re.compile(r"</?(?:div|span|br|p|a|table|td|tr|script|style|img)\b[^<>]{0,300}>", re.IGNORECASE)
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_LONG_WORD = re.compile(r"\S{1001}")
_LONG = 1_000_000
_LOOKED_AT = 100_000


def odd_about(text: str, shape: str = "text") -> Iterator[str]:
    """What is unusual about a text, in a few fixed phrases; of a long text the beginning is looked at."""
    if not text.strip():
        yield "empty"
        return
    if len(text) > _LONG:
        yield f"longer than {_LONG:,} characters"
    text = text[:_LOOKED_AT]
    if shape == "text" and len(text) < 20:
        yield "shorter than 20 characters"
    if "\ufffd" in text:
        yield "unreadable characters (U+FFFD)"
    if _CONTROLS.search(text):
        yield "control characters"
    if not text.isascii() and _MOJIBAKE.search(text):
        yield "characters decoded in a wrong way (\u00c3\u00a9 for \u00e9)"
    if "<" in text and _TAGS.search(text):
        yield "HTML tags"
    if len(text) > 1000 and _LONG_WORD.search(text):
        yield "a word longer than 1000 characters"
    letters = sum(map(str.isalpha, text[:2000]))
    if not letters:
        yield "no letters"
    elif letters > 40 and sum(map(str.isupper, text[:2000])) > 0.7 * letters:
        yield "mostly capitals"


def _try(tried: Tried, step: Step, entry: Entry) -> None:
    tried.seen += 1
    document = Document(entry.id, entry.text, entry.where, entry.licence, entry.meta)
    try:
        result = step.apply(document)
    except DataError as error:
        result = error
    if isinstance(result, Document):
        tried.changed += result.text != document.text
    elif isinstance(result, Dropped | Merged | DataError):
        reason = result.problem if isinstance(result, DataError) else result.reason
        tried.reasons[reason] += 1
        examples = tried.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            evidence = f"like {result.into}" if isinstance(result, Merged) else getattr(result, "evidence", "")
            examples.append((entry.id, evidence, " ".join(entry.text[:300].split())))
