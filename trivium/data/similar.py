"""Rows of texts that belong together, for vectors that say so.

    {"anchor": "...", "positive": "..."}                          and the other usual names, see `NAMES`
    {"anchor": "...", "positive": "...", "negative": "..."}       also negatives: [...], negative_1, negative_2, ...
    {"sentence1": "...", "sentence2": "...", "score": 4.2}        how alike both are
    {"text": "..."}                                               a text alone: it is compared with itself

Files of plain text give a text a line. The texts of a row stand in the frame that an encoder reads, and share the room
of a row; with `data.truncation: right` the longest is cut first. Numbers of the sample: `texts`, how many there are,
and `score`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.data.framing import shares
from trivium.data.intake import Intake, Row
from trivium.data.labels import TEXT
from trivium.data.messages import kind_of
from trivium.data.reading import documents_in, input_files, rows_in
from trivium.data.samples import Sample, TokenSequence
from trivium.data.sides import text_frame
from trivium.errors import DataError
from trivium.nearest import nearest

if TYPE_CHECKING:
    from trivium.recipe import DataSection, SimilarSettings, Source
    from trivium.tokenizers.tokenizer import Tokenizer

NAMES = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "pos"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("title", "body"),
    ("title", "text"),
    ("source", "target"),
)
"""Columns of anchor and positive that are known by their names; the first pair that a row has counts."""
NEGATIVES = ("negative", "negatives", "neg", "hard_negative", "hard_negatives")
SCORES = ("score", "similarity", "similarity_score", "label")
"""Columns of a score, where there is no negative."""
SCORED = {"sentence1", "text_a", "question1", "text"}
"""Anchors beside which a label is a score too."""

_NUMBERED = re.compile(r"(?:hard_)?negative_?\d+\Z")


@dataclass(frozen=True)
class Alike:
    """Texts that belong together: anchor, positive, negatives; or one text alone. `score` says how alike two are."""

    texts: tuple[str, ...]
    score: float | None = None


def read(source: Source, intake: Intake) -> Iterator[Row]:
    """The rows of a source; a line of a plain text is a row with the column `text`."""
    found = False
    for file, reader in input_files(source, intake):
        rows = rows_in(file, reader, intake)
        if rows is None:
            rows = _lines(file, reader, source, intake)
        for row in rows:
            found = True
            yield row
    if not found and not intake.quarantined:
        raise DataError("the source holds no rows", where=source.path, fix="check that the file is not empty")


def _lines(file: Any, reader: str, source: Source, intake: Intake) -> Iterator[Row]:
    for document in documents_in(file, reader, source, intake):
        for number, line in enumerate(document.text.splitlines(), 1):
            if line.strip():
                yield Row({"text": line.strip()}, f"{document.source}:{number}", f"{document.id}#{number}")


def encode_row(row: Row, *, tokenizer: Tokenizer, shape: str, intake: Intake, settings: DataSection) -> Sample:
    """The texts of a row as sequences, each in its frame. DataError names the row and the fix."""
    if shape != "auto":
        raise DataError("similar texts have no shapes", where=row.where, value=f"format: {shape}", fix="leave it out")
    alike = alike_of(row, settings.similar, intake)
    ids = [tokenizer.encode(text) for text in prefixed(alike, settings.similar)]
    frame = text_frame(tokenizer)
    room = settings.sequence_length - frame.size * len(ids)
    if settings.truncation == "right":
        longest = (settings.similar.text_length or settings.sequence_length) - frame.size
        keep = shares([min(len(each), longest) for each in ids], max(room, 0))
        if keep != [len(each) for each in ids]:
            intake.formats["rows whose texts were cut"] += 1
        ids = [each[:size] for each, size in zip(ids, keep, strict=True)]
    framed = [frame.around(np.array(each, dtype=np.int64)).tolist() for each in ids]
    fields = {"texts": float(len(ids)), **({} if alike.score is None else {"score": alike.score})}
    return Sample(row.name, [TokenSequence(each, [False] * len(each)) for each in framed], fields)


def prefixed(alike: Alike, settings: SimilarSettings) -> list[str]:
    """The texts behind their prefixes: where there are no passages, both texts are queries."""
    symmetric = len(alike.texts) == 1 or alike.score is not None
    rest = settings.query_prefix if symmetric else settings.passage_prefix
    return [(settings.query_prefix if number == 0 else rest) + text for number, text in enumerate(alike.texts)]


def alike_of(row: Row, settings: SimilarSettings, intake: Intake) -> Alike:
    """The texts of a row and their score; DataError names the row and the fix."""
    anchor, positive = _columns(row, settings)
    if positive is None:
        intake.formats["texts"] += 1
        return Alike((_text(row, anchor, row.values[anchor]),))
    texts = [_text(row, anchor, row.values[anchor]), _first(row, positive, intake)]
    negatives = list(_negatives(row, settings, intake))
    score = None if negatives else _score(row, anchor, settings)
    intake.formats[f"{anchor} -> {positive}" + (" with negatives" if negatives else "")] += 1
    return Alike((*texts, *negatives), score)


def _columns(row: Row, settings: SimilarSettings) -> tuple[str, str | None]:
    """The columns of anchor and positive; of a text alone only the first."""
    values = row.values
    for name in (settings.anchor, settings.positive):
        if name is not None and name not in values:
            raise _no_column(row, f"the row has no column {name!r}", name)
    if settings.anchor is not None and settings.positive is not None:
        return settings.anchor, settings.positive
    for one, other in NAMES:
        if (settings.anchor or one) in values and (settings.positive or other) in values:
            return settings.anchor or one, settings.positive or other
    if settings.anchor is not None:
        return settings.anchor, None
    alone = next((name for name in TEXT if name in values), None)
    if alone is None or settings.positive is not None:
        raise _no_column(row, "the row has no columns of texts that are known by their names", None)
    return alone, None


def _no_column(row: Row, problem: str, name: str | None) -> DataError:
    near = None if name is None else nearest(name, row.values)
    return DataError(
        problem,
        where=row.where,
        value=f"columns: {', '.join(map(str, row.values)) or 'none'}",
        fix=f"did you mean {near}?" if near else "name them: data.similar.anchor=COLUMN data.similar.positive=COLUMN",
    )


def _first(row: Row, column: str, intake: Intake) -> str:
    """The positive; of several the first."""
    value = row.values[column]
    if not isinstance(value, list):
        return _text(row, column, value)
    if not value:
        raise DataError(f"the column {column!r} is empty", where=row.where, fix="write a text, or remove the row")
    if len(value) > 1:
        intake.formats["further positives are not used"] += len(value) - 1
    return _text(row, column, value[0])


def _negatives(row: Row, settings: SimilarSettings, intake: Intake) -> Iterator[str]:
    given = settings.negative
    if given is None:
        columns = [name for name in row.values if name in NEGATIVES or _NUMBERED.fullmatch(str(name))]
    else:
        columns = [given] if isinstance(given, str) else given
        missing = next((name for name in columns if name not in row.values), None)
        if missing is not None:
            raise _no_column(row, f"the row has no column {missing!r}", missing)
    for column in columns:
        value = row.values[column]
        for text in value if isinstance(value, list) else [value]:
            if text in (None, ""):
                intake.formats["empty negatives"] += 1
            else:
                yield _text(row, column, text)


def _score(row: Row, anchor: str, settings: SimilarSettings) -> float | None:
    name = settings.score
    if name is None:
        usual = SCORES if anchor in SCORED or settings.anchor is not None else SCORES[:-1]
        name = next((each for each in usual if row.values.get(each) not in (None, "")), None)
        if name is None:
            return None
    elif name not in row.values:
        raise _no_column(row, f"the row has no column {name!r}", name)
    value = row.values[name]
    try:
        number = float(value) / settings.score_max
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"the score in the column {name!r} is no number",
            where=row.where,
            value=value,
            fix="write a number, remove the row, or name another column (data.similar.score)",
        )
    return number


def _text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if value is None or isinstance(value, str) else f"holds no text but {kind_of(value)}"
        raise DataError(
            f"the column {column!r} {problem}", where=row.where, value=value, fix="write the text, or remove the row"
        )
    return value
