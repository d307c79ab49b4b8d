"""Arrow and Feather tables, as files or streams, read batch by batch (needs pyarrow: `pip install 'trivium[data]'`)."""

from __future__ import annotations

from collections.abc import Iterator

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
                for start in range(0, batch.num_rows, _ROWS):
                    for values in batch.slice(start, _ROWS).to_pylist():
                        number += 1
                        yield Row(values, f"{file.path}, row {number}", f"{file.name}:{number}")
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
