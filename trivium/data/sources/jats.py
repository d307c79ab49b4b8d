"""Papers in JATS (`.nxml`, PubMed Central) and records of PubMed (`PubmedArticleSet`), streamed article by article.

Text: the abstract, and of JATS the body with its sections (`trivium.data.markup.articles`). The id is the PMC id, else
the DOI, else the PubMed id; `meta` holds title, author, date, doi, pmid, pmcid, journal and sections. Records without
an abstract are counted in the intake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup.articles import article_text, inline
from trivium.data.markup.gutenberg import MONTHS
from trivium.data.markup.licences import licence_name
from trivium.data.markup.sections import heading, sections, tidy
from trivium.data.markup.xml import ELEMENT_BYTES, child, children, elements, name, text_of
from trivium.data.plain import packed
from trivium.errors import DataError

if TYPE_CHECKING:
    from lxml.etree import _Element

EXTENSIONS = packed(".nxml", ".jats")
SHARED = packed(".xml")

_KINDS = ("article", "PubmedArticle", "PubmedBookArticle")
_XLINK = "{http://www.w3.org/1999/xlink}href"


def recognises(head: bytes) -> bool:
    """Whether a file begins like an article or a set of records."""
    return any(mark in head for mark in (b"<PubmedArticleSet", b"<PubmedArticle", b"<pmc-articleset", b"JATS")) or (
        b"<article" in head and (b"<front>" in head or b"article-type=" in head)
    )


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """One document for each article."""
    found = False
    for element in elements(file.path, _KINDS, limit=min(ELEMENT_BYTES, intake.row_bytes)):
        found = True
        where = f"{file.path}:{element.sourceline}"
        document = _paper(element, file, where) if name(element) == "article" else _record(element, where)
        if document is None:
            intake.skipped["records without an abstract"] += 1
        elif not document.text:
            intake.skipped["articles without text"] += 1
        else:
            yield document
    if not found:
        intake.reject(
            DataError(
                "the XML holds no article",
                where=file.path,
                fix="JATS articles and PubMed records are read here; for other XML, convert it to text first",
            )
        )


def _paper(article: _Element, file: InputFile, where: str) -> Document:
    front = child(article, "front")
    meta = child(front, "article-meta")
    ids = {} if meta is None else {part.get("pub-id-type", ""): text_of(part) for part in children(meta, "article-id")}
    pmc = ids.get("pmcid") or ids.get("pmc") or ids.get("pmcaid") or ""
    pmc = f"PMC{pmc}" if pmc.isdecimal() else pmc
    title = child(meta, "title-group", "article-title")
    journal = child(front, "journal-meta", "journal-title-group", "journal-title")
    journal = child(front, "journal-meta", "journal-title") if journal is None else journal
    text = article_text(article)
    known = {
        "title": "" if title is None else inline(title),
        "author": _authors(meta),
        "date": _published(meta),
        "doi": ids.get("doi"),
        "pmid": ids.get("pmid"),
        "pmcid": pmc,
        "arxiv": ids.get("arxiv"),
        "journal": text_of(journal),
        "language": (article.get("{http://www.w3.org/XML/1998/namespace}lang") or "")[:2],
        "sections": sections(text),
    }
    return _document(pmc or ids.get("doi") or file.name, text, where, known, _licence(meta))


def _record(record: _Element, where: str) -> Document | None:
    citation = child(record, "MedlineCitation")
    citation = child(record, "BookDocument") if citation is None else citation
    article = child(citation, "Article")
    article = citation if article is None else article
    abstract = child(article, "Abstract")
    if abstract is None or citation is None or article is None:
        return None
    parts = []
    for part in children(abstract, "AbstractText"):
        label = (part.get("Label") or "").strip()
        parts += [heading(2, label.capitalize())] * bool(label and label != "UNLABELLED") + [inline(part)]
    text = tidy("\n\n".join(parts))
    if not text:
        return None
    number = text_of(child(citation, "PMID"))
    data = child(record, "PubmedData", "ArticleIdList")
    ids = {} if data is None else {part.get("IdType", ""): text_of(part) for part in data}
    doi = next((text_of(part) for part in children(article, "ELocationID") if part.get("EIdType") == "doi"), None)
    title = child(article, "ArticleTitle")
    people = child(article, "AuthorList")
    named = [] if people is None else [_joined(part, "ForeName", "LastName", "CollectiveName") for part in people]
    known = {
        "title": "" if title is None else inline(title),
        "author": "; ".join(filter(None, named)),
        "date": _date(child(article, "Journal", "JournalIssue", "PubDate")),
        "doi": doi or ids.get("doi"),
        "pmid": number,
        "pmcid": ids.get("pmc"),
        "journal": text_of(child(article, "Journal", "Title")),
        "sections": sections(text),
    }
    return _document(
        f"PMID:{number}", text, where, known, licence_name(text_of(child(abstract, "CopyrightInformation")))
    )


def _document(name: str, text: str, where: str, meta: dict[str, Any], licence: str | None) -> Document:
    known = {key: value for key, value in meta.items() if value}
    return Document(name, text, where, licence=licence, meta={**known, "group": name})


def _licence(meta: _Element | None) -> str | None:
    permissions = child(meta, "permissions")
    licence = child(permissions, "license")
    if permissions is None or licence is None:
        return licence_name(text_of(child(permissions, "copyright-statement"))) if permissions is not None else None
    links = [
        licence.get(_XLINK),
        *(part.get(_XLINK) or text_of(part) for part in licence.iter() if name(part) in ("ext-link", "license_ref")),
    ]
    creative = next((link for link in links if link and "creativecommons" in link), None)
    return licence_name(creative or licence.get(_XLINK) or text_of(licence))


def _authors(meta: _Element | None) -> str:
    group = child(meta, "contrib-group")
    people = (
        []
        if group is None
        else [part for part in children(group, "contrib") if part.get("contrib-type", "author") == "author"]
    )
    named = [
        _joined(shown, "given-names", "surname")
        if (shown := child(person, "name")) is not None
        else text_of(child(person, "collab"))
        for person in people
    ]
    return "; ".join(filter(None, named))


def _joined(element: _Element, *names: str) -> str:
    return " ".join(filter(None, (text_of(child(element, name)) for name in names)))


def _published(meta: _Element | None) -> str:
    dates = [] if meta is None else list(children(meta, "pub-date"))
    order = {"epub": 0, "pub": 0, "electronic": 1, "ppub": 2, "print": 2, "collection": 3}
    kind = {id(date): date.get("pub-type") or date.get("date-type") or date.get("publication-format") for date in dates}
    best = sorted(dates, key=lambda date: order.get(kind[id(date)] or "", 4))
    return _date(best[0] if best else None)


def _date(element: _Element | None) -> str:
    """ISO 8601, as exact as it is given: year, month, day."""
    words = [text_of(child(element, part)) for part in ("year", "month", "day")]
    words = words if words[0] else [text_of(child(element, part)) for part in ("Year", "Month", "Day")]
    if not words[0]:
        words = [text_of(child(element, "MedlineDate"))[:4], "", ""]
    found: list[str] = []
    for word, width in zip(words, (4, 2, 2), strict=True):
        lowered = word[:3].lower()
        number = str(MONTHS.index(lowered) + 1) if lowered in MONTHS else word
        if not number.isdecimal():
            break
        found.append(number.zfill(width))
    return "-".join(found)
