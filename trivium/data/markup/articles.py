"""JATS articles: from the elements of a paper to text with headings.

Left out: references and the marks that cite them, tables (their captions stay), affiliations. Kept: abstract, body with
its sections, captions, lists, and formulas as `$...$`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trivium.data.markup.mathml import tex
from trivium.data.markup.sections import heading, tidy
from trivium.data.markup.wikitext import raised
from trivium.data.markup.xml import child, children, entity_text, name, text_of

if TYPE_CHECKING:
    from lxml.etree import _Element

_DROPPED = frozenset(
    (
        *("ref-list", "table", "fn", "fn-group", "label", "object-id", "graphic", "media", "inline-graphic", "title"),
        *("permissions", "sec-meta", "table-wrap-foot", "bio", "supplementary-material"),
        "inline-supplementary-material",
    )
)
_BLOCKS = frozenset(
    (
        *("p", "sec", "list", "disp-quote", "boxed-text", "fig", "table-wrap", "fig-group", "def-list", "verse-group"),
        *("disp-formula-group", "statement", "ack", "app", "app-group", "glossary", "speech", "caption", "preformat"),
        *("code", "abstract", "body", "list-item", "def-item", "verse-line", "floats-group", "notes", "term", "def"),
    )
)
_CITES = frozenset(("bibr", "fn", "aff", "corresp", "table-fn"))
_CITED = "\ue002"
"""Stands where a citation was, until the brackets and commas around it are removed."""
_BETWEEN = r"(?:[\s,;–-]|and|&|see|also|e\.g\.|cf\.|reviewed in|for review)*"  # noqa: RUF001
_CITATIONS = (
    re.compile(rf"\s*[(\[]{_BETWEEN}{_CITED}(?:{_BETWEEN}{_CITED})*{_BETWEEN}[)\]]"),
    re.compile(rf"\s*{_CITED}(?:[\s,;–-]*{_CITED})*(?:\s+(?=[.,;:)]))?"),  # noqa: RUF001
)
_BODY_OF_TEX = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)


def article_text(article: _Element) -> str:
    """The text of an `article`: abstract and body."""
    meta = child(article, "front", "article-meta")
    parts: list[str] = []
    for abstract in [] if meta is None else children(meta, "abstract"):
        if abstract.get("abstract-type") in (None, "section", "executive-summary"):
            parts += [heading(2, text_of(child(abstract, "title")).rstrip(":.") or "Abstract"), *_blocks(abstract, 2)]
    for part in children(article, "body"):
        parts += _blocks(part, 1)
    back = child(article, "back")
    for part in [] if back is None else children(back, "app-group", "app"):
        parts += _blocks(part, 1)
    for part in children(article, "sub-article", "response"):
        parts += [heading(2, text_of(child(part, "front-stub", "title-group", "article-title")) or "Reply")]
        parts += [block for body in children(part, "body") for block in _blocks(body, 2)]
    return tidy("\n\n".join(part for part in parts if part.strip()))


def inline(element: _Element) -> str:
    """The text inside an element on one line, without citations."""
    text = " ".join("".join(_inside(element)).split())
    if _CITED in text:
        for pattern in _CITATIONS:
            text = pattern.sub("", text)
    return text


def _blocks(element: _Element, level: int) -> Iterator[str]:
    """The paragraphs and headings inside an element; `level` is that of the heading above."""
    for part in element:
        kind = name(part)
        if kind in ("sec", "app", "ack", "glossary"):
            title = child(part, "title")
            if title is not None and text_of(title):
                yield heading(level + 1, inline(title).rstrip(":."))
            yield from _blocks(part, level + 1)
        elif kind in ("list", "def-list"):
            yield "\n".join(
                f"- {' '.join(_blocks(item, level)) or inline(item)}"
                for item in part
                if name(item) in ("list-item", "def-item")
            )
        elif kind in ("fig", "table-wrap"):
            yield _caption(part)
        elif kind in ("preformat", "code"):
            yield "".join(part.itertext())
        elif kind == "disp-formula":
            yield inline(part)
        elif kind in ("p", "verse-line", "term"):
            yield from _paragraph(part, level)
        elif kind in _BLOCKS:
            yield from _blocks(part, level)


def _paragraph(element: _Element, level: int) -> Iterator[str]:
    """A paragraph, and after it the lists and figures that stand inside it."""
    yield inline(element)
    for part in element:
        if name(part) in _BLOCKS:
            holder = element.makeelement("p")
            holder.extend([part.__copy__()])
            yield from _blocks(holder, level)


def _caption(element: _Element) -> str:
    label, caption = text_of(child(element, "label")), child(element, "caption")
    if caption is None:
        return ""
    title = child(caption, "title")
    words = [label, "" if title is None else inline(title), *(inline(part) for part in children(caption, "p"))]
    return " ".join(word if word[-1:] in ".:?!" else f"{word}." for word in words if word)


def _inside(element: _Element) -> Iterator[str]:
    yield element.text or ""
    for part in element:
        yield from _one(part)
        yield part.tail or ""


def _one(part: _Element) -> Iterator[str]:
    kind = name(part)
    if not kind:
        yield entity_text(part)
    elif kind == "xref" and part.get("ref-type") in _CITES:
        yield _CITED
    elif kind in ("sup", "sub"):
        inner = "".join(_inside(part)).strip()
        yield _CITED if _CITED in inner else raised(inner, up=kind == "sup")
    elif kind == "math":
        yield f"${tex(part)}$"
    elif kind == "tex-math":
        found = _BODY_OF_TEX.search(part.text or "")
        inner = (found[1] if found else part.text or "").strip().strip("$").strip()
        yield f"${inner}$"
    elif kind == "alternatives":
        chosen = next(children(part, "tex-math"), None)
        chosen = next(children(part, "math"), None) if chosen is None else chosen
        if chosen is not None:
            yield from _one(chosen)
    elif kind == "break":
        yield " "
    elif kind not in _DROPPED and kind not in _BLOCKS:
        yield from _inside(part)
