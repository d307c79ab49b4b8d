"""Rows of words with a tag each: for named entities, parts of speech and the like.

    {"tokens": ["Ada", "lives", "in", "Paris"], "tags": ["B-PER", "O", "O", "B-LOC"]}

and CoNLL files (`sources/conll.py`). Tags that are numbers get names from `data.labels.names`. The words are encoded
as one text with a space between them; the first token of each word carries its tag (`data.labels.every_piece`: all of
them, where B-X goes on as I-X). A sentence longer than a row is cut between two words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivium.data.batch import IGNORE
from trivium.data.framing import Framing, framing_of
from trivium.data.intake import Intake, Row
from trivium.data.labelled import Gathered, LabelSet, in_order, numbered
from trivium.data.messages import kind_of
from trivium.data.reading import read_rows
from trivium.errors import DataError
from trivium.nearest import nearest
from trivium.recipe import DataSection, LabelSettings, Source

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "pos_tags", "ner", "pos")


@dataclass(frozen=True)
class Tagged:
    """A sentence as it was read."""

    row: Row
    words: Sequence[str]
    tags: Sequence[str]


@dataclass(frozen=True)
class Cut:
    """A part of a sentence that fits a row.

    ids:   with special tokens.
    words: for each token the number of the word it belongs to, or -1.
    """

    ids: list[int]
    words: list[int]

    def first_tokens(self) -> dict[int, int]:
        """Number of a word -> place of its first token."""
        return {word: place for place, word in reversed(list(enumerate(self.words))) if word >= 0}


def read(
    sources: Sequence[Source],
    intake: Intake,
    *,
    tokenizer: Tokenizer,
    settings: DataSection,
    like: LabelSet | None = None,
    keep_rows: bool = False,
) -> Gathered:
    """Reads and encodes all sentences; `like` as in `trivium.data.labels`."""
    sentences: list[Tagged] = []
    ends: list[int] = []
    for source in sources:
        sentences += _sentences(source, settings.labels, intake)
        ends.append(len(sentences))
    labels = like or LabelSet(_tag_set(sentences))
    numbers = numbered(labels.names)
    gathered = Gathered("tokens", tokenizer, keep_rows=keep_rows)
    gathered.labels = labels
    framing = framing_of(tokenizer)
    counts: Counter[str] = Counter()
    start = 0
    for end in ends:
        for sentence in sentences[start:end]:
            try:
                targets = [_number(tag, sentence, numbers) for tag in sentence.tags]
                cuts = cut_words(sentence.words, tokenizer, framing, settings.sequence_length, where=sentence.row.where)
            except DataError as error:
                intake.reject(error)
                continue
            gathered.taken += 1
            gathered.notes["cut_documents"] += len(cuts) > 1
            gathered.notes["words_without_token"] += len(targets) - len({w for c in cuts for w in c.words if w >= 0})
            for number, cut in enumerate(cuts):
                name = f"{sentence.row.name}#{number}" if number else sentence.row.name
                along = _targets(cut, targets, labels.names, every_piece=settings.labels.every_piece)
                shown = {"tokens": list(sentence.words), "tags": list(sentence.tags)} if not number else {}
                gathered.add(name, cut.ids, targets=along, row=shown, second=len(cut.ids))
            counts.update(labels.names[target] for target in targets)
        gathered.ends.append(len(gathered))
        start = end
    gathered.counts = {name: counts[name] for name in labels.names}
    if like is None:
        _refuse_one_tag(gathered, sources)
    return gathered


def cut_words(
    words: Sequence[str], tokenizer: Tokenizer, framing: Framing, length: int, *, where: str = "the words"
) -> list[Cut]:
    """A sentence as sequences of at most `length` tokens, cut between words."""
    text, starts = " ".join(words), []
    at = 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    ids, offsets = tokenizer.guarded_offsets([text])
    owners = _owners(text, offsets, starts)
    room = framing.room(length, pair=False)
    cuts: list[Cut] = []
    first = 0
    while first < len(ids):
        last = min(first + room, len(ids))
        if last < len(ids):
            while last > first and owners[last] == owners[last - 1]:
                last -= 1
            if last == first:
                raise DataError(
                    "a word has more tokens than a row holds",
                    where=where,
                    value=words[owners[first]],
                    fix="raise data.sequence_length, or remove the row",
                )
        framed = framing.frame(ids[first:last])
        before = framed.starts[0]
        after = len(framed.ids) - before - (last - first)
        cuts.append(Cut(framed.ids, [-1] * before + owners[first:last] + [-1] * after))
        first = last
    return cuts


def _owners(text: str, offsets: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """For each token the word in which its first character that is no space lies; -1 for spaces alone."""
    owners: list[int] = []
    word = 0
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        if start == end:
            owners.append(-1)
            continue
        while word + 1 < len(starts) and starts[word + 1] <= start:
            word += 1
        owners.append(word)
    return owners


def _targets(cut: Cut, tags: Sequence[int], names: Sequence[str], *, every_piece: bool) -> list[int]:
    """For each token the number of its tag, or IGNORE."""
    firsts = set(cut.first_tokens().values())
    numbers = {name: number for number, name in enumerate(names)}
    found = []
    for place, word in enumerate(cut.words):
        if word < 0 or not (every_piece or place in firsts):
            found.append(IGNORE)
        elif place in firsts:
            found.append(tags[word])
        else:
            name = names[tags[word]]
            found.append(numbers.get(f"I-{name[2:]}", tags[word]) if name.startswith("B-") else tags[word])
    return found


def _sentences(source: Source, settings: LabelSettings, intake: Intake) -> Iterator[Tagged]:
    for row in read_rows(source, intake):
        try:
            words, tags = _list(row, settings.words, WORDS, "words"), _list(row, settings.tags, TAGS, "tags")
            found = Tagged(row, [_word(word, row) for word in words], [_tag(tag, row, settings.names) for tag in tags])
            if len(words) != len(tags):
                raise DataError(
                    "there must be one tag for each word",
                    where=row.where,
                    value=f"{len(words)} words, {len(tags)} tags",
                    fix="correct the row, or remove it",
                )
        except DataError as error:
            intake.reject(error)
            continue
        intake.formats["sentences of tagged words"] += 1
        yield found


def _list(row: Row, wanted: str | None, usual: Sequence[str], what: str) -> list[object]:
    name = wanted or next((name for name in usual if name in row.values), None)
    if name is None or name not in row.values:
        near = next((one for one in row.values if nearest(str(one), usual)), None)
        raise DataError(
            f"the row has no column {wanted!r}" if wanted else f"the row has no column for the {what}",
            where=row.where,
            value=f"columns: {', '.join(map(str, row.values)) or 'none'}",
            fix=f"name it: data.labels.{what}={near or 'COLUMN'}",
        )
    value = row.values[name]
    if not isinstance(value, list) or not value:
        raise DataError(
            f"the column {name!r} holds no list",
            where=row.where,
            value=value if value else "nothing",
            fix='write {"tokens": ["a", "b"], "tags": ["O", "O"]}',
        )
    return value


def _word(value: object, row: Row) -> str:
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if isinstance(value, str) else f"is no text but {kind_of(value)}"
        raise DataError(f"a word {problem}", where=row.where, value=value, fix="remove it and its tag")
    return value


def _tag(value: object, row: Row, names: Mapping[str, str]) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError("a tag is empty", where=row.where, value=value, fix="write a tag; O for words outside of all")
    return names.get(str(value), str(value))


def _tag_set(sentences: Sequence[Tagged]) -> tuple[str, ...]:
    """O first, the rest in a stable order."""
    found = {tag for sentence in sentences for tag in sentence.tags}
    return (*(["O"] if "O" in found else []), *in_order(found - {"O"}))


def _number(tag: str, sentence: Tagged, numbers: Mapping[str, int]) -> int:
    if tag not in numbers:
        near = nearest(tag, numbers)
        raise DataError(
            "the tag does not occur in the training data",
            where=sentence.row.where,
            value=tag,
            fix=f"did you mean {near}?" if near else f"known are {', '.join(list(numbers)[:20])}",
        )
    return numbers[tag]


def _refuse_one_tag(gathered: Gathered, sources: Sequence[Source]) -> None:
    present = [name for name, count in gathered.counts.items() if count]
    if len(gathered) and len(present) < 2:
        raise DataError(
            "all words have the same tag, so there is nothing to tell apart",
            where=", ".join(source.path for source in sources),
            value=", ".join(present),
            fix="add sentences with other tags, or name the right column (data.labels.tags)",
        )
