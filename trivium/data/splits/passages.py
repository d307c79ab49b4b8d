"""The texts in data of any kind, one row at a time: what is sealed, and what is checked against sealed sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.data.intake import Intake
from trivium.data.reading import read_documents, read_rows
from trivium.data.shards import is_tokens, open_tokens
from trivium.data.spans import read_questions
from trivium.errors import DataError
from trivium.recipe import Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Passages = Iterator[tuple[str, list[str]]]
"""(name of the row, the texts in it)."""

_NOT_TEXT = frozenset(("id", "role", "from", "url", "source", "licence", "license", "date", "meta", "metadata"))
_DEEPEST = 8


def passages(source: Source, *, kind: str, intake: Intake, tokenizer: Tokenizer | None = None) -> Passages:
    """Every text in every row; of documents the document, of rows each text in any of their fields.

    kind: as in `open_dataset`.  tokenizer: reads folders of token shards.
    """
    if kind == "documents" and tokenizer is not None and is_tokens(Path(source.path)):
        return _of_tokens(Path(source.path), tokenizer)
    if kind == "documents":
        return ((document.id, [document.text]) for document in read_documents(source, intake))
    if kind == "questions":
        return (
            (asked.name, [asked.question, asked.context, *(text for text, _ in asked.answers)])
            for asked in read_questions(source, intake)
        )
    if kind == "similar":
        return rows_or_documents(source, intake)
    return ((row.name, list(texts_in(row.values))) for row in read_rows(source, intake))


def rows_or_documents(source: Source, intake: Intake) -> Passages:
    """Rows where the source has any, else documents: for files whose kind is not known."""
    try:
        rows = passages(source, kind="rows", intake=intake)
        first = next(rows, None)
    except DataError:  # it holds no rows
        yield from passages(source, kind="documents", intake=intake)
        return
    if first is not None:
        yield first
        yield from rows


def texts_in(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts in a row, however its fields are nested; words of a tagged sentence are one text."""
    if isinstance(value, str):
        yield value
    elif depth > _DEEPEST:
        return
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _NOT_TEXT:
                yield from texts_in(item, depth + 1)
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, str) and " " not in item for item in value):
            yield " ".join(value)
        else:
            for item in value:
                yield from texts_in(item, depth + 1)


def _of_tokens(folder: Path, tokenizer: Tokenizer) -> Passages:
    for shard in open_tokens(folder, tokenizer).shards:
        at = 0
        for name, length in zip(shard.ids, shard.lengths.tolist(), strict=True):
            yield name, [tokenizer.decode(shard.tokens[at : at + length].tolist())]
            at += length
