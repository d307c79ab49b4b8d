"""What is done at once: units of work, cut by what the input is and never by who works on it.

A unit is a part of a large file that can be read in parts (JSON Lines, parquet), several small files together, or a
large file that can only be read from its begin to its end (packed, a dump). Of the last kind one process reads, and
what it has read is passed on in pieces, so that the others have something to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake, Span
from trivium.data.reading import documents_in, input_files, spans_of
from trivium.recipe import Source

UNIT_BYTES = 4 << 20
"""Bytes of input in one unit, about."""
_FILES = 1000


@dataclass(frozen=True)
class Unit:
    """Files (path, name and reader of each) of the source with this number, or a part of one file.

    alone: too large for one process; it is read first and worked on in pieces.
    """

    source: int
    files: Sequence[tuple[str, str, str]]
    span: tuple[int, int, int] | None = None
    alone: bool = False

    def to_json(self) -> dict[str, Any]:
        """The unit as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Unit:
        """The inverse of `to_json`."""
        return Unit(**{**values, "files": [tuple(file) for file in values["files"]]})

    def documents(self, source: Source, intake: Intake) -> Iterator[Document]:
        """What there is to read."""
        span = Span(*self.span) if self.span else None
        return chain.from_iterable(
            documents_in(InputFile(Path(path), name, span), reader, source, intake) for path, name, reader in self.files
        )


def plan_units(sources: Sequence[Source], intake: Intake, *, size: int) -> list[Unit]:
    """The units of all sources in order; formats and skipped files are counted in `intake`."""
    found: list[Unit] = []
    for number, source in enumerate(sources):
        waiting: list[tuple[str, str, str]] = []
        total = 0
        for file, reader in input_files(source, intake):
            entry = (str(file.path), file.name, reader)
            length = file.path.stat().st_size if file.path.is_file() else 0
            spans = spans_of(file, reader, size) if length > size else []
            if length > size or total + length > size or len(waiting) == _FILES:
                found += [Unit(number, waiting)] if waiting else []
                waiting, total = [], 0
            if spans:
                found += [Unit(number, [entry], (span.start, span.end, span.rows)) for span in spans]
            elif length > size:
                found.append(Unit(number, [entry], alone=True))
            else:
                waiting.append(entry)
                total += length
        found += [Unit(number, waiting)] if waiting else []
    return found
