"""Pages of a book in XHTML or HTML to text with headings, paragraphs and lists.

Nothing of a page is judged or left out but navigation, scripts, and the marks of notes; for web pages, see the reader
`html`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trivium.data.markup.mathml import tex
from trivium.data.markup.sections import heading, tidy
from trivium.data.markup.wikitext import raised
from trivium.data.markup.xml import child, entity_text, name, parse
from trivium.errors import DataError

if TYPE_CHECKING:
    from lxml.etree import _Element

_NO_TEXT = "script style head nav template svg audio video object iframe noscript form img"
_DROPPED = frozenset(_NO_TEXT.split())
_PARAGRAPHS = """p div section article blockquote ul ol dl dt dd li table tr figure aside figcaption header footer main
body address hr center tbody thead caption td th"""
_BLOCKS = frozenset(_PARAGRAPHS.split())
_TYPE = "{http://www.idpf.org/2007/ops}type"
_NOT_TYPES = "toc landmarks page-list pagebreak index cover titlepage copyright-page noteref backlink"
_NOT_TEXT = frozenset(_NOT_TYPES.split())
_MOST_DEPTH = 200
_CONTENTS_DEPTH = 10
_LEAST_LINKS = 5


def page(raw: bytes, where: str | Path) -> _Element:
    """The root of a page; one that is not well-formed is read as browsers do."""
    try:
        return parse(raw, where)
    except DataError as error:
        if "entities" in error.problem:
            raise
    from lxml import etree, html

    try:
        return html.document_fromstring(raw, parser=html.HTMLParser(huge_tree=False, no_network=True))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise DataError("the page cannot be read", where=where, value=str(error), fix="repair the page") from error


def page_text(root: _Element) -> str:
    """The text of a page."""
    body = child(root, "body")
    blocks = _Blocks()
    blocks.walk(root if body is None else body, 0)
    parts: list[str] = []
    for block in blocks.finish():
        listed = bool(parts) and block.startswith("- ") and parts[-1].startswith("- ")
        parts += ["\n" if listed else "\n\n", block]
    return tidy("".join(parts))


def kind(element: _Element) -> set[str]:
    """What an element says it is: `epub:type` and `role`."""
    words = f"{element.get(_TYPE, '')} {element.get('role', '').replace('doc-', '')}"
    return set(words.split())


def _is_contents(element: _Element) -> bool:
    """Whether a list is a table of contents: links, and next to nothing else."""
    links = [part for part in element.iter() if name(part) == "a" and part.get("href")]
    if len(links) < _LEAST_LINKS:
        return False
    linked = sum(len("".join(link.itertext()).strip()) for link in links)
    return linked > 0.9 * sum(len(word.strip()) for word in element.itertext())


class _Blocks:
    """Collects paragraphs while the tree is walked."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._words: list[str] = []
        self._prefix = ""

    def finish(self) -> Iterator[str]:
        """The paragraphs."""
        self._end()
        return (part for part in self._found if part.strip())

    def walk(self, element: _Element, depth: int) -> None:
        """Take in an element and what is inside; deeper than any page goes, only its text."""
        if depth > _MOST_DEPTH:
            self._words.append(" ".join(element.itertext()))
            return
        self._words.append(element.text or "")
        for part in element:
            self._one(part, depth)
            self._words.append(part.tail or "")

    def _one(self, part: _Element, depth: int) -> None:
        tag = name(part).lower()
        if not tag:
            self._words.append(entity_text(part))
        elif tag in _DROPPED or kind(part) & _NOT_TEXT or part.get("hidden") is not None:
            return
        elif tag in ("ul", "ol") and depth < _CONTENTS_DEPTH and _is_contents(part):
            self._end()
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            self._heading(part, int(tag[1]), depth)
        elif tag == "br":
            self._words.append("\n")
        elif tag == "pre":
            self._end()
            self._found.append("".join(part.itertext()).strip("\n"))
        elif tag == "math":
            self._words.append(f"${tex(part)}$")
        elif tag in ("sup", "sub"):
            self._words.append(raised("".join(part.itertext()).strip(), up=tag == "sup") if len(part) == 0 else "")
            if len(part):
                self.walk(part, depth + 1)
        elif tag in _BLOCKS:
            self._end()
            if tag == "li":
                self._prefix = "- "
            self.walk(part, depth + 1)
            self._end()
        else:
            self.walk(part, depth + 1)

    def _heading(self, part: _Element, level: int, depth: int) -> None:
        self._end()
        before, self._words = self._words, []
        self.walk(part, depth + 1)
        title = " ".join("".join(self._words).split())
        self._words = before
        if title:
            self._found.append(heading(level + 1, title))

    def _end(self) -> None:
        text = "\n".join(filter(None, (" ".join(line.split()) for line in _breaks(self._words))))
        self._words = []
        if text:
            self._found.append(self._prefix + text)
            self._prefix = ""


def _breaks(words: list[str]) -> Iterator[str]:
    """Lines as `<br>` ends them; other line ends are white space."""
    line: list[str] = []
    for word in words:
        if word == "\n":
            yield "".join(line)
            line = []
        else:
            line.append(word)
    yield "".join(line)
