"""Arrow and Feather tables, as files or streams, read batch by batch (needs pyarrow: `pip install 'trivium[data]'`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trivium.data.intake import InputFile, Intake, Row
from trivium.errors import DataError

EXTENSIONS = (".arrow", ".feather", ".ipc")

_ROWS = 128


def recognises(head: bytes) -> bool:
    """Whether a file begins like an Arrow file."""
    return head.startswith(b"ARROW1")


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each row of the table; numbers count from 1."""
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError as error:
        raise DataError(
            "reading Arrow files needs pyarrow", where=file.path, fix="pip install 'trivium[data]'"
        ) from error
    number = 0
    try:
        with pyarrow.memory_map(str(file.path)) as source:
            begin = source.read(6)
            source.seek(0)
            if begin == b"ARROW1":
                reader = ipc.open_file(source)
                batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
            else:
                batches = iter(ipc.open_stream(source))
            for batch in batches:
                _check(batch, pyarrow.ArrowInvalid)
                for start in range(0, batch.num_rows, _ROWS):
                    yield from rows_of(batch.slice(start, _ROWS), number, file, intake)
                    number += min(_ROWS, batch.num_rows - start)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        intake.reject(
            DataError(
                "the file is not a readable Arrow table",
                where=f"{file.path}, row {number + 1}" if number else file.path,
                value=str(error) or type(error).__name__,
                fix="the file may have been cut off; download or write it again",
            )
        )


def _check(batch: Any, invalid: type[Exception]) -> None:
    """Offsets in a damaged file may point outside of it; texts that are not UTF-8 are found row by row later."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except invalid as error:
            if "UTF8" not in str(error):
                raise


def rows_of(batch: Any, before: int, file: InputFile, intake: Intake) -> Iterator[Row]:
    """The rows of a batch; one whose text is not UTF-8 goes to the intake. `before`: rows of the file before it."""
    try:
        found = batch.to_pylist()
    except UnicodeDecodeError:
        found = [batch.slice(at, 1) for at in range(batch.num_rows)]
    for number, values in enumerate(found, before + 1):
        where = f"{file.path}, row {number}"
        try:
            yield Row(values if isinstance(values, dict) else values.to_pylist()[0], where, f"{file.name}:{number}")
        except UnicodeDecodeError as error:
            problem = "the text is not UTF-8"
            intake.reject(
                DataError(problem, where=where, value=str(error), fix="write the table again from the source")
            )
