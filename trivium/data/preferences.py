"""Rows of preferences: two answers to one prompt, the better one first.

    {"prompt": "...", "chosen": "...", "rejected": "..."}       plain text, the end token follows each answer
    the same with lists of messages                             conversations; only the answers are trained
    {"chosen": [...], "rejected": [...]}                        whole conversations: what both begin with is the prompt
    {"chosen": "\\n\\nHuman: ...", "rejected": "..."}             the dialogues of Anthropic's HH, as text
    {"instruction": "...", "input": "...", "chosen", "rejected"}   LLaMA-Factory, after Alpaca
    {"conversations": [...], "chosen": {...}, "rejected": {...}}   LLaMA-Factory, after ShareGPT

A `margin` (how much better the chosen answer is) becomes a number of the sample. Unpaired, rated and ranked answers
have shapes of their own: `trivium data convert` makes pairs of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trivium.data.instructions import (
    ALPACA,
    SHAREGPT,
    Completion,
    Example,
    Shape,
    encode_example,
    note_unused,
    recognised,
    text_field,
)
from trivium.data.intake import Intake, Row
from trivium.data.messages import continued, message_list, parse_inside
from trivium.data.samples import Sample, TokenSequence
from trivium.errors import DataError
from trivium.recipe import ChatSettings

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

Pair = tuple[Example, Example]

_TURN = re.compile(r"\n\n(Human|Assistant):")


def encode_row(
    row: Row, *, tokenizer: Tokenizer, shape: str, intake: Intake, chat: ChatSettings | None = None
) -> Sample:
    """The two sequences (chosen, rejected) of a row; only the answers are trained.

    `shape` is "auto": the shape names of instructions do not apply to preferences.
    """
    if shape != "auto":
        raise DataError(
            "preferences have shapes of their own", where=row.where, value=f"format: {shape}", fix="leave format out"
        )
    name = recognised(row, SHAPES)
    found = SHAPES[name]
    pair = found.read(row)
    if pair[0] == pair[1]:
        raise DataError(
            "the chosen and the rejected answer are the same, so there is nothing to prefer",
            where=row.where,
            value=row.values["chosen"],
            fix="remove the row",
        )
    encoded = [encode_example(example, tokenizer, where=row.where, chat=chat or ChatSettings()) for example in pair]
    intake.formats[name] += 1
    note_unused(row, (*found.fields, *found.optional), intake)
    for warning in {warning for chat in encoded for warning in chat.warnings}:
        intake.formats[warning] += 1
    sequences = [TokenSequence(chat.ids, chat.trained) for chat in encoded]
    return Sample(row.name, sequences, fields=_margin(row))


def _read_pair(row: Row) -> Pair:
    """With a prompt of its own."""
    prompt, chosen, rejected = (row.values[field] for field in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        before = text_field(row, "prompt")
        return Completion(before, text_field(row, "chosen")), Completion(before, text_field(row, "rejected"))
    asked = message_list(row, "prompt") if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    first, second = _answer(row, "chosen"), _answer(row, "rejected")
    if first[0]["role"] in ("user", "system", "developer"):  # the answers repeat the prompt, as in UltraFeedback
        return _read_conversations(row)
    return _both(asked, first, second, row)


def _read_conversations(row: Row) -> Pair:
    """Whole conversations; what both begin with is the prompt."""
    if isinstance(row.values["chosen"], str) and isinstance(row.values["rejected"], str):
        chosen, rejected = _dialogue(row, "chosen"), _dialogue(row, "rejected")
    else:
        chosen, rejected = message_list(row, "chosen"), message_list(row, "rejected")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == min(len(chosen), len(rejected)) and same:
        same -= 1  # one conversation is the beginning of the other: its last message is its answer
    if not any(message["role"] == "user" for message in chosen[:same]):
        raise DataError(
            "the chosen and the rejected conversation do not begin with the same question",
            where=row.where,
            value=chosen[0]["content"],
            fix="give the prompt in a field of its own, or the same first messages in both",
        )
    return _both(chosen[:same], chosen[same:], rejected[same:], row)


def _read_alpaca(row: Row) -> Pair:
    """LLaMA-Factory's instruction, input and the two answers."""
    given: dict[str, Any] = {
        name: row.values[name] for name in ("instruction", "input", "system", "history") if name in row.values
    }
    pair = [ALPACA.read(Row({**given, "output": row.values[side]}, row.where, row.name)) for side in _SIDES]
    return _both(pair[0].messages[:-1], pair[0].messages[-1:], pair[1].messages[-1:], row)


def _read_sharegpt(row: Row) -> Pair:
    """LLaMA-Factory's conversation and the two messages that could follow it."""
    sides = []
    for side in _SIDES:
        answer = row.values[side]
        answers = answer if isinstance(answer, list) else [answer]
        listed = [*parse_inside(row.values["conversations"], row.where, "conversations"), *answers]
        given: dict[str, Any] = {name: row.values[name] for name in ("system", "tools") if name in row.values}
        sides.append(SHAREGPT.read(Row({**given, "conversations": listed}, row.where, row.name)).messages)
    common = min(map(len, sides)) - 1
    return _both(sides[0][:common], sides[0][common:], sides[1][common:], row)


_SIDES = ("chosen", "rejected")

SHAPES: dict[str, Shape] = {
    "preference pair after an instruction": Shape(
        ("instruction", "chosen", "rejected"), ("input", "system", "history", "margin"), _read_alpaca
    ),
    "preference pair after a conversation": Shape(
        ("conversations", "chosen", "rejected"), ("system", "tools", "margin"), _read_sharegpt
    ),
    "preference pair": Shape(("prompt", "chosen", "rejected"), ("margin", "tools"), _read_pair),
    "preference pair of conversations": Shape(("chosen", "rejected"), ("margin", "tools"), _read_conversations),
}


def _both(prompt: Sequence[dict[str, Any]], chosen: Sequence[Any], rejected: Sequence[Any], row: Row) -> Pair:
    tools = row.values.get("tools")
    return (
        continued(prompt, chosen, row, "chosen", tools=tools),
        continued(prompt, rejected, row, "rejected", tools=tools),
    )


def _answer(row: Row, field: str) -> list[dict[str, Any]]:
    if isinstance(row.values[field], str):
        return [{"role": "assistant", "content": text_field(row, field)}]
    return message_list(row, field)


def _dialogue(row: Row, field: str) -> list[dict[str, Any]]:
    """Messages from text with the turns `Human:` and `Assistant:`."""
    text = text_field(row, field)
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise DataError(
            f"the field {field!r} is text without a prompt, so it is not known where the answer begins",
            where=row.where,
            value=text,
            fix='add the field "prompt", or write the turns as lists of messages',
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]


def _margin(row: Row) -> dict[str, float]:
    margin = row.values.get("margin")
    if margin is None:
        return {}
    try:
        value = math.nan if isinstance(margin, bool) else float(margin)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            'the "margin" is no number', where=row.where, value=margin, fix="write a number, or leave it out"
        )
    return {"margin": value}
