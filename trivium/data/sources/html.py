"""Web pages saved as files: the main text of each is one document (see `trivium.data.extraction`)."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.data.documents import Document
from trivium.data.extraction import PAGE_BYTES, NoText, extract
from trivium.data.intake import InputFile, Intake
from trivium.data.plain import DAMAGED, damaged, open_bytes, packed
from trivium.errors import DataError

EXTENSIONS = packed(".html", ".htm", ".xhtml")


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The main text of the page; a page without one is counted as left out."""
    try:
        with open_bytes(file.path) as stream:
            raw = stream.read(PAGE_BYTES + 1)
    except DAMAGED as error:
        raise damaged(file.path, None, error) from error
    if len(raw) > PAGE_BYTES:
        raise DataError(
            "the page is too large",
            where=file.path,
            value=f"more than {PAGE_BYTES:,} bytes",
            fix="check that the file is one web page",
        )
    if not raw.strip():
        intake.skipped["empty file"] += 1
        return
    try:
        page = extract(raw)
    except NoText as reason:
        intake.skipped[str(reason)] += 1
        return
    yield Document(file.name, page.text, str(file.path), page.licence, {"group": file.name, **page.meta()})
