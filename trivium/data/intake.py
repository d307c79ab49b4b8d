"""The account of everything that is read: what is kept, what is left out and why, and what cannot be read.

One `Intake` accompanies one pass over the sources. A row that cannot be used goes through `reject`: it stops the run,
or is set aside and counted. Nothing is left out in silence, so that input = kept + dropped + quarantined holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trivium.errors import DataError

OnError = Literal["error", "quarantine"]

ROW_BYTES = 100_000_000
"""Longest row, line or JSON value that is read; a longer one is damaged data or a file in another format."""

_EXAMPLES = 1000


@dataclass(frozen=True)
class Quarantined:
    """A row that was set aside: where it stands and the whole message about it."""

    where: str | None
    message: str


class Intake:
    """Counts of one pass over the sources.

    on_error:  `error` raises what `reject` is given; `quarantine` counts it.
    row_bytes: longest row that is read.
    """

    def __init__(self, on_error: OnError = "error", *, row_bytes: int = ROW_BYTES) -> None:
        self.on_error = on_error
        self.row_bytes = row_bytes
        self.formats: Counter[str] = Counter()
        """Files read, by format."""
        self.skipped: Counter[str] = Counter()
        """Files, and pages, records or lines of files, that became no document, by reason."""
        self.quarantined: Counter[str] = Counter()
        """Rows set aside, by problem."""
        self.examples: list[Quarantined] = []
        """The first thousand rows set aside."""

    def reject(self, error: DataError) -> None:
        """Report a row that cannot be used; raises unless rows are set aside."""
        if self.on_error == "error":
            raise error
        self.quarantined[error.problem] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(Quarantined(error.where, error.render()))

    def inside(self, renamed: Callable[[str], str]) -> Intake:
        """The same account for what was unpacked: messages name the places that `renamed` makes of theirs."""
        return _Inside(self, renamed)

    def summary(self) -> dict[str, Any]:
        """The counts, for a report; JSON values only."""
        return {
            "formats": dict(self.formats),
            "skipped": dict(self.skipped),
            "quarantined": dict(self.quarantined),
        }


class _Inside(Intake):
    def __init__(self, outer: Intake, renamed: Callable[[str], str]) -> None:
        super().__init__(outer.on_error, row_bytes=outer.row_bytes)
        self.formats, self.skipped = outer.formats, outer.skipped
        self._outer, self._renamed = outer, renamed

    def reject(self, error: DataError) -> None:
        where = None if error.where is None else self._renamed(error.where)
        self._outer.reject(DataError(error.problem, where=where, value=error.value, fix=error.fix))


@dataclass(frozen=True)
class Row:
    """One row of a table or one object of a JSON file.

    where: `file:line` (the physical line on which it begins), or `file, row number` where there are no lines.
    name:  the same, relative to the source: names the row for good.
    """

    values: dict[str, Any]
    where: str
    name: str


@dataclass(frozen=True)
class Span:
    """A part of a file that can be read alone.

    start, end: bytes, or whatever else the reader counts in; the end is not part of it.
    rows:       lines or rows of the file before it, so that the numbers in names and messages stay true.
    """

    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class InputFile:
    """A file to read, its name relative to the source, and the part that is meant if it is not all of it."""

    path: Path
    name: str
    span: Span | None = None
