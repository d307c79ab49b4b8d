"""Rows of instructions in the four common shapes, as conversations or as text with its continuation.

    messages           {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}        OpenAI
    sharegpt           {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}   ShareGPT
    alpaca             {"instruction": "...", "input": "...", "output": "...", "history": [[...]]}    Alpaca
    prompt_completion  {"prompt": "...", "completion": "..."}, both text or both lists of messages

Each row is recognised by its fields. Conversations go through the chat template; a prompt and completion that are
plain text do not, and the end token follows the completion. What the assistant says, or the completion, is trained.

Two messages of the user in a row are accepted (the template decides what to make of them); a conversation that begins
with the assistant, or has no answer at all, is an error, since there is nothing to learn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivium.data.intake import Intake, Row
from trivium.data.messages import (
    Conversation,
    continued,
    conversation,
    kind_of,
    listed_messages,
    message_list,
    parse_inside,
    use_one_of,
    with_system,
)
from trivium.data.samples import Sample, TokenSequence
from trivium.errors import DataError
from trivium.nearest import nearest
from trivium.recipe import ChatSettings
from trivium.tokenizers.chat import EncodedChat

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_MESSAGE_KEYS = frozenset((
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "train", "weight", "reasoning_content",
    "thinking", "reasoning", "from", "value",
))  # fmt: skip
_AS_IT_IS = ChatSettings()
_METADATA = frozenset(("id", "meta", "metadata", "source", "license", "licence"))


@dataclass(frozen=True)
class Completion:
    """Plain text and the text that follows it, which is trained."""

    prompt: str
    completion: str


Example = Conversation | Completion


def encode_row(
    row: Row, *, tokenizer: Tokenizer, shape: str, intake: Intake, chat: ChatSettings = _AS_IT_IS
) -> list[Sample]:
    """The tokens of a row and which of them are trained; with `chat.train_on: each` one sample for each answer.

    DataError names the row, the message and the fix.
    """
    name = recognised(row, SHAPES) if shape == "auto" else shape
    found = SHAPES[name]
    missing = [field for field in found.fields if field not in row.values]
    if missing:
        raise _unknown_shape(row, f"the row has no field {missing[0]!r}, which the format {name} needs", SHAPES)
    examples = _one_by_one(found.read(row)) if chat.train_on == "each" else [found.read(row)]
    encoded = [encode_example(example, tokenizer, where=row.where, chat=chat) for example in examples]
    intake.formats[name] += 1
    note_unused(row, (*found.fields, *found.optional), intake)
    if chat.system and any(isinstance(example, Completion) for example in examples):
        intake.formats["text that no template frames gets no data.chat.system"] += 1
    for warning in {warning for one in encoded for warning in one.warnings}:
        intake.formats[warning] += 1
    names = [row.name] if len(encoded) == 1 else [f"{row.name}#{number}" for number in range(len(encoded))]
    return [
        Sample(name, [TokenSequence(one.ids, one.trained, one.weights)])
        for name, one in zip(names, encoded, strict=True)
    ]


def encode_example(
    example: Example, tokenizer: Tokenizer, *, where: str, chat: ChatSettings = _AS_IT_IS
) -> EncodedChat:
    """The ids of an example, exactly as they stand in serving, and what is trained."""
    answers = [example.completion] if isinstance(example, Completion) else _answers(example)
    if any(answer.rstrip().endswith(tokenizer.eos_token) for answer in answers):
        raise DataError(
            "an answer ends with the end token written out, which is text to the model and not its end token",
            where=where,
            value=tokenizer.eos_token,
            fix="remove it from the text; the end token is added to every answer",
        )
    if isinstance(example, Conversation):
        return tokenizer.encode_chat(
            with_system(example.messages, chat.system),
            tools=example.tools,
            train_on="all" if chat.train_on == "each" else chat.train_on,
            prompt_weight=chat.prompt_loss_weight,
        )
    encoded = _encode_completion(example, tokenizer)
    if not chat.prompt_loss_weight:
        return encoded
    weights = [1.0 if flag else chat.prompt_loss_weight for flag in encoded.trained]
    return EncodedChat(encoded.ids, [True] * len(weights), encoded.warnings, weights)


def _one_by_one(example: Example) -> list[Example]:
    """Each answer that is trained with what stands before it, as the model is asked for it in serving."""
    if isinstance(example, Completion):
        return [example]
    answers = [
        index
        for index, message in enumerate(example.messages)
        if message["role"] == "assistant" and message.get("train") is not False
    ]
    cut = [
        [
            {**message, "train": False} if message["role"] == "assistant" else message
            for message in example.messages[:index]
        ]
        for index in answers
    ]
    if not cut:
        return [example]
    return [
        Conversation([*before, example.messages[index]], example.tools)
        for index, before in zip(answers, cut, strict=True)
    ]


def recognised(row: Row, shapes: Mapping[str, Shape]) -> str:
    """The first shape all of whose fields the row has; DataError if there is none."""
    for name, shape in shapes.items():
        if all(row.values.get(field) is not None for field in shape.fields):
            return name
    raise _unknown_shape(row, "the row has none of the known shapes", shapes)


def note_unused(row: Row, used: Iterable[str], intake: Intake) -> None:
    """Count the fields of a row that nothing reads, so that a misspelt one shows in the report."""
    for field in row.values.keys() - set(used) - _METADATA:
        intake.formats[f"field {field!r} is not used"] += 1
    for field in ("messages", "conversations"):
        messages = row.values.get(field)
        for message in messages if isinstance(messages, list) else []:
            for key in message.keys() - _MESSAGE_KEYS:
                intake.formats[f"message field {key!r} is only seen by the template"] += 1


def text_field(row: Row, field: str, *, optional: bool = False) -> str:
    """A field that holds text; empty only if it is optional."""
    value = row.values.get(field)
    if optional and value in (None, ""):
        return ""
    if not isinstance(value, str) or not value.strip():
        problem = "is empty" if value is None or isinstance(value, str) else f"is no text but {kind_of(value)}"
        raise DataError(
            f"the field {field!r} {problem}",
            where=row.where,
            value=value,
            fix="write the text as a string, or remove the row",
        )
    return value


# Shapes


@dataclass(frozen=True)
class Shape:
    """Fields by which rows of a shape are recognised, further fields it reads, and how."""

    fields: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row], Any]


def _read_messages(row: Row) -> Conversation:
    return conversation(row.values["messages"], row, tools=row.values.get("tools"))


def _read_sharegpt(row: Row) -> Conversation:
    messages: list[dict[str, Any]] = []
    for message, at in listed_messages(row.values["conversations"], row, "conversations"):
        messages.append(message if "role" in message else _from_sharegpt(message, at))
    system = text_field(row, "system", optional=True)
    before = [{"role": "system", "content": system}] if system else []
    return conversation([*before, *messages], row, tools=row.values.get("tools"), field="conversations")


def _from_sharegpt(message: dict[str, Any], at: str) -> dict[str, Any]:
    name, value = message.get("from"), message.get("value")
    role = _SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(
            'the sender of a message is not known (field "from")',
            where=at,
            value=name,
            fix=use_one_of(name, _SHAREGPT_ROLES),
        )
    rest = {key: item for key, item in message.items() if key not in ("from", "value")}
    if role == "function_call":
        return {**rest, "role": "assistant", "content": None, "function_call": parse_inside(value, at, "function_call")}
    return {**rest, "role": role, "content": value}


def _read_alpaca(row: Row) -> Conversation:
    system = text_field(row, "system", optional=True)
    messages = [{"role": "system", "content": system}] if system else []
    history = row.values.get("history") or []
    pairs = parse_inside(history, row.where, "history") if isinstance(history, str) else history
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(
                'the "history" must be a list of [question, answer] pairs',
                where=row.where,
                value=pair,
                fix='write {"history": [["question", "answer"], ...]}',
            )
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    instruction, given = text_field(row, "instruction"), text_field(row, "input", optional=True)
    question = f"{instruction}\n{given}" if given else instruction
    answer = text_field(row, "output")
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return conversation(messages, row, field="history")


def _read_prompt_completion(row: Row) -> Example:
    prompt, completion = row.values["prompt"], row.values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return continued(message_list(row, "prompt"), message_list(row, "completion"), row, "completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        raise DataError(
            "prompt and completion must both be text, or both be lists of messages",
            where=row.where,
            value=f"prompt is {kind_of(prompt)}, completion is {kind_of(completion)}",
            fix="write both in the same way",
        )
    return Completion(text_field(row, "prompt"), text_field(row, "completion"))


SHAREGPT = Shape(("conversations",), ("tools", "system"), _read_sharegpt)
ALPACA = Shape(("instruction", "output"), ("input", "system", "history"), _read_alpaca)
SHAPES: dict[str, Shape] = {
    "messages": Shape(("messages",), ("tools",), _read_messages),
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "prompt_completion": Shape(("prompt", "completion"), (), _read_prompt_completion),
}


def _answers(example: Conversation) -> list[str]:
    return [message["content"] for message in example.messages if message["role"] == "assistant"]


def _encode_completion(example: Completion, tokenizer: Tokenizer) -> EncodedChat:
    """The prompt's ids are those of serving, whatever follows them."""
    before = tokenizer.encode_prompt(example.prompt)
    if tokenizer.byte_level:
        after = tokenizer.encode(example.completion, eos=True)
        return EncodedChat([*before, *after], [False] * len(before) + [True] * len(after))
    # Elsewhere a text that stands alone can begin with a space of its own, so both are encoded together.
    ids, offsets = tokenizer.guarded_offsets([example.prompt + example.completion])
    flags = [end > len(example.prompt) for _, end in offsets]
    opening = before[: len(before) - len(tokenizer.encode(example.prompt))]
    return EncodedChat([*opening, *ids, tokenizer.eos_id], [False] * len(opening) + [*flags, True])


def _unknown_shape(row: Row, problem: str, shapes: Mapping[str, Shape]) -> DataError:
    wanted = "; ".join(" and ".join(shape.fields) for shape in shapes.values())
    found = ", ".join(map(str, row.values)) or "none"
    known = [field for shape in shapes.values() for field in shape.fields]
    near = next(
        (f"did you mean {near} instead of {name}? " for name in row.values if (near := nearest(name, known))), ""
    )
    return DataError(problem, where=row.where, value=f"fields: {found}", fix=f"{near}write {wanted}")
