"""Rows to files: JSON Lines, JSON, csv, tsv and parquet, by the name of the file; all or nothing, and streamed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from trivium.artifacts import faults
from trivium.artifacts.temporary import flush, make_folder, temporary_place
from trivium.artifacts.writer import explained
from trivium.errors import DataError

Values = dict[str, Any]

_BATCH = 5000


def write_rows(path: Path, rows: Iterator[Values]) -> None:
    """Write a file of rows; what was there is replaced once all rows are written."""
    _WRITERS[file_kind(path)](path, rows)


def file_kind(path: Path) -> str:
    """jsonl, json, csv, tsv or parquet, by the name of the file."""
    name = path.name.lower().removesuffix(".gz")
    kind = {"ndjson": "jsonl"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
    if kind not in _WRITERS or (kind in ("parquet", "json") and path.suffix == ".gz"):
        raise DataError(
            "the kind of file to write is not known from its name", where=path, value=path.name,
            fix=f"end the name with one of {', '.join(f'.{known}' for known in _WRITERS)}, or .jsonl.gz",
        )  # fmt: skip
    return kind


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which gets its name if all goes well."""
    with explained(path):
        make_folder(path.parent)
        with temporary_place(path, folder=False) as (temporary, descriptor):
            yield temporary
            faults.fsync(descriptor, temporary)
            faults.rename(temporary, path)
            flush(path.parent)


@contextmanager
def _text_file(path: Path) -> Iterator[IO[str]]:
    with _new_file(path) as temporary:
        raw = temporary.open("wb")
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with raw, packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as stream:
            yield stream


def _write_jsonl(path: Path, rows: Iterator[Values]) -> None:
    with _text_file(path) as stream:
        for row in rows:
            stream.write(_json(row) + "\n")


def _write_json(path: Path, rows: Iterator[Values]) -> None:
    with _text_file(path) as stream:
        stream.write("[")
        for number, row in enumerate(rows):
            stream.write((",\n" if number else "\n") + _json(row))
        stream.write("\n]\n")


def _write_table(path: Path, rows: Iterator[Values]) -> None:
    """csv or tsv; lists and objects stand as JSON in their cell."""
    with _spooled(rows) as (spool, columns, _), _text_file(path) as stream:
        delimiter = "\t" if file_kind(path) == "tsv" else ","
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        for row in spool():
            writer.writerow([_cell(row.get(name)) for name in columns])


def _write_parquet(path: Path, rows: Iterator[Values]) -> None:
    """Columns of any shape become JSON text where a table could not hold them without loss."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("writing parquet needs pyarrow", where=path, fix='pip install "trivium[data]"') from error
    with _spooled(rows) as (spool, columns, nested):

        def batches() -> Iterator[list[Values]]:
            batch: list[Values] = []
            for row in spool():
                batch.append({name: _json(row[name]) if name in nested and row.get(name) is not None else row.get(name)
                              for name in columns})  # fmt: skip
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
            yield batch

        try:
            schemas = [pyarrow.Table.from_pylist(batch).schema for batch in batches() if batch]
            schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
            with _new_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
                for batch in batches():
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        except pyarrow.ArrowException as error:
            raise DataError(
                "the rows do not fit one table", where=path, value=str(error), fix="write .jsonl instead"
            ) from error


@contextmanager
def _spooled(rows: Iterator[Values]) -> Iterator[tuple[Callable[[], Iterator[Values]], list[str], set[str]]]:
    """The rows on disk, to be read twice: (how to read them, all columns, those that hold no plain values)."""
    with TemporaryFile("w+", encoding="utf-8") as file:
        columns: dict[str, set[str]] = {}
        for row in rows:
            for name, value in row.items():
                columns.setdefault(name, set()).add(_cell_kind(value))
            file.write(_json(row) + "\n")

        def again() -> Iterator[Values]:
            file.seek(0)
            return map(json.loads, file)

        nested = {name for name, kinds in columns.items() if "nested" in kinds or len(kinds - {"null"}) > 1}
        yield again, list(columns), nested


def _cell_kind(value: Any) -> str:
    """The type a column of a table gives this value; `nested` where it would change it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        kinds = {_cell_kind(one) for one in value} - {"null"}
        return f"list of {kinds.pop()}" if len(kinds) == 1 and "nested" not in kinds else "nested" if kinds else "list"
    if isinstance(value, Mapping):
        messages = value.keys() <= {"role", "content", "train", "name", "from", "value"} and "nested" not in {
            _cell_kind(one) for one in value.values()
        }
        return "message" if messages and None not in value.values() else "nested"
    return type(value).__name__


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_WRITERS: dict[str, Callable[[Path, Iterator[Values]], None]] = {
    "jsonl": _write_jsonl,
    "json": _write_json,
    "csv": _write_table,
    "tsv": _write_table,
    "parquet": _write_parquet,
}
