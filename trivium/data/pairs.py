"""Rows of pairs: a text to read and the text to write.

    {"source": "...", "target": "..."}                      and the other usual names, see `NAMES`
    {"translation": {"en": "...", "de": "..."}}             with data.pairs.source=en data.pairs.target=de

The source stands without special tokens, since a method frames it when it makes an example; the target stands in the
frame a decoder writes. Both share the room of a row: where they do not fit, the longer one is cut first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trivium.data.intake import Intake, Row
from trivium.data.messages import kind_of
from trivium.data.samples import Sample, TokenSequence
from trivium.data.sides import target_frame
from trivium.errors import DataError
from trivium.nearest import nearest

if TYPE_CHECKING:
    from trivium.recipe import PairSettings
    from trivium.tokenizers.tokenizer import Tokenizer

NAMES = (
    ("source", "target"),
    ("src", "tgt"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "target"),
    ("input", "target"),
    ("input", "output"),
    ("input_text", "target_text"),
    ("prompt", "completion"),
)
"""Columns that are known by their names; the first pair that a row has counts."""
_METADATA = frozenset(("id", "meta", "metadata", "license", "licence"))


def encode_row(
    row: Row, *, tokenizer: Tokenizer, shape: str, intake: Intake, pairs: PairSettings | None = None
) -> Sample:
    """Two sequences, source and target, of which the target is trained. DataError names the row and the fix."""
    if shape != "auto":
        raise DataError("pairs have no shapes", where=row.where, value=f"format: {shape}", fix="leave format out")
    source, target = pair_of(row, intake=intake, pairs=pairs)
    ids = tokenizer.encode(source)
    written = target_frame(tokenizer).around(np.array(tokenizer.encode(target), dtype=np.int64))
    return Sample(
        row.name,
        [TokenSequence(ids, [False] * len(ids)), TokenSequence(written.tolist(), [True] * len(written))],
    )


def pair_of(row: Row, *, intake: Intake, pairs: PairSettings | None = None) -> tuple[str, str]:
    """The text to read, behind its prefix, and the text to write; DataError names the row and the fix."""
    values = row.values
    if isinstance(values.get("translation"), Mapping):
        values = {**values, **values["translation"]}
    source, target = _columns(row, values, pairs)
    intake.formats[f"{source} -> {target}"] += 1
    for name in row.values.keys() - {source, target, "translation"} - _METADATA:
        intake.formats[f"field {name!r} is not used"] += 1
    return (pairs.prefix if pairs else "") + _text(row, values, source), _text(row, values, target)


def _columns(row: Row, values: Mapping[str, Any], pairs: PairSettings | None) -> tuple[str, str]:
    """The names of the two columns of a row."""
    source, target = (None, None) if pairs is None else (pairs.source, pairs.target)
    for name in (source, target):
        if name is not None and name not in values:
            near = nearest(name, values)
            raise DataError(
                f"the row has no column {name!r}",
                where=row.where,
                value=f"columns: {', '.join(map(str, values)) or 'none'}",
                fix=f"did you mean {near}?"
                if near
                else "name columns of the data: data.pairs.source, data.pairs.target",
            )
    if source is not None and target is not None:
        return source, target
    for one, other in NAMES:
        if all(name in values for name in (source or one, target or other)):
            return source or one, target or other
    raise DataError(
        "the row has no columns for a pair that are known by their names",
        where=row.where,
        value=f"columns: {', '.join(map(str, values)) or 'none'}",
        fix="name both: data.pairs.source=COLUMN data.pairs.target=COLUMN",
    )


def _text(row: Row, values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if value is None or isinstance(value, str) else f"is no text but {kind_of(value)}"
        raise DataError(
            f"the column {name!r} {problem}", where=row.where, value=value, fix="write the text, or remove the row"
        )
    return value
