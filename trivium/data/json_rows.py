"""JSON objects as rows, more strictly than the standard library reads them.

Duplicate keys, NaN and Infinity, and halves of surrogate pairs are errors here: each of them would silently become
something else on the way to the model.
"""

from __future__ import annotations

import json
import re
from typing import Any

from trivium.data.intake import Intake
from trivium.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(text: str, where: str, intake: Intake) -> dict[str, Any] | None:
    """A JSON object; None after the problem went to `intake`."""
    try:
        return checked_object(DECODER.decode(text), text, where)
    except DataError as error:
        intake.reject(error)
    except RecursionError:
        intake.reject(DataError("the JSON is nested too deeply", where=where, value=text, fix="flatten the row"))
    except ValueError as error:
        intake.reject(json_error(error, text, where))
    return None


def json_error(error: ValueError, text: str, where: str) -> DataError:
    """What is wrong with text that is not JSON."""
    if not isinstance(error, json.JSONDecodeError):
        return DataError("the row is not valid JSON", where=where, value=f"{error}: {text}", fix="correct this row")
    return DataError(
        "the row is not valid JSON",
        where=where,
        value=f"{error.msg} at character {error.pos + 1}: {text[max(0, error.pos - 30) : error.pos + 30]}",
        fix="each row must be one complete JSON object; write it with a JSON library",
    )


def checked_object(value: Any, text: str, where: str) -> dict[str, Any]:
    """`value`, read from `text`, if it is an object whose strings can be written as UTF-8."""
    if not isinstance(value, dict):
        raise DataError(
            "the row is not a JSON object",
            where=where,
            value=value,
            fix='write rows as objects, for example {"text": "..."}',
        )
    if _SURROGATE.search(text) and (found := _lone_surrogate(value)) is not None:
        raise DataError(
            "the row holds half of a surrogate pair, which is no character",
            where=where,
            value=found,
            fix="write both halves (\\ud83d\\ude00), or the character itself in UTF-8",
        )
    return value


def _lone_surrogate(value: Any) -> str | None:
    """The surroundings of the first lone surrogate inside a JSON value."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return ascii(value[max(0, error.start - 20) : error.start + 20])
        return None
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((found for item in inside if (found := _lone_surrogate(item)) is not None), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; use null")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
