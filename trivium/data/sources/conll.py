"""CoNLL files: one word a line with its columns, an empty line after each sentence.

The word is the first column and the tag the last one, between spaces or tabs (CoNLL-2003); in CoNLL-U, which numbers
its words, they are FORM and UPOS. Lines with `-DOCSTART-` and comments are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.intake import InputFile, Intake, Row
from trivium.data.plain import lines, packed
from trivium.errors import DataError

EXTENSIONS = packed(".conll", ".conllu", ".bio", ".iob", ".iob2")


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each sentence, `{"tokens": [...], "tags": [...]}`, named by its first line."""
    words: list[str] = []
    tags: list[str] = []
    numbered = ".conllu" in file.path.name
    first = 0
    for number, text in lines(file.path, intake):
        if not text.strip():
            if words:
                yield _row(file, words, tags, first)
            words, tags = [], []
            continue
        columns = text.split("\t") if "\t" in text else text.split()
        if columns[0] == "-DOCSTART-" or (text.startswith("#") and (numbered or len(columns) == 1)):
            continue
        if numbered and not columns[0].isdecimal():  # 1-2 and 1.1 repeat or add words that the text does not have
            continue
        columns = [columns[1], columns[3]] if numbered and len(columns) > 3 else columns
        if len(columns) < 2:
            intake.reject(
                DataError(
                    "the line has a word and no tag",
                    where=f"{file.path}:{number}",
                    value=text,
                    fix="write the word, a space or tab, and its tag; an empty line ends a sentence",
                )
            )
            continue
        first = first if words else number
        words.append(columns[0])
        tags.append(columns[-1].strip())
    if words:
        yield _row(file, words, tags, first)


def _row(file: InputFile, words: list[str], tags: list[str], line: int) -> Row:
    return Row({"tokens": words, "tags": tags}, f"{file.path}:{line}", f"{file.name}:{line}")
