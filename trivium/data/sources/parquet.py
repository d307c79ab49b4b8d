"""Parquet tables, read batch by batch (needs pyarrow: `pip install 'trivium[data]'`)."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.intake import InputFile, Intake, Row
from trivium.errors import DataError

EXTENSIONS = (".parquet",)

_BATCH_ROWS = 128


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each row of the table; numbers count from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("reading parquet needs pyarrow", where=file.path, fix="pip install 'trivium[data]'") from error
    number = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file.path}, row {number}", f"{file.name}:{number}")
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
