"""XML that was written by others: read piece by piece, without entities of its own, with limits for depth and size.

Needs lxml (`pip install 'trivium[data]'`). Nothing is ever fetched: neither DTDs nor anything else the text names.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.data.plain import damaged, open_bytes
from trivium.errors import DataError

if TYPE_CHECKING:
    from lxml.etree import _Element

ELEMENT_BYTES = 16 << 20
"""Longest article or page; held as a tree it takes up to twenty times as much."""

_HEAD = 1 << 16
_ENTITY = re.compile(rb"<!ENTITY|<\0!\0E\0N\0T\0I\0T\0Y\0|\0<\0!\0E\0N\0T\0I\0T\0Y")


def elements(
    path: Path, tags: Sequence[str], *, limit: int, stream: Any = None, inner: Sequence[str] = ()
) -> Iterator[_Element]:
    """Each element with one of these names (in any namespace), whole; it is empty again when the next one is asked for.

    limit: bytes that may lie between the ends of two of them.
    inner: those of the names that stand inside of others; what stands before them stays.

    What is wrong with the file is a DataError.
    """
    etree = _etree(path)
    with stream or open_bytes(path) as opened:
        metered = _Metered(opened, path, limit)
        parser = etree.iterparse(
            metered,
            events=("end",),
            tag=[f"{{*}}{tag}" for tag in tags],
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
        )
        last = 1
        try:
            for _, element in parser:
                metered.passed = 0
                last = element.sourceline or last
                yield element
                element.clear(keep_tail=False)
                before = element.getprevious()
                while before is not None and (before.tag == element.tag or name(element) not in inner):
                    element.getparent().remove(before)
                    before = element.getprevious()
        except etree.XMLSyntaxError as error:
            raise not_xml(path, error) from None
        except EOFError as error:
            raise damaged(path, last, error) from error


def parse(raw: bytes, where: str | Path) -> _Element:
    """One XML document that is held as a whole."""
    etree = _etree(where)
    refuse_entities(raw[:_HEAD], where)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(raw, parser)
    except etree.XMLSyntaxError as error:
        raise not_xml(where, error) from None
    if root is None:
        raise DataError("the XML holds nothing", where=where, fix="write or download the file again")
    return root


def refuse_entities(head: bytes, where: str | Path) -> None:
    """Entities that the text itself declares can grow without limit, or name files; no format read here needs them."""
    found = _ENTITY.search(head)
    if found:
        raise DataError(
            "the XML declares entities of its own, which could grow without limit or read files",
            where=where,
            value=head[found.start() : found.start() + 80].decode("utf-8", "replace"),
            fix="remove the <!ENTITY ...> lines, and what refers to them",
        )


def not_xml(where: str | Path, error: Any) -> DataError:
    """What is wrong with text that is not XML."""
    line = getattr(error, "lineno", None)
    return DataError(
        "the text is not well-formed XML",
        where=f"{where}:{line}" if line else where,
        value=str(error.msg or error),
        fix="the file may have been cut off; download or write it again",
    )


def name(element: _Element) -> str:
    """The name of an element without its namespace; empty for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def entity_text(element: _Element) -> str:
    """The character that a reference such as `&nbsp;` stands for; empty for comments and instructions."""
    text = element.text or ""
    found = html.unescape(text)
    return found if text.startswith("&") and found != text else ""


def children(element: _Element, *names: str) -> Iterator[_Element]:
    """The children with one of these names."""
    return (child for child in element if name(child) in names)


def child(element: _Element | None, *path: str) -> _Element | None:
    """The first child with this name, its first child with the next name, and so on."""
    for step in path:
        element = None if element is None else next(children(element, step), None)
    return element


def text_of(element: _Element | None) -> str:
    """All text inside an element on one line."""
    if element is None:
        return ""
    return " ".join("".join(_texts(element)).split())


def _texts(element: _Element) -> Iterator[str]:
    yield element.text or ""
    for inner in element:
        if isinstance(inner.tag, str):
            yield from _texts(inner)
        else:
            yield entity_text(inner)
        yield inner.tail or ""


class _Metered(io.RawIOBase):
    """A stream for the parser that refuses entities in its head, and elements that never end."""

    def __init__(self, stream: Any, path: Path, limit: int) -> None:
        self.passed = 0
        self._stream = stream
        self._path = path
        self._limit = limit
        self._begun = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        try:
            block: bytes = self._stream.read(size if size and size > 0 else _HEAD)
        except DataError:
            raise
        except Exception as error:
            raise damaged(self._path, None, error) from error
        if not self._begun:
            self._begun = True
            refuse_entities(block[:_HEAD], self._path)
        self.passed += len(block)
        if self.passed > self._limit:
            raise DataError(
                "the element is too long",
                where=self._path,
                value=f"more than {self._limit:,} bytes",
                fix="check that the file is what its name says",
            )
        return block


def _etree(where: str | Path) -> Any:
    try:
        from lxml import etree
    except ImportError as error:
        raise DataError("reading XML needs lxml", where=where, fix="pip install 'trivium[data]'") from error
    return etree
