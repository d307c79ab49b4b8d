"""Comma- and tab-separated tables with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from trivium.data.intake import InputFile, Intake, Row
from trivium.data.plain import lines, packed
from trivium.errors import DataError

EXTENSIONS = packed(".csv", ".tsv")


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each record; a row is named by the physical line on which it begins."""
    csv.field_size_limit(intake.row_bytes)
    delimiter = "\t" if ".tsv" in file.path.name else ","
    records = csv.reader(_physical_lines(file, intake), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = records.line_num + 1
        try:
            record = next(records, None)
        except csv.Error as error:
            intake.reject(
                DataError(
                    "the table cannot be read",
                    where=f"{file.path}:{line}",
                    value=str(error),
                    fix="close every quote; write a quote inside a quoted field twice",
                )
            )
            if "end of data" in str(error):
                return
            continue
        if record is None:
            return
        if not record:
            continue
        if header is None:
            header = _header(record, file)
        elif len(record) != len(header):
            intake.reject(_ragged(record, header, f"{file.path}:{line}"))
        else:
            yield Row(dict(zip(header, record, strict=True)), f"{file.path}:{line}", f"{file.name}:{line}")


def _physical_lines(file: InputFile, intake: Intake) -> Iterator[str]:
    expected = 1
    for number, text in lines(file.path, intake):
        # A line that was set aside leaves an empty one, so that the numbers of the others stay true.
        yield from ["\n"] * (number - expected)
        yield f"{text}\n"
        expected = number + 1


def _header(record: list[str], file: InputFile) -> list[str]:
    names = [name.strip() for name in record]
    if len(set(names)) == len(names) and all(names):
        return names
    raise DataError(
        "the first line does not name the columns: a name is empty or stands twice",
        where=f"{file.path}:1",
        value=", ".join(record),
        fix="add a header line with one name for each column",
    )


def _ragged(record: list[str], header: list[str], where: str) -> DataError:
    return DataError(
        "the row has not as many fields as the header",
        where=where,
        value=f"{len(record)} fields, the header has {len(header)}: {', '.join(record)}",
        fix="put fields that hold the separator or a line break in quotes",
    )
