"""Messages of the OpenAI format: checked one by one, and brought into the form that chat templates take.

Content parts of the type text become one text, arguments of tool calls (JSON inside JSON) become objects, and the
single `function_call` of 2023 becomes a list of `tool_calls`. `weight: 0` means the same as `train: false`, and
`weight: 0.5` that the tokens of an answer count half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data.intake import Row
from trivium.data.json_rows import DECODER
from trivium.errors import DataError
from trivium.nearest import nearest

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template; those of the assistant are trained unless they say `train: false`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def conversation(messages: Any, row: Row, *, tools: Any = None, field: str = "messages") -> Conversation:
    """Messages in the OpenAI format, checked one by one."""
    checked = [_message(message, at) for message, at in listed_messages(messages, row, field)]
    _check_order(checked, row, field)
    return Conversation(checked, _tools(tools, row))


def message_list(row: Row, field: str) -> list[dict[str, Any]]:
    """A field that holds messages, each checked, in any order."""
    return [_message(message, at) for message, at in listed_messages(row.values.get(field), row, field)]


def continued(
    prompt: Sequence[dict[str, Any]], answer: Sequence[dict[str, Any]], row: Row, field: str, *, tools: Any = None
) -> Conversation:
    """A conversation of which only the answer is trained, not what the assistant said in the prompt."""
    before = [{**message, "train": False} if message["role"] == "assistant" else message for message in prompt]
    if not any(message["role"] == "assistant" for message in answer):
        raise _no_answer(row.where, field)
    return conversation([*before, *answer], row, tools=tools, field=field)


def with_system(messages: Sequence[Any], system: str | None) -> list[Any]:
    """The messages, after a system message if they have none."""
    roles = [message.get("role") for message in messages if isinstance(message, Mapping)]
    if system is None or "system" in roles or "developer" in roles:
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def listed_messages(value: Any, row: Row, field: str) -> list[tuple[dict[str, Any], str]]:
    """The messages of a field and the name of each; tables hold the list as JSON text."""
    listed = parse_inside(value, row.where, field) if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed:
        raise DataError(
            f"the field {field!r} must be a list of at least one message",
            where=row.where,
            value=value,
            fix='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    named = []
    for number, message in enumerate(listed, 1):
        at = f"{row.where}, {field} {number}"
        if not isinstance(message, dict):
            raise DataError(
                f"a message is an object, not {kind_of(message)}",
                where=at,
                value=message,
                fix='write {"role": "user", "content": "..."}',
            )
        named.append(({key: item for key, item in message.items() if item is not None}, at))
    return named


def _message(message: dict[str, Any], at: str) -> dict[str, Any]:
    """A message of the OpenAI format as chat templates take it."""
    role = message.get("role")
    if role not in ROLES:
        fix = use_one_of(role, ROLES) if role else 'give every message a "role"'
        raise DataError("the role of a message is missing or not known", where=at, value=role, fix=fix)
    content, calls = _content(message.get("content"), at), _calls(message, at)
    if not content.strip() and role in ("user", "assistant") and not calls:
        raise DataError(
            f"a message of the {role} is empty",
            where=at,
            value=content,
            fix="remove the message or the row, or write its content",
        )
    rewritten = ("content", "tool_calls", "function_call", "train", "weight")
    kept = {key: item for key, item in message.items() if key not in rewritten}
    calling = {"tool_calls": calls} if calls else {}
    return {**kept, "content": content, **calling, **_training(message, role, at)}


def _content(content: Any, at: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
        kinds = sorted({str(part.get("type")) if isinstance(part, dict) else kind_of(part) for part in content})
        raise DataError(
            "a message holds something other than text",
            where=at,
            value=", ".join(kinds),
            fix="only parts of the type text can be trained on; remove the others",
        )
    raise DataError(
        f"the content of a message is no text but {kind_of(content)}",
        where=at,
        value=content,
        fix="write the content as a string",
    )


def _calls(message: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    if "function_call" in message:  # the form of 2023: one call, without an id
        return [_call(message["function_call"], at)]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError(
            'the "tool_calls" of a message are no list', where=at, value=calls, fix="write a list, also for one call"
        )
    return [_call(call, at) for call in calls]


def _call(call: Any, at: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(
            "a tool call has no function with a name",
            where=at,
            value=call,
            fix='write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # JSON inside JSON, as the OpenAI API returns it; templates expect the object
        arguments = parse_inside(arguments, at, "arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise DataError(
            "the arguments of a tool call are no object",
            where=at,
            value=arguments,
            fix='write {"arguments": {"name": value, ...}}',
        )
    rest = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **rest, "function": {**function, "arguments": arguments}}


def _training(message: Mapping[str, Any], role: str, at: str) -> dict[str, Any]:
    """What the message itself says of its training: `train`, or the `weight` of the OpenAI format."""
    train, weight = message.get("train"), message.get("weight")
    number = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf
    if (weight is not None and not (number and train is None)) or not (train is None or isinstance(train, bool)):
        raise DataError(
            'a message is trained or not ("train" is true or false), or counts ("weight" is a number from 0 on)',
            where=at,
            value=f"train: {train}, weight: {weight}",
            fix='leave it out, or write "train": false for an answer that must not be learnt',
        )
    if (train or weight) and role != "assistant":
        raise DataError(
            "only messages of the assistant can be trained",
            where=at,
            value=f"role {role}, train: true",
            fix='remove "train" or "weight" from this message; data.chat.train_on names roles that are trained',
        )
    if weight == 0:
        return {"train": False}
    if weight not in (None, 1):
        return {"weight": weight}
    return {} if train is None else {"train": train}


def _check_order(messages: Sequence[Mapping[str, Any]], row: Row, field: str) -> None:
    roles = [message["role"] for message in messages]
    first = next((place for place, role in enumerate(roles) if role not in ("system", "developer")), 0)
    if roles[first] == "assistant":
        raise DataError(
            "the conversation begins with the assistant, so there is nothing it answers to",
            where=f"{row.where}, {field} {first + 1}",
            value=messages[first]["content"],
            fix="begin with a user message, or remove this one",
        )
    for place, role in enumerate(roles):
        before = messages[place - 1] if place else {}
        if role == "tool" and not (before.get("tool_calls") or before.get("role") == "tool"):
            raise DataError(
                "a tool answers, but no tool was called",
                where=f"{row.where}, {field} {place + 1}",
                value=messages[place]["content"],
                fix="put the assistant's message with tool_calls before it",
            )
    if "assistant" not in roles:
        raise _no_answer(row.where, field)


def _no_answer(where: str, field: str) -> DataError:
    return DataError(
        f"no message of the assistant is in {field!r}, so there is nothing to learn",
        where=where,
        fix="add the answer, or remove the row",
    )


def _tools(value: Any, row: Row) -> list[dict[str, Any]] | None:
    tools = parse_inside(value, row.where, "tools") if isinstance(value, str) and value.strip() else value
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            'the "tools" must be a list of objects',
            where=row.where,
            value=value,
            fix='write [{"type": "function", "function": {"name": "...", "parameters": {...}}}]',
        )
    return tools


def parse_inside(value: Any, where: str, what: str) -> Any:
    """JSON inside a string, as tables and tool calls hold it."""
    try:
        return DECODER.decode(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"the text of {what!r} is not valid JSON: {problem}",
            where=where,
            value=value,
            fix="write it with a JSON library",
        ) from None


def use_one_of(name: Any, known: Iterable[str]) -> str:
    """The fix for a word that is not known."""
    near = nearest(name, list(known)) if isinstance(name, str) else None
    return f"did you mean {near}?" if near else f"use one of {', '.join(known)}"


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(
        type(value), "a number" if isinstance(value, int | float) else "nothing"
    )
