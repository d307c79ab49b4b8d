"""Rows of text with a label: for classification, multi-label classification and regression.

    {"text": "...", "label": "positive"}              one label: text, a whole number, or true and false
    {"text": "...", "labels": ["news", "sport"]}      any number of labels
    {"text": "...", "score": 3.5}                     a number to predict
    {"text_a": "...", "text_b": "...", "label": ...}  two texts; also sentence1/2, premise/hypothesis, question1/2

The same columns in csv and parquet. Common names of columns are recognised; `data.labels` names others, or several
columns of 0 and 1 (one for each label; empty: not known). The labels are those of the training data, sorted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trivium.data.framing import Framed, framing_of, shares
from trivium.data.intake import Intake, Row
from trivium.data.labelled import Gathered, LabelSet, Problem, in_order, numbered
from trivium.data.messages import kind_of
from trivium.data.reading import read_rows
from trivium.errors import DataError
from trivium.nearest import nearest
from trivium.recipe import DataSection, LabelSettings, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

TEXT = ("text", "sentence", "review", "content", "comment", "document", "body", "title", "utterance", "prompt")
PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("query", "passage"),
    ("text", "text_pair"),
)
LABEL = (
    "label", "labels", "class", "classes", "category", "categories", "score", "rating", "stars", "sentiment",
    "intent", "topic", "topics", "emotion", "target",
)  # fmt: skip
MOST_LABELS = 0.5
"""Share of rows from which on "each row has a label of its own" is taken for a mistake."""


@dataclass(frozen=True)
class LabelRow:
    """A row as it was read: its text or texts, and its label as written."""

    row: Row
    texts: tuple[str, ...]
    value: Any


def read(
    sources: Sequence[Source],
    intake: Intake,
    *,
    tokenizer: Tokenizer,
    settings: DataSection,
    like: LabelSet | None = None,
    keep_rows: bool = False,
) -> Gathered:
    """Reads and encodes all rows.

    like: the labels to read by (those of the training data, or of a model); default: those that are found here.
    """
    rows: list[LabelRow] = []
    ends: list[int] = []
    for source in sources:
        rows += read_label_rows(source, settings.labels, intake)
        ends.append(len(rows))
    labels = like or label_set(rows, settings.labels)
    numbers = numbered(labels.names)
    gathered = Gathered("labels", tokenizer, keep_rows=keep_rows)
    gathered.labels = labels
    encoder = _Encoder(tokenizer, settings, gathered)
    counts: Counter[str] = Counter()
    start = 0
    for end in ends:
        for row in rows[start:end]:
            try:
                target = _target(row, labels, numbers, settings.labels)
                framed = encoder.encode(row)
            except DataError as error:
                intake.reject(error)
                continue
            if framed is None:
                continue
            gathered.taken += 1
            shown = {"text": row.texts[0], **({"text_pair": row.texts[1]} if len(row.texts) > 1 else {})}
            gathered.add(row.row.name, framed.ids, row=shown, label=target, second=framed.second)
            _count(counts, target, labels)
        gathered.ends.append(len(gathered))
        start = end
    gathered.counts = {name: counts[name] for name in labels.names} if labels.problem != "regression" else {}
    if like is None:
        _refuse_useless(gathered, sources)
    return gathered


def read_label_rows(source: Source, settings: LabelSettings, intake: Intake) -> Iterator[LabelRow]:
    """The rows of a source, each with its text and its label as written."""
    for row in map(_with_meta, read_rows(source, intake)):
        try:
            found = LabelRow(row, _texts(row, settings), _value(row, settings))
        except DataError as error:
            intake.reject(error)
            continue
        intake.formats["pairs of texts" if len(found.texts) > 1 else "texts"] += 1
        yield found


def _with_meta(row: Row) -> Row:
    """A document of a pipeline is a row too: what it was read with (its label) stands in `meta`."""
    meta = row.values.get("meta")
    if not isinstance(meta, dict) or not meta.keys() - row.values.keys():
        return row
    return replace(row, values={**meta, **row.values})


def label_set(rows: Sequence[LabelRow], settings: LabelSettings) -> LabelSet:
    """The labels of the training data and what they mean. DataError where they cannot be told."""
    problem = settings.problem if settings.problem != "auto" else _problem(rows, settings)
    columns = settings.label if isinstance(settings.label, list) else None
    if problem == "regression":
        usual = _label_column(rows[0].row) if rows and settings.label is None else "score"
        return LabelSet(tuple(columns or [str(settings.label or usual)]), problem)
    if columns is not None and problem == "multi_label":
        return LabelSet(tuple(settings.names.get(name, name) for name in columns), problem)
    names = {name for row in rows for name in _names(row, settings, problem)}
    if problem == "single_label" and len(rows) >= 20 and len(names) > MOST_LABELS * len(rows):
        raise DataError(
            f"there are {len(names)} different labels in {len(rows)} rows",
            where=rows[0].row.where,
            value=rows[0].value,
            fix="name the right column (data.labels.label), or set data.labels.problem=regression for numbers",
        )
    return LabelSet(in_order(names), problem)


# Columns


def _texts(row: Row, settings: LabelSettings) -> tuple[str, ...]:
    """The text of a row, or its two texts."""
    values = row.values
    if settings.text is not None or settings.text_pair is not None:
        names = [settings.text or _present(row, TEXT, "text"), *([settings.text_pair] if settings.text_pair else [])]
    else:
        pair = next((pair for pair in PAIRS if all(name in values for name in pair)), None)
        names = list(pair) if pair is not None else [_present(row, TEXT, "text")]
    return tuple(_text(row, name) for name in names)


def _text(row: Row, name: str) -> str:
    _there(row, name, "text")
    value = row.values[name]
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if value is None or isinstance(value, str) else f"is no text but {kind_of(value)}"
        raise DataError(
            f"the column {name!r} {problem}", where=row.where, value=value, fix="write the text, or remove the row"
        )
    return value


def _value(row: Row, settings: LabelSettings) -> Any:
    """The label as it is written; a list where several columns were named."""
    if isinstance(settings.label, list):
        missing = [name for name in settings.label if name not in row.values]
        if len(missing) == len(settings.label):
            _there(row, missing[0], "label")
        return [row.values.get(name) for name in settings.label]
    name = settings.label or _label_column(row)
    _there(row, name, "label")
    return row.values[name]


def _label_column(row: Row) -> str:
    return _present(row, LABEL, "label")


def _present(row: Row, names: Sequence[str], what: str) -> str:
    """The first of the usual names that the row has."""
    found = next((name for name in names if name in row.values), None)
    if found is None:
        raise _no_column(row, f"the row has no column for the {what} that is known by its name", what, names)
    return found


def _there(row: Row, name: str, what: str) -> None:
    if name not in row.values:
        raise _no_column(row, f"the row has no column {name!r}", what, [name])


def _no_column(row: Row, problem: str, what: str, known: Sequence[str]) -> DataError:
    used = {*TEXT, *(name for pair in PAIRS for name in pair)} if what == "label" else set(LABEL)
    near = next((name for name in row.values if name not in used and nearest(str(name), known)), None)
    setting = "label" if what == "label" else "text"
    hint = f"did you mean {near!r}? " if near else ""
    return DataError(
        problem,
        where=row.where,
        value=f"columns: {', '.join(map(str, row.values)) or 'none'}",
        fix=f"{hint}name it: data.labels.{setting}={near or 'COLUMN'}",
    )


# Labels


def _problem(rows: Sequence[LabelRow], settings: LabelSettings) -> Problem:
    """What the labels mean, from the way they are written."""
    values = [row.value for row in rows]
    if isinstance(settings.label, list):
        cells = {cell for value in values for cell in value}
        return "multi_label" if all(switch_of(cell) is not None or _unknown(cell) for cell in cells) else "regression"
    if settings.separator is not None or any(isinstance(value, list) for value in values):
        return "multi_label"
    numbers = [_number(value) for value in values if value not in (None, "")]
    known = [number for number in numbers if number is not None]
    if numbers and len(known) == len(numbers) and any(not number.is_integer() for number in known):
        return "regression"
    return "single_label"


def _names(row: LabelRow, settings: LabelSettings, problem: Problem) -> list[str]:
    """The labels of a row by their names; an empty one is left to `_target`, which refuses it."""
    value = row.value
    if problem == "multi_label" and isinstance(value, str) and settings.separator is not None:
        value = [part.strip() for part in value.split(settings.separator) if part.strip()]
    values = value if isinstance(value, list) else [value]
    return [settings.names.get(name, name) for one in values if (name := _name(one))]


def label_of(row: LabelRow, settings: LabelSettings) -> str:
    """The name of the only label of a row; DataError where there is none, or several."""
    names = _names(row, settings, "single_label")
    if len(names) != 1:
        raise DataError("the row needs one label", where=row.row.where, value=row.value, fix="write it")
    return names[0]


def _name(value: Any) -> str:
    """The name of a label; empty if it is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _number(value: Any) -> float | None:
    """The finite number that a value is, or that a text spells."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _unknown(value: Any) -> bool:
    return value is None or value == ""


def switch_of(value: Any) -> float | None:
    """1 or 0 of a column that says whether a label applies."""
    return {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0}.get(_name(value).lower())


def _target(row: LabelRow, labels: LabelSet, numbers: Mapping[str, int], settings: LabelSettings) -> Any:
    """The number of the label, 0 or 1 for each label (NaN: not known), or the numbers to predict."""
    if labels.problem == "regression":
        return _regression(row, labels)
    if labels.problem == "multi_label" and isinstance(settings.label, list):
        return _cells(row, settings.label, numbers, settings)
    names = _names(row, settings, labels.problem)
    if labels.problem == "single_label" and len(names) != 1:
        several = isinstance(row.value, list)
        raise DataError(
            f"the row has {len(row.value)} labels where one is needed" if several else "the label is empty",
            where=row.row.where,
            value=row.value,
            fix="set data.labels.problem=multi_label" if several else "write the label, or remove the row",
        )
    for name in names:
        if name not in numbers:
            raise _never_seen(row, name, numbers)
    if labels.problem == "single_label":
        return numbers[names[0]]
    marked = [0.0] * len(numbers)
    for name in names:
        marked[numbers[name]] = 1.0
    return marked


def _cells(row: LabelRow, columns: Sequence[str], numbers: Mapping[str, int], settings: LabelSettings) -> list[float]:
    """0, 1 or NaN (not known) for each label, from the columns of a row."""
    marked = [math.nan] * len(numbers)
    for column, value in zip(columns, row.value, strict=True):
        name = settings.names.get(column, column)
        if name not in numbers:
            raise _never_seen(row, name, numbers)
        marked[numbers[name]] = _cell(row, value, name)
    return marked


def _never_seen(row: LabelRow, name: str, numbers: Mapping[str, int]) -> DataError:
    near = nearest(name, numbers)
    return DataError(
        "the label does not occur in the training data",
        where=row.row.where,
        value=name,
        fix=f"did you mean {near}?" if near else f"known are {', '.join(list(numbers)[:20])}",
    )


def _cell(row: LabelRow, value: Any, name: str) -> float:
    switch = math.nan if _unknown(value) else switch_of(value)
    if switch is None:
        raise DataError(
            f"the column of the label {name!r} holds neither 0 nor 1",
            where=row.row.where,
            value=value,
            fix="write 1 where the label applies, 0 where it does not, nothing where it is not known",
        )
    return switch


def _regression(row: LabelRow, labels: LabelSet) -> list[float]:
    values = row.value if isinstance(row.value, list) else [row.value]
    found = [_number(value) for value in values]
    if len(found) != len(labels.names) or any(number is None for number in found):
        raise DataError(
            "the label is empty" if values == [None] or values == [""] else "the label is no number",
            where=row.row.where,
            value=row.value,
            fix="write a number, or set data.labels.problem=single_label",
        )
    return [number for number in found if number is not None]


def _count(counts: Counter[str], target: Any, labels: LabelSet) -> None:
    if labels.problem == "single_label":
        counts[labels.names[target]] += 1
    elif labels.problem == "multi_label":
        counts.update(name for name, value in zip(labels.names, target, strict=True) if value == 1)


def _refuse_useless(gathered: Gathered, sources: Sequence[Source]) -> None:
    """Training data from which nothing could be learnt."""
    labels, counts = gathered.labels, gathered.counts
    present = [name for name, count in counts.items() if count]
    if labels.problem == "single_label" and len(gathered) and len(present) < 2:
        raise DataError(
            "all rows have the same label, so there is nothing to tell apart",
            where=", ".join(source.path for source in sources),
            value=f"{len(gathered)} rows, all {present[0] if present else 'without label'}",
            fix="add rows with other labels, or name the right column (data.labels.label)",
        )
    if labels.problem == "multi_label" and len(gathered) and len(present) < len(labels.names):
        never = next((name for name in labels.names if not counts[name]), "no label at all")
        raise DataError(
            "a label never applies, so it cannot be learnt",
            where=", ".join(source.path for source in sources),
            value=never,
            fix="add rows with this label, or leave its column out",
        )


class _Encoder:
    """Texts as sequences that fit a row."""

    def __init__(self, tokenizer: Tokenizer, settings: DataSection, gathered: Gathered) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.gathered = gathered
        self.framing = framing_of(tokenizer)

    def encode(self, row: LabelRow) -> Framed | None:
        """The tokens of a row with their frame; None if the row is dropped."""
        texts = [self.tokenizer.encode(text) for text in row.texts]
        room = self.framing.room(self.settings.sequence_length, pair=len(texts) > 1)
        total = sum(map(len, texts))
        if total > room:
            if self.settings.truncation == "error":
                raise DataError(
                    f"the text has {total} tokens, a row has room for {room}",
                    where=row.row.where,
                    fix=f"raise data.sequence_length to {total + self.settings.sequence_length - room}, "
                    "or choose data.truncation: right or drop",
                )
            if self.settings.truncation == "drop":
                self.gathered.dropped["longer than a row"] += 1
                return None
            self.gathered.notes.update(truncated_samples=1, truncated_tokens=total - room)
            texts = [ids[:keep] for ids, keep in zip(texts, shares([len(ids) for ids in texts], room), strict=True)]
        return self.framing.frame(*texts)
