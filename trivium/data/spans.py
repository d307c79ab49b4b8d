"""Questions with a context in which the answer stands: extractive question answering, in the format of SQuAD.

    {"context": "...", "question": "...", "answers": {"text": ["..."], "answer_start": [17]}}
    {"context": "...", "question": "...", "answers": [{"text": "...", "answer_start": 17}]}
    {"data": [{"paragraphs": [{"context": "...", "qas": [...]}]}]}        the files of SQuAD themselves

No answer (or `is_impossible`) means that the context does not say. A context longer than a row becomes several
windows that share `data.labels.stride` tokens; in those without the answer there is none, as far as training goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivium.data.framing import Framing, framing_of
from trivium.data.intake import Intake, Row
from trivium.data.labelled import Gathered, LabelSet
from trivium.data.reading import read_rows
from trivium.errors import DataError
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question as it was read; answers are (text, first character) pairs, none if the context does not say."""

    name: str
    where: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Window:
    """A question with as much of its context as fits a row.

    ids:     with special tokens.  second: where the second segment begins.
    context: place of the first token of the context.
    offsets: first and last character (exclusive) in the whole context of each token of the context.
    """

    ids: list[int]
    second: int
    context: int
    offsets: list[tuple[int, int]]

    def place(self, start: int, end: int) -> tuple[int, int] | None:
        """(first, last) token of the characters start..end, if all of them are in this window."""
        inside = [at for at, (first, last) in enumerate(self.offsets) if first < end and last > start and last > first]
        if not inside:
            return None
        first, last = inside[0], inside[-1]
        if self.offsets[first][0] > start or self.offsets[last][1] < end:
            return None
        return self.context + first, self.context + last


def read(
    sources: Sequence[Source],
    intake: Intake,
    *,
    tokenizer: Tokenizer,
    settings: DataSection,
    like: LabelSet | None = None,
    keep_rows: bool = False,
) -> Gathered:
    """Reads and encodes all questions; there are no labels that `like` could name."""
    gathered = Gathered("questions", tokenizer, keep_rows=keep_rows)
    framing = framing_of(tokenizer)
    for source in sources:
        for question in read_questions(source, intake):
            try:
                windows = cut_context(
                    question.question,
                    question.context,
                    tokenizer,
                    framing,
                    length=settings.sequence_length,
                    stride=settings.labels.stride,
                    where=question.where,
                )
            except DataError as error:
                intake.reject(error)
                continue
            gathered.taken += 1
            gathered.notes["windows"] += len(windows)
            gathered.notes["unanswerable"] += not question.answers
            for number, window in enumerate(windows):
                start, end = _target(question, window, framing)
                name = f"{question.name}#{number}" if number else question.name
                gathered.add(name, window.ids, second=window.second, start=start, end=end)
        gathered.ends.append(len(gathered))
    return gathered


def cut_context(
    question: str,
    context: str,
    tokenizer: Tokenizer,
    framing: Framing,
    *,
    length: int,
    stride: int,
    where: str = "the question",
) -> list[Window]:
    """The windows of a context; neighbours share `stride` tokens."""
    asked = tokenizer.encode(question)
    ids, offsets = tokenizer.guarded_offsets([context])
    room = framing.room(length, pair=True) - len(asked)
    if room < 1 or (len(ids) > room and room <= stride):
        raise DataError(
            f"the question has {len(asked)} tokens and leaves room for {max(room, 0)} of the context",
            where=where,
            value=question,
            fix=f"raise data.sequence_length (now {length}), or lower data.labels.stride (now {stride})",
        )
    windows: list[Window] = []
    first = 0
    while True:
        last = min(first + room, len(ids))
        framed = framing.frame(asked, ids[first:last])
        windows.append(Window(framed.ids, framed.second, framed.starts[1], _trimmed(context, offsets[first:last])))
        if last == len(ids):
            return windows
        first = last - stride


def _trimmed(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same places without the spaces that a token begins with."""
    found = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        found.append((start, end))
    return found


def read_questions(source: Source, intake: Intake) -> Iterator[Question]:
    """The questions of a source."""
    for row in read_rows(source, intake):
        for one in _flat(row):
            try:
                question = _question(one)
            except DataError as error:
                intake.reject(error)
                continue
            intake.formats["questions with a context"] += 1
            yield question


def _flat(row: Row) -> Iterator[Row]:
    """The questions inside a file of SQuAD; the row itself where it is one question."""
    data = row.values.get("data")
    if not isinstance(data, list):
        yield row
        return
    for article in data:
        for paragraph in article.get("paragraphs", ()) if isinstance(article, Mapping) else ():
            for asked in paragraph.get("qas", ()):
                name = f"{row.name}:{asked.get('id', '')}"
                where = f"{row.where}, question {asked.get('id', '')}"
                yield Row({**asked, "context": paragraph.get("context")}, where, name)


def _question(row: Row) -> Question:
    for name in ("context", "question"):
        value = row.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"the {name} is empty" if name in row.values else f"the row has no {name}",
                where=row.where,
                value=f"columns: {', '.join(map(str, row.values))}",
                fix='write {"context": "...", "question": "...", "answers": {"text": [...], "answer_start": [...]}}',
            )
    context = row.values["context"]
    answers = [] if row.values.get("is_impossible") is True else list(_answers(row))
    for text, start in answers:
        if context[start : start + len(text)] != text:
            found = context.find(text)
            raise DataError(
                "the answer does not stand where answer_start says",
                where=row.where,
                value=f"{text!r} at {start}; there stands {context[start : start + len(text)]!r}",
                fix=f"it stands at {found}" if found >= 0 else "the context does not contain it: correct the row",
            )
    return Question(row.name, row.where, context, row.values["question"], tuple(answers))


def _answers(row: Row) -> Iterator[tuple[str, int]]:
    given: Any = row.values.get("answers")
    if given is None:
        if "answers" in row.values or "is_impossible" in row.values:
            return
        raise DataError(
            "the row has no answers",
            where=row.where,
            value=f"columns: {', '.join(map(str, row.values))}",
            fix='write "answers": {"text": [...], "answer_start": [...]}; empty lists if the context does not say',
        )
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        texts, starts = (value if isinstance(value, list) else [value] for value in (texts, starts))
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=False)]
    for answer in given if isinstance(given, list) else [given]:
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, Mapping) else (None, None)
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or start < 0:
            raise DataError(
                "an answer needs its text and the number of its first character",
                where=row.where,
                value=answer,
                fix='write {"text": "Paris", "answer_start": 17}; characters count from 0',
            )
        leading = len(text) - len(text.lstrip())
        yield text.strip(), start + leading


def _target(question: Question, window: Window, framing: Framing) -> tuple[int, int]:
    """(first, last) token of the first answer; the empty answer where this window does not hold it."""
    if question.answers:
        text, start = question.answers[0]
        found = window.place(start, start + len(text))
        if found is not None:
            return found
    empty = framing.empty_answer(len(window.ids))
    return empty, empty
