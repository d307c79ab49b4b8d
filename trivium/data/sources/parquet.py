"""Parquet tables, read batch by batch (needs pyarrow: `pip install 'trivium[data]'`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trivium.data.intake import InputFile, Intake, Row, Span
from trivium.data.sources.arrow import rows_of
from trivium.errors import DataError

EXTENSIONS = (".parquet",)

_BATCH_ROWS = 128


def spans(file: InputFile, size: int) -> Iterator[Span]:
    """Row groups, several together while they are small; a table that cannot be read is one part, whose rows say so."""
    pyarrow, parquet = _pyarrow(file)
    try:
        with parquet.ParquetFile(file.path) as table:
            groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
            sizes, counts = [group.total_byte_size for group in groups], [group.num_rows for group in groups]
    except (pyarrow.ArrowException, OSError):
        return
    start = rows = 0
    for end in range(1, len(groups) + 1):
        if end == len(groups) or sum(sizes[start : end + 1]) > size:
            yield Span(start, end, rows)
            start, rows = end, rows + sum(counts[start:end])


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each row of the table; numbers count from 1."""
    pyarrow, parquet = _pyarrow(file)
    number = file.span.rows if file.span else 0
    try:
        with parquet.ParquetFile(file.path) as table:
            groups = list(range(file.span.start, file.span.end)) if file.span else None
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
                yield from rows_of(batch, number, file, intake)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        where = f"{file.path}, row {number + 1}" if number else file.path
        intake.reject(
            DataError(
                "the file is not a readable parquet table",
                where=where,
                value=str(error),
                fix="the file may have been cut off; download or write it again",
            )
        )


def _pyarrow(file: InputFile) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("reading parquet needs pyarrow", where=file.path, fix="pip install 'trivium[data]'") from error
    return pyarrow, parquet
