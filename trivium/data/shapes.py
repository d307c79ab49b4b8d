"""What a row means, whatever it looks like: every shape that is known, recognised by its fields and read into one form.

    messages, sharegpt, alpaca, prompt_completion   a `Conversation`, or a `Completion` of plain text
    preferences, ranked, ratings, comparison ...    `Ranked`: answers to a prompt in tiers, the best first
    kto                                             `Judged`: one answer that is good or is not
    pairs                                           `Rewritten`: a text to read and the text to write
    labels                                          `Labelled`: one or two texts and a label
    text                                            `Plain`

Questions about a context and tagged words are recognised, and read by `spans` and `tagging`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data import instructions, preferences
from trivium.data.instructions import Completion, text_field
from trivium.data.intake import Row
from trivium.data.labels import LABEL, PAIRS, TEXT
from trivium.data.messages import Conversation, kind_of, message_list, parse_inside
from trivium.data.pairs import NAMES
from trivium.errors import DataError
from trivium.nearest import nearest

Said = str | list[dict[str, Any]]
"""Plain text, or messages."""


@dataclass(frozen=True)
class Ranked:
    """Answers to one prompt. tiers: numbers of the answers, the best ones first; those of one tier are equally good.

    ratings: a number for each answer, where the row states them.
    """

    prompt: Said
    responses: list[Said]
    tiers: list[list[int]]
    ratings: list[float] | None = None


@dataclass(frozen=True)
class Judged:
    """One answer, and whether it is good."""

    prompt: Said
    completion: Said
    good: bool


@dataclass(frozen=True)
class Rewritten:
    """A text to read and the text to write."""

    source: str
    target: str


@dataclass(frozen=True)
class Labelled:
    """One text, or two, and what is said of it."""

    texts: tuple[str, ...]
    label: Any


@dataclass(frozen=True)
class Plain:
    """A text."""

    text: str


Item = Conversation | Completion | Ranked | Judged | Rewritten | Labelled | Plain


@dataclass(frozen=True)
class RowShape:
    """How a shape is recognised and read.

    known_by: whether a row has this shape, from its fields alone.
    read:     the row in its common form, and the fields that were read. None: known, but read elsewhere.
    """

    known_by: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Row], tuple[Item, set[str]]] | None


def shape_of(row: Row) -> str:
    """The name of the row's shape; DataError where none is known."""
    for name, shape in SHAPES.items():
        if shape.known_by(row.values):
            return name
    fields = ", ".join(map(str, row.values)) or "none"
    near = next((found for name in row.values if (found := nearest(str(name), _COMMON)) and found != name), None)
    raise DataError(
        "the row has no shape that is known",
        where=row.where,
        value=f"fields: {fields}",
        fix=f"did you mean {near!r}?" if near else "rename the fields: messages, prompt and completion, text and label",
    )


def checked_shape(row: Row, shape: str = "auto") -> str:
    """The name of the row's shape; DataError where that is not `shape`, or none is known."""
    if shape == "auto":
        return shape_of(row)
    if not SHAPES[shape].known_by(row.values):
        actual = shape_of(row)
        raise DataError(f"the row is not of the shape {shape}", where=row.where, value=f"it looks like {actual}")
    return shape


def read_item(row: Row, shape: str = "auto") -> tuple[str, Item, dict[str, Any]]:
    """(shape, what the row says, the fields it does not need). DataError names the row and the fix."""
    name = checked_shape(row, shape)
    found = SHAPES[name]
    if found.read is None:
        raise DataError(
            f"rows of the shape {name} stand for themselves and are not converted",
            where=row.where,
            fix="train on them as they are",
        )
    item, used = found.read(row)
    return name, item, {field: value for field, value in row.values.items() if field not in used}


def texts_of(item: Item) -> Iterator[str]:
    """Everything in it that is text, in order."""
    if isinstance(item, Plain):
        yield item.text
    elif isinstance(item, Conversation):
        yield from _said(item.messages)
    elif isinstance(item, Completion):
        yield from (item.prompt, item.completion)
    elif isinstance(item, Rewritten):
        yield from (item.source, item.target)
    elif isinstance(item, Labelled):
        yield from item.texts
    elif isinstance(item, Judged):
        yield from (*_said(item.prompt), *_said(item.completion))
    else:
        yield from _said(item.prompt)
        for response in item.responses:
            yield from _said(response)


def _said(said: Said) -> Iterator[str]:
    if isinstance(said, str):
        yield said
    else:
        yield from (message["content"] for message in said if message.get("content"))


# Recognising


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda values: all(values.get(name) not in (None, "") for name in names)


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if values.get(name) not in (None, "")), None)


_PROMPTS = ("prompt", "instruction", "question", "input", "query")
_LISTS = ("responses", "generations", "answers", "completions")
_RATINGS = ("ratings", "rating", "scores", "score")
_TWO = (
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("response_1", "response_2"),
    ("response 1", "response 2"),
    ("response_0", "response_1"),
    ("answer1", "answer2"),
    ("conversation_a", "conversation_b"),
)
_WINNERS = ("winner", "better_response_id", "preference", "label", "preferred")
_FLAGS = ("kto_tag", "label")


def _rated(values: Mapping[str, Any]) -> bool:
    return bool(_first(values, _PROMPTS) and _first(values, _LISTS[:2]) and _first(values, _RATINGS))


def _two(values: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _TWO if all(name in values for name in pair)), None)


def _compared(values: Mapping[str, Any]) -> bool:
    return _two(values) is not None and any(values.get(name) not in (None, "") for name in _WINNERS)


def _flagged(values: Mapping[str, Any]) -> bool:
    asked = any(_has(*fields)(values) for fields in (("prompt", "completion"), ("instruction", "output")))
    talk = _first(values, ("messages", "conversations")) is not None
    return (asked or talk) and any(_is_flag(values.get(name)) for name in _FLAGS)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _argilla(values: Mapping[str, Any]) -> bool:
    ranking = values.get("ranking")
    return isinstance(ranking, list) and bool(ranking) and isinstance(ranking[0], Mapping) and "rank" in ranking[0]


def _pair_columns(values: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in NAMES if all(isinstance(values.get(name), str) for name in pair)), None)


def _translation(values: Mapping[str, Any]) -> bool:
    found = values.get("translation")
    return isinstance(found, Mapping) and len(found) == 2


def _text_columns(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    pair = next((pair for pair in PAIRS if all(name in values for name in pair)), None)
    if pair is not None:
        return pair
    one = next((name for name in TEXT if isinstance(values.get(name), str)), None)
    return None if one is None else (one,)


def _labelled(values: Mapping[str, Any]) -> bool:
    return _text_columns(values) is not None and any(name in values for name in LABEL)


# Reading


def _read_instruction(name: str) -> Callable[[Row], tuple[Item, set[str]]]:
    shape = instructions.SHAPES[name]
    return lambda row: (shape.read(row), {*shape.fields, *shape.optional})


def _read_preferences(row: Row) -> tuple[Item, set[str]]:
    name = instructions.recognised(row, preferences.SHAPES)
    shape = preferences.SHAPES[name]
    chosen, rejected = shape.read(row)
    used = {*shape.fields, *shape.optional} - {"margin"}
    if isinstance(chosen, Completion) and isinstance(rejected, Completion):
        item = Ranked(chosen.prompt, [chosen.completion, rejected.completion], [[0], [1]])
        return _with_ratings(item, row, used)
    first, second = _untrained(chosen), _untrained(rejected)
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    same = min(same, len(first) - 1, len(second) - 1)
    if chosen.tools:
        raise DataError("preferences with tools are not converted", where=row.where, fix="train on them as they are")
    return _with_ratings(Ranked(first[:same], [first[same:], second[same:]], [[0], [1]]), row, used)


def _with_ratings(item: Ranked, row: Row, used: set[str]) -> tuple[Item, set[str]]:
    names = ("chosen_rating", "rejected_rating")
    ratings = [row.values.get(name) for name in names]
    if all(isinstance(rating, int | float) and not isinstance(rating, bool) for rating in ratings):
        numbers = [float(rating) for rating in ratings if isinstance(rating, int | float)]
        return Ranked(item.prompt, item.responses, item.tiers, numbers), {*used, *names}
    return item, used


def _untrained(example: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if key != "train"} for message in example.messages]


def _read_ranked(row: Row) -> tuple[Item, set[str]]:
    """`prompt`, `responses`, `ranking` as tiers of numbers: C > B = D > A is [[2], [1, 3], [0]]."""
    responses = _responses(row, "responses")
    tiers = parse_inside(row.values["ranking"], row.where, "ranking")
    numbers = [one for tier in tiers for one in tier] if _is_tiers(tiers) else []
    if sorted(numbers) != list(range(len(responses))):
        raise DataError(
            'the "ranking" does not name each answer once',
            where=row.where,
            value=tiers,
            fix=f"write tiers of the numbers 0 to {len(responses) - 1}, the best first: [[2], [1, 3], [0]]",
        )
    used = {"prompt", "responses", "ranking"}
    if row.values.get("ratings") is None:
        return Ranked(_prompt(row, "prompt"), responses, tiers), used
    return Ranked(_prompt(row, "prompt"), responses, tiers, _numbers(row, "ratings", len(responses))), {
        *used,
        "ratings",
    }


def _is_tiers(tiers: Any) -> bool:
    return isinstance(tiers, list) and all(
        isinstance(tier, list) and tier and all(type(one) is int for one in tier) for tier in tiers
    )


def _read_rated(row: Row) -> tuple[Item, set[str]]:
    prompt, answers, ratings = (_first(row.values, names) for names in (_PROMPTS, _LISTS, _RATINGS))
    assert prompt and answers and ratings
    responses = _responses(row, answers)
    numbers = _numbers(row, ratings, len(responses))
    return Ranked(_prompt(row, prompt), responses, _tiers(numbers), numbers), {prompt, answers, ratings}


def _read_ultrafeedback(row: Row) -> tuple[Item, set[str]]:
    """`instruction` and `completions`, each with a `response` and an `overall_score`."""
    listed = _objects(row, parse_inside(row.values["completions"], row.where, "completions"), "completion")
    ratings = []
    for place, one in enumerate(listed, 1):
        score = next((one[name] for name in ("overall_score", "fine-grained_score", "score") if name in one), None)
        ratings.append(_number(score, f"{row.where}, completion {place}", "score"))
    responses: list[Said] = [
        _nonempty(one.get("response"), f"{row.where}, completion {place}") for place, one in enumerate(listed, 1)
    ]
    prompt = _prompt_field(row)
    return Ranked(_prompt(row, prompt), responses, _tiers(ratings), ratings), {prompt, "completions"}


def _read_replies(row: Row) -> tuple[Item, set[str]]:
    """OpenAssistant: `replies`, each with a `text` and a `rank` (0 is best)."""
    inside = row.values["prompt"] if isinstance(row.values.get("prompt"), Mapping) else row.values
    replies = _objects(row, inside["replies"], "reply")
    ranks = [-_number(one.get("rank"), f"{row.where}, reply {n}", "rank") for n, one in enumerate(replies, 1)]
    responses: list[Said] = [_nonempty(one.get("text"), f"{row.where}, reply {n}") for n, one in enumerate(replies, 1)]
    prompt = _nonempty(inside.get("text") or inside.get("prompt"), row.where)
    return Ranked(prompt, responses, _tiers(ranks)), {"prompt", "text", "replies"}


def _read_argilla(row: Row) -> tuple[Item, set[str]]:
    """Argilla: fields `response-1`, `response-2` ... and `ranking` as a list of {"value", "rank"}."""
    ranked = [(str(one.get("value")), one.get("rank")) for one in _objects(row, row.values["ranking"], "rank")]
    missing = [name for name, _ in ranked if not isinstance(row.values.get(name), str)]
    if missing:
        raise DataError(
            'the "ranking" names an answer that the row does not have', where=row.where, value=missing[0],
            fix="give each answer a field of that name",
        )  # fmt: skip
    ranks = [-_number(rank, row.where, "rank") for _, rank in ranked]
    prompt = _prompt_field(row)
    names = [name for name, _ in ranked]
    responses: list[Said] = [_nonempty(row.values[name], row.where) for name in names]
    return Ranked(_prompt(row, prompt), responses, _tiers(ranks)), {prompt, "ranking", *names}


_BETTER = {
    0: ("0", "a", "model_a", "first"),
    1: ("1", "b", "model_b", "second"),
    2: ("2", "tie", "both", "tie (bothbad)", "tie (both bad)"),
}


def _read_comparison(row: Row) -> tuple[Item, set[str]]:
    """Two answers and which is better: 0 or a, 1 or b, and 2 or tie."""
    pair, winner = _two(row.values), _first(row.values, _WINNERS)
    assert pair and winner
    written = str(row.values[winner]).strip().lower()
    better = next(
        (number for number, names in _BETTER.items() if written in names or written == _pair_name(pair, number)), None
    )
    if better is None:
        raise DataError(
            "it is not known which answer is better", where=row.where, value=row.values[winner],
            fix="write 0, 1 or 2 (a tie), or a, b or tie",
        )  # fmt: skip
    tiers = [[0, 1]] if better == 2 else [[better], [1 - better]]
    if pair[0] == "conversation_a":
        one, other = message_list(row, pair[0]), message_list(row, pair[1])
        asked = one[:-1]
        if asked != other[:-1]:
            asked = one[:1]
        return Ranked(asked, [one[len(asked) :], other[len(asked) :]], tiers), {*pair, winner}
    prompt = _prompt_field(row)
    responses: list[Said] = [text_field(row, name) for name in pair]
    return Ranked(_prompt(row, prompt), responses, tiers), {prompt, *pair, winner}


def _pair_name(pair: tuple[str, str], number: int) -> str:
    """The field of answer 0 or 1, as some files name the better one."""
    return pair[number] if number < 2 else ""


def _read_judged(row: Row) -> tuple[Item, set[str]]:
    """KTO: a prompt, a completion, and whether it is good; LLaMA-Factory's `kto_tag` beside any instruction."""
    flag = next(name for name in _FLAGS if _is_flag(row.values.get(name)))
    value = row.values[flag]
    good = value if isinstance(value, bool) else value.strip().lower() == "true"
    name = instructions.recognised(row, instructions.SHAPES)
    shape = instructions.SHAPES[name]
    example = shape.read(row)
    used = {*shape.fields, *shape.optional, flag}
    if isinstance(example, Completion):
        return Judged(example.prompt, example.completion, good), used
    if example.tools:
        raise DataError("judged answers with tools are not converted", where=row.where, fix="train on them as they are")
    messages = _untrained(example)
    return Judged(messages[:-1], messages[-1:], good), used


def _read_pair(row: Row) -> tuple[Item, set[str]]:
    columns = _pair_columns(row.values)
    assert columns
    return Rewritten(text_field(row, columns[0]), text_field(row, columns[1])), set(columns)


def _read_translation(row: Row) -> tuple[Item, set[str]]:
    inside = Row(dict(row.values["translation"]), row.where, row.name)
    source, target = inside.values
    return Rewritten(text_field(inside, source), text_field(inside, target)), {"translation"}


def _read_label(row: Row) -> tuple[Item, set[str]]:
    columns = _text_columns(row.values)
    assert columns
    name = next(name for name in LABEL if name in row.values)
    value = row.values[name]
    if value in (None, "", []):
        raise DataError("the label is empty", where=row.where, value=value, fix="write the label, or remove the row")
    return Labelled(tuple(text_field(row, column) for column in columns), value), {*columns, name}


def _read_text(row: Row) -> tuple[Item, set[str]]:
    return Plain(text_field(row, "text")), {"text"}


def _prompt_field(row: Row) -> str:
    found = _first(row.values, _PROMPTS)
    if found is None:
        raise DataError("the row has no prompt", where=row.where, fix=f"name it one of {', '.join(_PROMPTS)}")
    return found


def _objects(row: Row, listed: Sequence[Any], what: str) -> Sequence[Mapping[str, Any]]:
    """The entries of a list, all of which must be objects."""
    for place, one in enumerate(listed, 1):
        if not isinstance(one, Mapping):
            raise DataError(
                f"a {what} is no object but {kind_of(one)}",
                where=f"{row.where}, {what} {place}",
                value=one,
                fix="write it with its fields, or remove it",
            )
    return listed


def _prompt(row: Row, field: str) -> Said:
    value = row.values[field]
    return message_list(row, field) if isinstance(value, list) else text_field(row, field)


def _responses(row: Row, field: str) -> list[Said]:
    listed = parse_inside(row.values[field], row.where, field)
    if not isinstance(listed, list) or len(listed) < 2:
        raise DataError(
            f"the field {field!r} is no list of at least two answers", where=row.where, value=listed,
            fix='write ["first answer", "second answer"]',
        )  # fmt: skip
    found: list[Said] = []
    for place, one in enumerate(listed, 1):
        at = Row({"answer": one}, f"{row.where}, {field} {place}", row.name)
        found.append(message_list(at, "answer") if isinstance(one, list) else _nonempty(one, at.where))
    return found


def _nonempty(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if value is None or isinstance(value, str) else f"is no text but {kind_of(value)}"
        raise DataError(f"a text {problem}", where=where, value=value, fix="write the text, or remove the row")
    return value


def _numbers(row: Row, field: str, count: int) -> list[float]:
    listed = parse_inside(row.values[field], row.where, field)
    if not isinstance(listed, list) or len(listed) != count:
        raise DataError(
            f"the field {field!r} does not hold one number for each of the {count} answers", where=row.where,
            value=listed, fix="write one number for each answer",
        )  # fmt: skip
    return [_number(one, f"{row.where}, {field} {place}", "rating") for place, one in enumerate(listed, 1)]


def _number(value: Any, where: str, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"the {what} is no number", where=where, value=value, fix="write a number, or remove the row")
    return number


def _tiers(ratings: Sequence[float]) -> list[list[int]]:
    """Answers by their ratings, the highest first; equal ratings are a tie."""
    return [
        [number for number, rating in enumerate(ratings) if rating == value]
        for value in sorted(set(ratings), reverse=True)
    ]


def _completions(values: Mapping[str, Any]) -> bool:
    listed = values.get("completions")
    return isinstance(listed, list) and bool(listed) and isinstance(listed[0], Mapping) and "response" in listed[0]


def _replies(values: Mapping[str, Any]) -> bool:
    inside = values["prompt"] if isinstance(values.get("prompt"), Mapping) else values
    listed = inside.get("replies")
    return isinstance(listed, list) and bool(listed) and isinstance(listed[0], Mapping) and "rank" in listed[0]


SHAPES: dict[str, RowShape] = {
    "argilla": RowShape(_argilla, _read_argilla),
    "ranked": RowShape(_has("prompt", "responses", "ranking"), _read_ranked),
    "ultrafeedback": RowShape(_completions, _read_ultrafeedback),
    "openassistant": RowShape(_replies, _read_replies),
    "ratings": RowShape(_rated, _read_rated),
    "preferences": RowShape(_has("chosen", "rejected"), _read_preferences),
    "comparison": RowShape(_compared, _read_comparison),
    "kto": RowShape(_flagged, _read_judged),
    **{name: RowShape(_has(*shape.fields), _read_instruction(name)) for name, shape in instructions.SHAPES.items()},
    "questions": RowShape(_has("context", "question"), None),
    "tags": RowShape(lambda values: any(isinstance(values.get(name), list) for name in ("tokens", "words")), None),
    "translation": RowShape(_translation, _read_translation),
    "pairs": RowShape(lambda values: _pair_columns(values) is not None, _read_pair),
    "labels": RowShape(_labelled, _read_label),
    "prompts": RowShape(_has("prompt"), None),
    "text": RowShape(_has("text"), _read_text),
}
"""Every shape by its name, the more special ones first."""

_COMMON = ("messages", "conversations", "instruction", "output", "prompt", "completion", "chosen", "rejected",
           "responses", "ranking", "source", "target", "text", "label")  # fmt: skip
