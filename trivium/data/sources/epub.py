"""EPUB books: one document a book, in the order of its spine, chapters as headings.

The id is the ISBN, else the identifier of the book; `meta` holds title, author, date, language, isbn and sections. Only
the standard library opens the archive, nothing is unpacked to disk, and names that lead out of it, encrypted books,
archives that unpack to far more than a book and XML with entities of its own are refused.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup.gutenberg import is_gutenberg, stripped
from trivium.data.markup.licences import licence_name
from trivium.data.markup.sections import heading, sections, tidy
from trivium.data.markup.xhtml import kind, page, page_text
from trivium.data.markup.xml import child, children, name, parse, text_of
from trivium.data.plain import MOST_EXPANSION, PACKINGS, packed, read_whole
from trivium.errors import DataError

if TYPE_CHECKING:
    from lxml.etree import _Element

EXTENSIONS = packed(".epub")

_FILE_BYTES = 1 << 30
_PAGE_BYTES = 32 << 20
_BOOK_BYTES = 256 << 20
_MEMBERS = 100_000
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_ISBN = re.compile(r"(?:97[89])?\d{9}[\dX]")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError)


def recognises(head: bytes) -> bool:
    """Whether an archive says that it is a book."""
    return head.startswith(b"PK\x03\x04") and b"application/epub+zip" in head[:200]


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The book."""
    try:
        with _Archive(file.path) as archive:
            document = _book(archive, file, intake)
    except DataError:
        raise
    except _DAMAGED as error:
        raise _damaged(file.path, error) from error
    if document is None:
        intake.skipped["books without text"] += 1
    else:
        yield document


class _Archive:
    """A zip file of which each member is read with a limit, and all together too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._room = _BOOK_BYTES
        whole = path if path.suffix not in PACKINGS else io.BytesIO(read_whole(path, _FILE_BYTES))
        self._zip = zipfile.ZipFile(whole)
        names = self._zip.namelist()
        if len(names) > _MEMBERS:
            raise DataError("the book has too many files", where=path, value=f"{len(names):,}", fix="check the file")
        for member in names:
            parts = member.replace("\\", "/").split("/")
            if ".." in parts or member.startswith(("/", "\\")) or ":" in parts[0]:
                raise DataError(
                    "the book holds a file whose name leads out of it",
                    where=path,
                    value=member,
                    fix="do not trust this file; delete it",
                )
        self.names = set(names)

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, member: str, limit: int = _PAGE_BYTES) -> bytes:
        """A member, whole."""
        if member not in self.names:
            raise DataError(
                "the book names a file that it does not hold", where=self.path, value=member, fix="repair it"
            )
        info = self._zip.getinfo(member)
        if info.flag_bits & 1:
            raise DataError("the book is encrypted", where=self.path, value=member, fix="only open books can be read")
        with self._zip.open(info) as stream:
            raw = stream.read(min(limit, self._room) + 1)
        self._room -= len(raw)
        most = max(8 << 20, MOST_EXPANSION * max(info.compress_size, 1))
        if len(raw) > limit or self._room < 0 or len(raw) > most:
            raise DataError(
                "the book unpacks to far more than a book can: a decompression bomb",
                where=self.path,
                value=f"{member}: more than {min(limit, most, _BOOK_BYTES):,} bytes",
                fix="do not trust this file; delete it",
            )
        return raw


@dataclass(frozen=True)
class _Page:
    member: str
    properties: str


def _book(archive: _Archive, file: InputFile, intake: Intake) -> Document | None:
    where = file.path
    _refuse_encrypted(archive)
    container = parse(archive.read("META-INF/container.xml"), f"{where}, META-INF/container.xml")
    opf = next((part.get("full-path") for part in container.iter() if name(part) == "rootfile"), None)
    if not opf:
        raise DataError(
            "the book does not say where its contents are", where=where, fix="repair META-INF/container.xml"
        )
    package = parse(archive.read(opf), f"{where}, {opf}")
    metadata = child(package, "metadata")
    pages = list(_spine(package, opf, archive, where))
    titles = _titles(package, opf, archive)
    parts: list[str] = []
    for entry in pages:
        root = page(archive.read(entry.member), f"{where}, {entry.member}")
        if "nav" in entry.properties.split() or _is_no_text(root):
            intake.skipped["pages of books that are no text (contents, cover, imprint)"] += 1
            continue
        text = page_text(root)
        title = titles.get(entry.member)
        if text and title and not re.search(r"^#{2,6} ", text[:1000], re.MULTILINE):
            text = f"{heading(2, title)}\n\n{text}"
        parts.append(text)
    body = tidy("\n\n".join(filter(None, parts)))
    body = tidy(stripped(body)[0]) if is_gutenberg(body) else body
    return _document(body, metadata, file) if body else None


def _refuse_encrypted(archive: _Archive) -> None:
    """Copy protection is named in one file; fonts that are merely disguised stand there too, and do no harm."""
    member = "META-INF/encryption.xml"
    if member not in archive.names:
        return
    for part in parse(archive.read(member), f"{archive.path}, {member}").iter():
        if name(part) == "EncryptionMethod" and "xmlenc" in (part.get("Algorithm") or ""):
            raise DataError(
                "the book is encrypted", where=archive.path, fix="only books without copy protection can be read"
            )


def _document(body: str, metadata: _Element | None, file: InputFile) -> Document:
    def first(field: str) -> str:
        return text_of(child(metadata, field))

    ids = [] if metadata is None else [text_of(part) for part in children(metadata, "identifier")]
    isbn = next((found[0] for text in ids if (found := _ISBN.fullmatch(re.sub(r"(?i)urn:|isbn|[:\s-]", "", text)))), "")
    people = [] if metadata is None else [text_of(part) for part in children(metadata, "creator")]
    identity = f"isbn:{isbn}" if isbn else next((text for text in ids if len(text) > 7), file.name)
    meta = {
        "title": first("title"),
        "author": "; ".join(filter(None, people)),
        "date": first("date")[:10],
        "language": first("language")[:2].lower(),
        "isbn": isbn,
        "publisher": first("publisher"),
        "sections": sections(body),
        "group": identity,
    }
    known = {key: value for key, value in meta.items() if value}
    return Document(identity, body, str(file.path), licence=licence_name(first("rights")), meta=known)


def _spine(package: _Element, opf: str, archive: _Archive, where: Path) -> Iterator[_Page]:
    """The pages in reading order; what the book marks as no part of it (`linear="no"`) is left out."""
    manifest, spine = child(package, "manifest"), child(package, "spine")
    if manifest is None or spine is None:
        raise DataError("the book has no list of its pages", where=where, fix=f"repair {opf}")
    items = {item.get("id"): item for item in children(manifest, "item")}
    for reference in children(spine, "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or reference.get("linear") == "no" or item.get("media-type") not in _PAGES:
            continue
        member = _member(item.get("href") or "", opf, archive)
        if member is None:
            raise DataError(
                "the book names a page outside of it, or one that it does not hold",
                where=where,
                value=item.get("href"),
                fix="repair the book",
            )
        yield _Page(member, item.get("properties") or "")


def _member(href: str, base: str, archive: _Archive) -> str | None:
    """The member that an address inside the book means."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(parts.path)))
    return found if found in archive.names else None


def _titles(package: _Element, opf: str, archive: _Archive) -> dict[str, str]:
    """The titles that the table of contents gives to whole pages."""
    manifest = child(package, "manifest")
    found: dict[str, str] = {}
    for item in [] if manifest is None else children(manifest, "item"):
        is_nav = "nav" in (item.get("properties") or "").split()
        if not is_nav and item.get("media-type") != "application/x-dtbncx+xml":
            continue
        member = _member(item.get("href") or "", opf, archive)
        if member is None:
            continue
        for part in parse(archive.read(member), f"{archive.path}, {member}").iter():
            link, label = (part.get("href"), part) if is_nav else (None, None)
            if not is_nav and name(part) == "navPoint":
                content = child(part, "content")
                link, label = None if content is None else content.get("src"), child(part, "navLabel")
            target = _member(link, member, archive) if link and "#" not in link else None
            if target and label is not None:
                found.setdefault(target, text_of(label))
    return found


def _is_no_text(root: _Element) -> bool:
    body = child(root, "body")
    marks = set() if body is None else kind(body)
    if body is not None and len(body) == 1:
        marks |= kind(body[0])
    return bool(marks & {"cover", "toc", "titlepage", "copyright-page", "index", "landmarks", "loi", "lot"})


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        "the book is damaged, or is no EPUB",
        where=path,
        value=f"{type(error).__name__}: {error}",
        fix="download or write the file again",
    )
