"""JSON: one list of objects, or objects one after the other; read piece by piece, however long the file is."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from trivium.data.intake import InputFile, Intake, Row
from trivium.data.json_rows import DECODER, checked_object, json_error
from trivium.data.plain import blocks, decode, packed
from trivium.errors import DataError

EXTENSIONS = packed(".json")

_BLOCK = 1 << 20
_SPACE = " \t\r\n"


def rows(file: InputFile, intake: Intake) -> Iterator[Row]:
    """One row for each object. After text that is not JSON nothing else of the file can be read."""
    text = _Text(file, intake)
    listed = text.peek() == "["
    if listed:
        text.skip(1)
    while text.peek() not in ("", "]"):
        where, name = f"{file.path}:{text.line}", f"{file.name}:{text.line}"
        try:
            value, written = text.value(where)
        except DataError as error:
            intake.reject(error)
            return
        try:
            yield Row(checked_object(value, written, where), where, name)
        except DataError as error:
            intake.reject(error)
        if text.peek() == ",":
            text.skip(1)
    if listed and text.peek() != "]":
        intake.reject(
            DataError(
                "the list of rows is not closed",
                where=f"{file.path}:{text.line}",
                fix="the file was cut off; write or download it again",
            )
        )


class _Text:
    """The text of a file, of which only the value being read is held."""

    def __init__(self, file: InputFile, intake: Intake) -> None:
        self.line = 1
        self._file = file
        self._intake = intake
        self._blocks = _decoded(file, intake)
        self._held = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in _SPACE:
                    return self._held[self._at]
                self.skip(1)
            if not self._more():
                return ""

    def skip(self, count: int) -> None:
        self.line += self._held.count("\n", self._at, self._at + count)
        self._at += count

    def value(self, where: str) -> tuple[object, str]:
        """The next JSON value and the text it was read from."""
        wanted = 0
        while True:
            try:
                value, end = DECODER.raw_decode(self._held, self._at)
                written = self._held[self._at : end]
                self.skip(len(written))
                return value, written
            except RecursionError:
                raise DataError("the JSON is nested too deeply", where=where, fix="flatten the row") from None
            except json.JSONDecodeError as error:  # kept in parts: as a whole it would keep the text alive
                message, position = error.msg, error.pos - self._at
            except ValueError as error:
                raise json_error(error, self._held[self._at :], where) from None
            # The value may go on in the next block. Twice as much each time, so that long values stay linear.
            wanted = max(_BLOCK, 2 * wanted)
            if len(self._held) - self._at > self._intake.row_bytes:
                raise DataError(
                    "the value is too long",
                    where=where,
                    value=f"more than {self._intake.row_bytes:,} bytes",
                    fix="check that the file is a list of rows; split texts of this size",
                )
            if not self._more(wanted):
                text = self._held[self._at :]
                raise json_error(json.JSONDecodeError(message, text, position), text, where)

    def _more(self, wanted: int = 1) -> bool:
        """Hold at least `wanted` more characters; False at the end of the file."""
        found: list[str] = []
        while wanted > 0 and (block := next(self._blocks, None)) is not None:
            found.append(block)
            wanted -= len(block)
        self._held = self._held[self._at :] + "".join(found)
        self._at = 0
        return bool(found)


def _decoded(file: InputFile, intake: Intake) -> Iterator[str]:
    """The file as text; what is not UTF-8 is reported with its line and offset."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    try:
        for block in blocks(file.path, _BLOCK):
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError:
                decode(pending + block, file.path, intake, line=line, offset=offset - len(pending))
                return
            offset += len(block)
            line += text.count("\n")
            yield text
    except DataError as error:
        intake.reject(error)
