"""Errors on their way from a worker to the user, as JSON values."""

from __future__ import annotations

import traceback
from typing import Any

import trivium.errors
from trivium.errors import TriviumError


class WorkerFailed(RuntimeError):
    """A defect in a step or in Trivium itself that showed in a worker."""


def to_json(error: Exception) -> dict[str, Any]:
    """An error of the user's as its words, any other as its traceback."""
    if not isinstance(error, TriviumError):
        return {"defect": f"{type(error).__name__}: {error}", "trace": "".join(traceback.format_exception(error))}
    shown = {"value": str(error.value)} if "\n  value: " in error.render() else {}
    return {"kind": type(error).__name__, "problem": error.problem, "where": error.where, "fix": error.fix, **shown}


def from_json(values: dict[str, Any]) -> Exception:
    """The inverse of `to_json`."""
    if "defect" in values:
        failed = WorkerFailed(values["defect"])
        failed.add_note(values["trace"])
        return failed
    kind = getattr(trivium.errors, values["kind"], TriviumError)
    further = {"value": values["value"]} if "value" in values else {}
    error: Exception = kind(values["problem"], where=values["where"], fix=values["fix"], **further)
    return error
