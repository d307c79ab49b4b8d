"""Finding the reader for a source: `data/sources/<name>.py` is the registry.

A reader has `EXTENSIONS` (which files are its own) and one of

    rows(file, intake)       objects or table rows
    documents(file, intake)  whole documents

and where files can be read in parts `spans(file, size)`, the parts.

A reader with `BUILT_IN = True` needs no file and is named by its own name (`pydocs`); one with `FOLDER = True` looks at
every file of a folder and decides itself.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TypeVar

from trivium.artifacts.manifest import MANIFEST, RECORD, content_hash
from trivium.artifacts.record import Parent, parent_of
from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake, Row, Span
from trivium.data.plain import PACKINGS, head_of, unreadable
from trivium.data.sources import archive, dataset
from trivium.errors import DataError
from trivium.nearest import nearest
from trivium.recipe import Source

Item = TypeVar("Item")

PREPARED_TRAIN = "documents.train.jsonl"
"""The training documents inside a folder that `prepare_documents` wrote."""

ROW_SHAPES = frozenset({"messages", "sharegpt", "alpaca", "prompt_completion"})
"""Values of `format` that say what rows mean and not how files are read."""


def read_documents(source: Source, intake: Intake) -> Iterator[Document]:
    """The documents of a source, in a stable order; one at a time."""
    found = False
    for file, reader in input_files(source, intake):
        for document in documents_in(file, reader, source, intake):
            found = True
            yield document
    if not found and not intake.quarantined:
        raise no_documents(source)


def input_files(source: Source, intake: Intake) -> Iterator[tuple[InputFile, str]]:
    """The files of a source in a stable order, and the name of what reads each; a built-in source has no path."""
    if _built_in(source) is not None:
        intake.formats[source.path] += 1
        yield InputFile(Path(), source.path), source.path
    else:
        yield from ((file, _name(reader)) for file, reader in _files(source, intake))


def documents_in(file: InputFile, reader: str, source: Source, intake: Intake) -> Iterator[Document]:
    """The documents of one file of a source, or of a part of it."""
    module = _readers()[reader]
    if module is archive:
        documents = _unpacked_documents(file, source, intake)
    elif hasattr(module, "documents"):
        documents = module.documents(file, intake)
    else:
        documents = _documents_of(module.rows(file, intake), source.text_field, intake)
    yield from documents if getattr(module, "BUILT_IN", False) else _guarded(documents, intake)


def rows_in(file: InputFile, reader: str, intake: Intake) -> Iterator[Row] | None:
    """The rows of one file; None if what reads it gives documents only."""
    module = _readers()[reader]
    return _guarded(module.rows(file, intake), intake) if hasattr(module, "rows") else None


def spans_of(file: InputFile, reader: str, size: int) -> list[Span]:
    """The parts of about `size` that a file can be read in; none if only as a whole, from its begin to its end."""
    module = _readers()[reader]
    return list(module.spans(file, size)) if hasattr(module, "spans") else []


def no_documents(source: Source) -> DataError:
    """The message for a source in which there is nothing."""
    return DataError("the source holds no documents", where=source.path, fix="check that the file is not empty")


def read_rows(source: Source, intake: Intake) -> Iterator[Row]:
    """The rows of a source of instructions, preferences or prompts."""
    found = False
    for file, reader in _files(source, intake):
        for row in _rows_in(file, reader, source, intake):
            found = True
            yield row
    if not found and not intake.quarantined:
        raise DataError("the source holds no rows", where=source.path, fix="check that the file is not empty")


def _rows_in(file: InputFile, reader: ModuleType, source: Source, intake: Intake) -> Iterator[Row]:
    if reader is archive:
        yield from _guarded(_unpacked_rows(file, source, intake), intake)
    elif hasattr(reader, "rows"):
        yield from _guarded(reader.rows(file, intake), intake)
    else:
        raise DataError(
            "rows are needed here, and this file holds plain text",
            where=file.path,
            fix=f"use one of {_extensions(rows_only=True)}",
        )


def _unpacked_documents(file: InputFile, source: Source, intake: Intake) -> Iterator[Document]:
    with _unpacked(file, source, intake) as (files, told, renamed):
        for inner, reader in files:
            for document in documents_in(inner, _name(reader), source, told):
                yield replace(document, source=renamed(document.source))


def _unpacked_rows(file: InputFile, source: Source, intake: Intake) -> Iterator[Row]:
    with _unpacked(file, source, intake) as (files, told, renamed):
        for inner, reader in files:
            for row in _rows_in(inner, reader, source, told):
                yield replace(row, where=renamed(row.where))


@contextmanager
def _unpacked(
    file: InputFile, source: Source, intake: Intake
) -> Iterator[tuple[list[tuple[InputFile, ModuleType]], Intake, Callable[[str], str]]]:
    """(the files of an archive, the account for them, what their places are called outside)."""
    with TemporaryDirectory() as name:
        folder = Path(name)

        def renamed(where: str) -> str:
            return where.replace(name, str(file.path))

        archive.unpack(file.path, folder, intake)
        forced = _forced(source)
        told = intake.inside(renamed)
        found = []
        for path in _walk(folder, told):
            reader = _chosen(path, forced if forced is not archive else None)
            if reader is None or reader is archive:
                intake.skipped["archives inside of archives" if reader else _unknown(path)] += 1
                continue
            intake.formats[_name(reader)] += 1
            found.append((InputFile(path, f"{file.name}/{path.relative_to(folder).as_posix()}"), reader))
        try:
            yield found, told, renamed
        except DataError as error:  # of a reader that does not go on
            where = None if error.where is None else renamed(error.where)
            raise DataError(error.problem, where=where, value=error.value, fix=error.fix) from error


def fingerprint(source: Source) -> str:
    """What the documents or rows of a source depend on: the content, the names, and how they are read."""
    built_in = _built_in(source)
    path = Path(source.path).expanduser()
    if built_in is not None:
        content = str(built_in.fingerprint())
    elif _is_dataset(source):
        content = ",".join(content_hash(file) for file in _dataset_files(source, Intake()))
    elif _exists(path):
        content = content_hash(path)
    else:
        raise _missing(path)
    return hashlib.sha256(json.dumps([path.name, content, source.format, source.text_field]).encode()).hexdigest()


def source_parent(source: Source, role: str) -> Parent:
    """The source as a parent in the lineage of what is made from it."""
    if _built_in(source) is not None or _is_dataset(source):
        return Parent(source.path, fingerprint(source), role)
    return parent_of(Path(source.path).expanduser(), role)


def _is_dataset(source: Source) -> bool:
    return source.format == "dataset" or _of_dataset(Path(source.path).expanduser())


@cache
def _readers() -> dict[str, ModuleType]:
    names = sorted(file.stem for file in (Path(__file__).parent / "sources").glob("[!_]*.py"))
    return {name: importlib.import_module(f"trivium.data.sources.{name}") for name in names}


def _guarded(items: Iterator[Item], intake: Intake) -> Iterator[Item]:
    """The same items; an error that ends a whole file goes to `intake` like one that ends a row."""
    try:
        yield from items
    except DataError as error:
        intake.reject(error)
    except OSError as error:
        intake.reject(unreadable(Path(str(error.filename)), error))


def _built_in(source: Source) -> ModuleType | None:
    reader = _readers().get(source.path)
    if reader is None or not getattr(reader, "BUILT_IN", False) or _exists(Path(source.path)):
        return None
    return reader


def _files(source: Source, intake: Intake) -> Iterator[tuple[InputFile, ModuleType]]:
    """The files of a source and what reads each of them."""
    path = Path(source.path).expanduser()
    forced = _forced(source)
    if forced is dataset or _of_dataset(path):
        yield from _dataset(source, intake)
        return
    if not _exists(path):
        raise _missing(path)
    if path.is_dir():
        yield from _folder(path, forced, intake)
        return
    if not path.is_file():
        raise DataError(
            "this is not a regular file but a pipe, a socket or a device",
            where=path,
            fix="write its content to a file, and name that",
        )
    reader = _chosen(path, forced)
    if reader is None:
        raise DataError(
            "the kind of this file is not known from its name or its first bytes",
            where=path,
            value=path.name,
            fix=f"name the format (format: jsonl), or use one of {_extensions()}",
        )
    intake.formats[_name(reader)] += 1
    yield InputFile(path, path.name), reader


def _of_dataset(path: Path) -> bool:
    """Whether a path is the folder of a data set, or such a folder and, after a `#`, one of its splits."""
    if _exists(path):
        return path.is_dir() and dataset.owns(path)
    name, mark, _ = str(path).partition("#")
    return bool(mark) and _exists(Path(name)) and Path(name).is_dir()


def _dataset(source: Source, intake: Intake) -> Iterator[tuple[InputFile, ModuleType]]:
    """The files of one split of a data set."""
    name, _, split = source.path.partition("#")
    folder = Path(name).expanduser()
    paths = _dataset_files(source, intake)
    for path in paths:
        reader = _reader_of(path)
        if reader is None:
            intake.skipped[f"unknown extension {path.suffix}"] += 1
            continue
        intake.formats[_name(reader)] += 1
        inside = path.is_relative_to(folder) and folder.is_dir()
        shown = path.relative_to(folder).as_posix() if inside else f"{name}/{path.name}"
        yield InputFile(path, shown), reader
    if not paths:
        raise DataError("the split holds no files", where=source.path, value=split or "train", fix="check the folder")


def _dataset_files(source: Source, intake: Intake) -> list[Path]:
    name, _, split = source.path.partition("#")
    folder = Path(name).expanduser()
    if not _exists(folder):
        return dataset.fetched(name, split or None)
    if not folder.is_dir():
        raise DataError("a data set is a folder or an id", where=folder, fix="delete format: dataset")
    paths, others = dataset.files(folder, split or None)
    intake.skipped.update(others)
    return paths


def _folder(folder: Path, forced: ModuleType | None, intake: Intake) -> Iterator[tuple[InputFile, ModuleType]]:
    found = False
    if (folder / PREPARED_TRAIN).is_file():
        raise DataError(
            "the folder holds training and held-out documents",
            where=folder,
            fix=f"name the file that is meant: {folder / PREPARED_TRAIN}",
        )
    for path in _walk(folder, intake):
        reader = _chosen(path, forced)
        if reader is None:
            intake.skipped[_unknown(path)] += 1
            continue
        found = True
        intake.formats[_name(reader)] += 1
        yield InputFile(path, path.relative_to(folder).as_posix()), reader
    if not found:
        raise DataError(
            "the folder holds no file that can be read",
            where=folder,
            value=", ".join(f"{count} with {reason}" for reason, count in intake.skipped.items()) or "no files at all",
            fix=f"use one of {_extensions()}, or name the format (format: txt)",
        )


def _walk(folder: Path, intake: Intake) -> Iterator[Path]:
    """The files below a folder by name, without hidden ones; links to folders are not followed."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        intake.reject(unreadable(folder, error))
        return
    for path in entries:
        if path.name.startswith(".") or path.name in (MANIFEST, RECORD):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, intake)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            intake.skipped["a link to a folder" if path.is_dir() else "a link to nowhere"] += 1
        else:
            intake.skipped["not a regular file"] += 1


def _forced(source: Source) -> ModuleType | None:
    if source.format == "auto" or source.format in ROW_SHAPES:
        return None
    reader = _readers().get(source.format)
    if reader is None:
        known = [*sorted(_readers()), *sorted(ROW_SHAPES)]
        near = nearest(source.format, known)
        raise DataError(
            "unknown format",
            where=source.path,
            value=source.format,
            fix=f"did you mean {near}?" if near else f"use one of {', '.join(known)}",
        )
    return reader


def _chosen(path: Path, forced: ModuleType | None) -> ModuleType | None:
    """What reads a file of a source; a format that is named is that of the files in an archive."""
    return archive if path.name.lower().endswith(archive.EXTENSIONS) else forced or _reader_of(path)


def _unknown(path: Path) -> str:
    return f"unknown extension {path.suffix}" if path.suffix else "no extension"


def _reader_of(path: Path) -> ModuleType | None:
    """What reads a file: by its ending, or by its first bytes where the ending says nothing or not enough."""
    name = path.name.lower()
    named = next((reader for reader in _readers().values() if name.endswith(reader.EXTENSIONS)), None)
    sharing = [reader for reader in _readers().values() if name.endswith(getattr(reader, "SHARED", ()))]
    if not sharing and (named is not None or not _says_nothing(path)):
        return named
    asked = sharing or [reader for reader in _readers().values() if hasattr(reader, "recognises")]
    head = head_of(path)
    return next((reader for reader in asked if reader.recognises(head)), named)


def _says_nothing(path: Path) -> bool:
    """Whether the ending of a name is none, a number or a packing (`dump`, `2101.00001`, `x.gz`)."""
    return path.suffix in ("", *PACKINGS) or path.suffix[1:].isdecimal() or path.suffix in _UNTOLD


_UNTOLD = (".bin", ".dat", ".data", ".download", ".dump", ".file", ".out", ".tmp")


def _name(reader: ModuleType) -> str:
    return reader.__name__.rpartition(".")[2]


def _extensions(*, rows_only: bool = False) -> str:
    readers = [reader for reader in _readers().values() if not rows_only or hasattr(reader, "rows")]
    plain = {extension for reader in readers for extension in reader.EXTENSIONS if extension.count(".") == 1}
    return f"{', '.join(sorted(plain))} (also packed: {', '.join(PACKINGS)})"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no permission, too long, a NUL character: no file that could be read
        return False


def _missing(path: Path) -> DataError:
    built_in = [name for name, reader in _readers().items() if getattr(reader, "BUILT_IN", False)]
    beside = [entry.name for entry in path.parent.iterdir()] if _exists(path.parent) and path.parent.is_dir() else []
    near = nearest(path.name, [*beside, *built_in])
    return DataError(
        "there is no such file or folder",
        where=path,
        fix=f"did you mean {near}?" if near else f"check the path; built-in sources: {', '.join(built_in)}",
    )


def _documents_of(rows: Iterator[Row], text_field: str, intake: Intake) -> Iterator[Document]:
    for row in rows:
        text = row.values.get(text_field)
        if isinstance(text, str):
            yield _document(row, text, text_field)
        elif text_field not in row.values:
            fields = ", ".join(map(str, row.values))
            intake.reject(
                DataError(
                    f"the row has no field {text_field!r}",
                    where=row.where,
                    value=f"fields: {fields}",
                    fix="name the field that holds the text (text_field: ...)",
                )
            )
        else:
            intake.reject(
                DataError(
                    f"the field {text_field!r} holds no text but {type(text).__name__}",
                    where=row.where,
                    value=text,
                    fix="write the text as a JSON string",
                )
            )


def _document(row: Row, text: str, text_field: str) -> Document:
    """A row as a document; its other columns (a label, a date, a title) are kept in `meta`."""
    values = row.values
    name, licence, meta = values.get("id"), values.get("licence", values.get("license")), values.get("meta")
    columns = {key: value for key, value in values.items() if key not in (*_OWN, text_field) and _keeps(value)}
    return Document(
        id=str(name) if isinstance(name, str | int) and name != "" else row.name,
        text=text,
        source=row.where,
        licence=licence if isinstance(licence, str) else None,
        meta={**columns, **(meta if isinstance(meta, dict) else {})},
    )


_OWN = ("id", "source", "licence", "license", "meta", "sections")
"""Columns that are not simply kept: they mean something of their own."""


def _keeps(value: object) -> bool:
    """Whether a value of a column can be written again as it was read: text, numbers, and lists of them."""
    if isinstance(value, list):
        return all(not isinstance(each, list) and _keeps(each) for each in value)
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
