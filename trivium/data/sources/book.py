"""Books in plain text: Project Gutenberg and the like, without licence and header, with chapters as headings.

A `.txt` that says it is from Project Gutenberg is read so by itself; others with `format: book`. The encoding is found
(UTF-8, what the header declares, Windows-1252 or Latin-1) and noted in `meta`, paragraphs that were broken into lines
are joined, verse is not. One document a book, and a group of its own: no split cuts it in two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup.gutenberg import charset, is_gutenberg, stripped
from trivium.data.markup.prose import decoded, unwrapped, with_chapters
from trivium.data.markup.sections import sections, tidy
from trivium.data.plain import packed, read_whole
from trivium.errors import DataError

EXTENSIONS = ()
SHARED = packed(".txt")

_MARKED = re.compile(rb"Project Gutenberg|^\s*\[[^\]\n]{1,100} by [^\]\n]{1,80}\][ \t]*\r?\n", re.IGNORECASE)


def recognises(head: bytes) -> bool:
    """Whether a text begins with a header of Project Gutenberg."""
    return _MARKED.match(head) is not None or b"project gutenberg" in head[:4000].lower()


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The book, or what speaks against it as text."""
    raw = read_whole(file.path, intake.row_bytes)
    found = decoded(raw, charset(raw))
    if found is None:
        intake.reject(
            DataError(
                "the book is in no encoding that can be told: not UTF-8, and not a European language in Latin-1",
                where=file.path,
                value=repr(raw[:40]),
                fix=f"convert it to UTF-8, for example: iconv -f UTF-16 -t UTF-8 {file.path.name}",
            )
        )
        return
    text, encoding = found
    gutenberg = is_gutenberg(text)
    body, known = stripped(text)
    body = tidy(unwrapped(with_chapters(body)))
    if not body:
        intake.skipped["empty file"] += 1
        return
    number = known.pop("number", "")
    name = f"gutenberg:{number}" if number else file.name
    meta = {**known, "encoding": encoding, "sections": sections(body), "group": name}
    yield Document(
        name,
        body,
        str(file.path),
        licence="Public-Domain" if gutenberg and "copyrighted" not in text[:3000].lower() else None,
        meta={key: value for key, value in meta.items() if value and value != "utf-8"},
    )
