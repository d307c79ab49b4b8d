"""Plain text and markup that is read as it stands: each file is one document."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.plain import blocks, decode, packed

EXTENSIONS = packed(".txt", ".md", ".rst")

PIECE_BYTES = 16 << 20


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """One document, or several of at most 16 MiB for a longer file, cut at the end of a line where there is one."""
    held, offset, line, piece = b"", 0, 1, 0
    for block in blocks(file.path, PIECE_BYTES):
        whole = held + block
        cut = len(whole) if len(whole) < PIECE_BYTES else _line_end(whole)
        held = whole[cut:]
        yield from _document(whole[:cut], file, intake, line, offset, piece)
        offset, line, piece = offset + cut, line + whole.count(b"\n", 0, cut), piece + 1
    if held:
        yield from _document(held, file, intake, line, offset, piece)
    if not offset:
        intake.skipped["empty file"] += 1


def _line_end(text: bytes) -> int:
    """Where to cut: after the last line, else between two characters."""
    cut = text.rfind(b"\n") + 1
    if cut:
        return cut
    cut = len(text)
    while cut > 1 and text[cut - 1] & 0xC0 == 0x80:  # the middle of a character in UTF-8
        cut -= 1
    return cut - 1


def _document(raw: bytes, file: InputFile, intake: Intake, line: int, offset: int, piece: int) -> Iterator[Document]:
    text = decode(raw, file.path, intake, line=line, offset=offset)
    if text is not None:
        name = f"{file.name}#{piece}" if piece else file.name
        yield Document(name, text, str(file.path), meta={"group": file.name})
