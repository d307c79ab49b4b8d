"""Dumps of Wikipedia and other MediaWiki sites: `pages-articles.xml`, plain or packed, streamed.

One document a page of the main namespace: text with headings, lists and mathematics, without templates, tables and
references (`trivium.data.markup.wikitext`). The id is `wiki:page` (`enwiki:12`); `meta` holds page_id, revision_id,
title, date (of the revision), url, language and sections. Redirects, pages of other namespaces and pages that are not
wikitext are counted in the intake.

A dump in many bz2 streams (`-multistream.xml.bz2`), and an unpacked one, is read in parts by several processes.
"""

from __future__ import annotations

import bz2
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake, Span
from trivium.data.markup.sections import sections
from trivium.data.markup.wikitext import CATEGORIES, FILES, plain_text
from trivium.data.markup.xml import ELEMENT_BYTES, child, children, elements, name, text_of
from trivium.data.plain import damaged, head_of, packed

if TYPE_CHECKING:
    from lxml.etree import _Element

EXTENSIONS = ()
SHARED = packed(".xml")

_WIKIMEDIA = re.compile(r"\.(wikipedia|wiktionary|wikibooks|wikiquote|wikisource|wikiversity|wikivoyage)\.org/")
_PART_BYTES = 1 << 28
_ROOT = re.compile(rb"<mediawiki\b[^>]{0,1000}>")
_LANGUAGE = re.compile(rb"xml:lang=\"([a-z]{2,3})\"")
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_PAGE = re.compile(rb"^ *<page>", re.MULTILINE)


def recognises(head: bytes) -> bool:
    """Whether a file begins like a dump."""
    return b"<mediawiki" in head


def spans(file: InputFile, size: int) -> Iterator[Span]:
    """Parts of about `size` bytes of a dump that can be read alone, from a stream or a page to the next."""
    mark = _STREAM if file.path.name.endswith(".bz2") else _PAGE if file.path.suffix == ".xml" else None
    if mark is None:
        return
    cuts = list(_cuts(file.path, mark, size))
    if len(cuts) > 2:
        yield from (Span(start, end, 0) for start, end in pairwise(cuts))


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The articles, in the order of the dump."""
    site = _site(file.path)
    stream = None if file.span is None else _part(file.path, file.span)
    tags = ("siteinfo", "revision", "page")
    newest, older = _Revision(), -1
    limit = min(ELEMENT_BYTES, intake.row_bytes)
    for element in elements(file.path, tags, limit=limit, stream=stream, inner=("revision",)):
        if name(element) == "revision":  # one at a time: a dump of histories has thousands of them in a page
            newest, older = max(newest, _revision(element), key=lambda one: one.date), older + 1
        elif name(element) == "page":
            line = f"{file.path}:{element.sourceline}" if file.span is None else str(file.path)
            document = _page(element, newest, site, line, intake)
            if older > 0:
                intake.skipped["older revisions of pages"] += older
            newest, older = _Revision(), -1
            if document is not None:
                yield document


@dataclass(frozen=True)
class _Revision:
    date: str = ""
    number: str = ""
    model: str = ""
    source: str = ""


def _revision(element: _Element) -> _Revision:
    source = child(element, "text")
    return _Revision(
        date=text_of(child(element, "timestamp")),
        number=text_of(child(element, "id")),
        model=text_of(child(element, "model")),
        source="" if source is None else source.text or "",
    )


@dataclass
class _Site:
    """What the head of a dump says: name, address and language of the wiki, and its own names of namespaces."""

    name: str = "wiki"
    base: str = ""
    language: str | None = None
    files: set[str] = field(default_factory=lambda: set(FILES))
    categories: set[str] = field(default_factory=lambda: set(CATEGORIES))


def _site(path: Path) -> _Site:
    head = head_of(path, 1 << 16)
    site = _Site()
    language = _LANGUAGE.search(head)
    site.language = language[1].decode() if language else None
    end = head.find(b"</siteinfo>")
    if end < 0:
        return site
    begin = head.find(b"<siteinfo")
    info = next(elements(path, ("siteinfo",), limit=1 << 20, stream=io.BytesIO(head[begin : end + 11])), None)
    if info is None:
        return site
    site.name = text_of(child(info, "dbname")) or site.name
    site.base = text_of(child(info, "base")).rpartition("/")[0]
    for space in children(info, "namespaces"):
        for entry in space:
            names = {"6": site.files, "-2": site.files, "14": site.categories}.get(entry.get("key", ""))
            if names is not None and entry.text:
                names.add(entry.text.strip().lower())
    return site


def _page(page: _Element, revision: _Revision, site: _Site, where: str, intake: Intake) -> Document | None:
    """The document of a page, or None after it was counted."""
    if text_of(child(page, "ns")) not in ("0", ""):
        intake.skipped["pages of other namespaces"] += 1
        return None
    if child(page, "redirect") is not None or revision.source[:9].upper() == "#REDIRECT":
        intake.skipped["redirects"] += 1
        return None
    if revision.model not in ("wikitext", ""):
        intake.skipped["pages that are not wikitext"] += 1
        return None
    text = plain_text(revision.source, files=site.files, categories=site.categories)
    if not text:
        intake.skipped["pages without text"] += 1
        return None
    title, number = text_of(child(page, "title")), text_of(child(page, "id"))
    meta = {
        "title": title,
        "date": revision.date,
        "page_id": number,
        "revision_id": revision.number,
        "url": f"{site.base}/{quote(title.replace(' ', '_'))}" if site.base else "",
        "language": site.language,
        "sections": sections(text),
        "group": f"{site.name}:{number}",
    }
    known = {key: value for key, value in meta.items() if value}
    version = "4.0" if revision.date >= "2023-06-07" else "3.0"
    licence = f"CC-BY-SA-{version}" if _WIKIMEDIA.search(site.base + "/") else None
    return Document(f"{site.name}:{number}", text, where, licence=licence, meta=known)


def _cuts(path: Path, mark: re.Pattern[bytes], size: int) -> Iterator[int]:
    """The begin of the first part, of every further part, and the end of the file."""
    last, overlap, base = 0, 32, 0
    yield 0
    with path.open("rb") as stream:
        held = b""
        while block := stream.read(1 << 22):
            held += block
            for match in mark.finditer(held):
                if base + match.start() - last >= size:
                    last = base + match.start()
                    yield last
            base += max(0, len(held) - overlap)
            held = held[-overlap:]
        end = stream.tell()
    if end > last:
        yield end


def _part(path: Path, span: Span) -> io.BufferedIOBase:
    """The pages of a part as one XML document."""
    with path.open("rb") as stream:
        stream.seek(span.start)
        raw = stream.read(span.end - span.start)
    text = _unpacked(raw, path) if path.suffix == ".bz2" else raw
    begin = _PAGE.search(text)
    if begin is None:
        return io.BytesIO(b"<mediawiki/>")
    head = _ROOT.search(head_of(path, 1 << 16))
    end = text.rfind(b"</mediawiki>")
    body = text[begin.start() : end if end > 0 else len(text)]
    return io.BytesIO((head[0] if head else b"<mediawiki>") + body + b"</mediawiki>")


def _unpacked(raw: bytes, path: Path) -> bytes:
    found: list[bytes] = []
    room = _PART_BYTES
    while raw:
        unpack = bz2.BZ2Decompressor()
        try:
            found.append(unpack.decompress(raw, room))
        except (OSError, ValueError) as error:
            raise damaged(path, None, error) from error
        room -= len(found[-1])
        if room <= 0 or not unpack.eof:
            problem = "the end of the data is missing" if room > 0 else f"more than {_PART_BYTES:,} bytes in a part"
            raise damaged(path, None, EOFError(problem))
        raw = unpack.unused_data
    return b"".join(found)
