"""JSON Lines: one object a line, plain or packed."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.intake import InputFile, Intake, Row, Span
from trivium.data.json_rows import parse_object
from trivium.data.plain import line_spans, lines, packed

EXTENSIONS = packed(".jsonl", ".ndjson")


def spans(file: InputFile, size: int) -> Iterator[Span]:
    """Parts of about `size` bytes that can be read alone; none if the file is packed."""
    if file.path.suffix in (".jsonl", ".ndjson"):
        yield from line_spans(file.path, size)


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each line that is not blank."""
    for number, text in lines(file.path, intake, file.span):
        if text.strip():
            values = parse_object(text, f"{file.path}:{number}", intake)
            if values is not None:
                yield Row(values, f"{file.path}:{number}", f"{file.name}:{number}")
