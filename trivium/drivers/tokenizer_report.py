"""`trivium tokenizer report`: what tokenizers do to texts, by source and by language.

fertility        tokens for each word (a run of letters and digits); 1 is a token a word. Means little in scripts
                 without spaces, where tokens for each character say more.
bytes per token  bytes of the text in UTF-8 for each token: what a context of a given length holds.
unknown          share of tokens that stand for what the vocabulary has no token for: that text is lost.
single bytes     share of tokens that are one byte of a character, where a vocabulary falls back on bytes.
comes back       share of documents that decode to themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.core.progress import readable_bytes
from trivium.data.documents import Document
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import DataError
from trivium.recipe import Source
from trivium.tokenizers.special import is_single_byte
from trivium.tokenizers.tokenizer import Tokenizer

WORD = re.compile(r"\w+")
OTHERS = "others"
"""Languages of which there is little, together."""
COMPARED = 50
"""Documents of each source that are decoded again."""
_BATCH = 64
_SHOWN = 4000
"""Characters that tell the language of a document."""


@dataclass
class Group:
    """Sums over the documents of one source or one language."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    single_bytes: int = 0
    compared: int = 0
    returned: int = 0

    def include(self, other: Group) -> None:
        """Add the sums of another group."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, Any]:
        """The sums and what follows from them; JSON values."""
        tokens = max(1, self.tokens)
        return {
            **asdict(self),
            "fertility": self.tokens / max(1, self.words),
            "tokens_per_character": self.tokens / max(1, self.characters),
            "bytes_per_token": self.bytes / tokens,
            "unknown_rate": self.unknown / tokens,
            "single_byte_rate": self.single_bytes / tokens,
            "comes_back": self.returned / self.compared if self.compared else None,
        }


@dataclass
class Measured:
    """One tokenizer and what it has encoded so far."""

    folder: str
    tokenizer: Tokenizer
    used: NDArray[np.int64] = field(init=False)
    single: NDArray[np.bool_] = field(init=False)
    unknown: int | None = field(init=False)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        self.used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.single = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
        self.single[[number for token, number in tokenizer.vocabulary.items() if is_single_byte(token)]] = True
        self.unknown = tokenizer.vocabulary.get(tokenizer.role_tokens.get("unk_token", ""))

    def add(self, documents: Sequence[Document], source: str, languages: Sequence[str | None]) -> None:
        """Encode documents of one source."""
        tokenizer = self.tokenizer
        first = int(tokenizer.adds_bos and tokenizer.bos_id is not None)
        arrays = [ids[first:-1] for ids in tokenizer.document_arrays([document.text for document in documents])]
        for document, language, ids in zip(documents, languages, arrays, strict=True):
            counts = np.bincount(ids, minlength=len(self.used))
            self.used += counts
            text = document.text
            returned = None
            if self.group("source", source).compared < COMPARED:
                returned = tokenizer.decode(ids.tolist(), skip_special=False) == text
            for kind, name in (("source", source), ("language", language)):
                if name is None:
                    continue
                group = self.group(kind, name)
                group.documents += 1
                group.bytes += len(text.encode())
                group.characters += len(text)
                group.words += len(WORD.findall(text))
                group.tokens += len(ids)
                group.unknown += 0 if self.unknown is None else int(counts[self.unknown])
                group.single_bytes += int(counts[self.single].sum())
                group.compared += returned is not None
                group.returned += bool(returned)

    def group(self, kind: str, name: str) -> Group:
        """The sums of one source or language."""
        return self.groups.setdefault((kind, name), Group())

    def result(self, most: int) -> dict[str, Any]:
        """Everything, as JSON values. most: tokens in a list."""
        ordinary = np.zeros(len(self.used), dtype=np.bool_)
        ordinary[list(self.tokenizer.vocabulary.values())] = True
        ordinary[list(self.tokenizer.special_tokens.values())] = False
        total = Group()
        for (kind, _), group in self.groups.items():
            if kind == "source":
                total.include(group)
        dead = np.flatnonzero(ordinary & (self.used == 0))
        used = np.flatnonzero(ordinary & (self.used > 0))
        often = np.sort(self.used[used])[::-1]
        covering = int(np.searchsorted(np.cumsum(often), 0.9 * often.sum())) + 1 if len(often) else 0
        lengths = self.tokenizer.byte_lengths()
        longest = used[np.argsort(-lengths[used], kind="stable")][:most]
        return {
            "folder": self.folder,
            "vocab_size": self.tokenizer.vocab_size,
            "total": total.figures(),
            "sources": {name: group.figures() for (kind, name), group in self.groups.items() if kind == "source"},
            "languages": {name: group.figures() for name, group in self.languages(total.bytes).items()},
            "vocabulary": {
                "ordinary": int(ordinary.sum()),
                "used": len(used),
                "dead": len(dead),
                "used_once": int((self.used[used] == 1).sum()),
                "cover_nine_tenths": covering,
            },
            "longest": [self.shown(number) for number in longest.tolist()],
            "dead_tokens": [self.shown(number) for number in dead[-most:].tolist()],
        }

    def languages(self, size: int) -> dict[str, Group]:
        """The sums by language, the largest first; languages of less than a hundredth of the text together."""
        found = [(name, group) for (kind, name), group in self.groups.items() if kind == "language"]
        found.sort(key=lambda pair: (-pair[1].bytes, pair[0]))
        large = {name: group for name, group in found if group.bytes >= size / 100}
        for name, group in found:
            if name not in large:
                large.setdefault(OTHERS, Group()).include(group)
        return large

    def shown(self, number: int) -> dict[str, Any]:
        """A token for people."""
        text = self.tokenizer.token_bytes[number].decode(errors="backslashreplace")
        return {"id": number, "text": text, "used": int(self.used[number])}


def tokenizer_report(
    folders: Sequence[str | Path], sources: Sequence[str], *, megabytes: float = 10.0, most: int = 20
) -> dict[str, Any]:
    """Encode the same documents with each tokenizer and compare. JSON values.

    megabytes: text that is read of each source, from its beginning.  most: tokens in each list.
    """
    measured = [Measured(str(folder), Tokenizer.load(folder)) for folder in folders]
    for source in sources:
        for batch in _batches(source, int(megabytes * 1e6)):
            languages = _languages(batch)
            for each in measured:
                each.add(batch, source, languages)
    if not any(each.groups for each in measured):
        raise DataError("the sources hold no text", where=", ".join(sources), fix="name other sources with --on")
    return {"sources": list(sources), "megabytes": megabytes, "tokenizers": [each.result(most) for each in measured]}


def _batches(source: str, limit: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in read_documents(Source.model_validate({"path": source}), Intake()):
        if not document.text:
            continue
        batch.append(document)
        size += len(document.text.encode())
        if len(batch) == _BATCH or size >= limit:
            yield batch
            batch = []
        if size >= limit:
            return
    if batch:
        yield batch


def _languages(documents: Sequence[Document]) -> list[str | None]:
    """What the documents say themselves, or what is found in them, where the extra `data` is installed."""
    from trivium.data.filters.language import guess

    try:
        return [_declared(document) or guess(document.text[:_SHOWN])[0] for document in documents]
    except DataError:
        return [_declared(document) for document in documents]


def _declared(document: Document) -> str | None:
    language = document.meta.get("language")
    return language if isinstance(language, str) else None


def rows_of(result: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows of the table that compares the tokenizers."""
    head = ["tokenizer", "tokens", "bytes/token", "fertility", "unknown", "single bytes", "comes back", "used", "dead"]
    rows = [head]
    for each in result["tokenizers"]:
        total, vocabulary = each["total"], each["vocabulary"]
        rows.append([each["folder"], f"{each['vocab_size']}", *figures(total)])
        rows[-1] += [f"{vocabulary['used']}", f"{vocabulary['dead']}"]
    return rows


def figures(group: Mapping[str, Any]) -> list[str]:
    """Bytes for each token, fertility, unknown, single bytes, comes back."""
    back = group["comes_back"]
    return [
        f"{group['bytes_per_token']:.2f}",
        f"{group['fertility']:.2f}",
        f"{group['unknown_rate']:.2%}",
        f"{group['single_byte_rate']:.2%}",
        "" if back is None else f"{back:.0%}",
    ]


def write_page(result: Mapping[str, Any], out: Path) -> Path:
    """The page of a report."""
    from trivium.report.pipeline import Bar, Bars, Stage, Table, write_pipeline_report
    from trivium.report.story import Figure

    several, (head, *rows) = result["tokenizers"], rows_of(result)
    size = several[0]["total"]["bytes"]
    best = max(several, key=lambda each: each["total"]["bytes_per_token"])
    bars = [Bar(each["folder"], each["total"]["bytes_per_token"], own=each is best) for each in several]
    stages = [
        Stage(
            title="All texts",
            what=f"The same {readable_bytes(size)} of text, encoded by each tokenizer.",
            why="More bytes in a token mean more text in a context, and less work for each text; a larger vocabulary "
            "pays for it with a larger head. What that is worth, the laboratory measures.",
            bars=[Bars("Bytes for each token", bars)],
            tables=[Table("", head, rows)],
        )
    ]
    for each in several:
        tables = []
        for kind in ("sources", "languages"):
            columns = [kind[:-1], "text", "bytes/token", "fertility", "unknown", "single bytes", "comes back"]
            lines = [[name, readable_bytes(group["bytes"]), *figures(group)] for name, group in each[kind].items()]
            tables += [Table(f"By {kind[:-1]}", columns, lines)] if lines else []
        for name, title in (("longest", "Longest tokens in use"), ("dead_tokens", "Last tokens that are never used")):
            lines = [[f"{token['id']}", repr(token["text"]), f"{token['used']}"] for token in each[name]]
            tables += [Table(title, ["id", "text", "used"], lines)] if lines else []
        vocabulary = each["vocabulary"]
        what = (
            f"{vocabulary['used']} of {vocabulary['ordinary']} tokens are in use, {vocabulary['used_once']} of them "
            f"once; {vocabulary['cover_nine_tenths']} make nine tenths of all tokens in the texts."
        )
        stages.append(Stage(title=each["folder"], what=what, tables=tables))
    return write_pipeline_report(
        stages,
        out,
        title="What tokenizers do to these texts",
        over="Trivium tokenizers",
        lead=f"{len(several)} tokenizers on {', '.join(result['sources'])}.",
        figures=[
            Figure("Fewest tokens", best["folder"], f"{best['total']['bytes_per_token']:.2f} bytes a token"),
            Figure("Text", readable_bytes(size), f"{several[0]['total']['documents']} documents"),
        ],
    )
