"""HTML to text: the main text of a page with its headings, and what the page says about itself.

The work is done by trafilatura (Apache-2.0), precise mode first; where that finds little, its balanced mode. A page of
very many tags, on which every such method needs quadratic time, goes through `_plain`, which is linear. The bounds are
counts and not clocks, so the same page gives the same text on every machine.

Needs `pip install 'trivium[web]'`.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trivium.data.markup.sections import Section, heading, sections
from trivium.errors import DataError

PAGE_BYTES = 10_000_000
"""Larger pages are not read."""

MOST_TAGS = 10_000
"""With more tags than this, a page is read by the linear method."""

MOST_ATTRIBUTES = 1000
"""A tag with more attributes is left out: the parser needs time that grows with their square."""

SHORT_TEXT = 500
"""A precise text of fewer characters is compared with the balanced one. (Barbaresi 2021 gives both modes.)"""

_SPACE = re.compile(r"[ \t\r\f\v\u00a0]*\n[ \t\r\f\v\u00a0]*|[ \t\r\f\v\u00a0]+")
_PARAGRAPHS = re.compile(r"\n{3,}")
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|encoding=["']([\w.:-]{1,40})""", re.I
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
_TAG = re.compile(r"<[a-zA-Z]")


@dataclass(frozen=True)
class Page:
    """What a page holds.

    text:     the main text: "## Title" lines for its headings, an empty line between paragraphs, "- " before items.
    sections: (level, title) of each heading, in order.
    date:     ISO 8601, as stated by the page; never guessed from its text.
    language: ISO 639-1, as stated by the page.
    licence:  as stated by the page (a link to a Creative Commons licence).
    """

    text: str
    title: str | None = None
    author: str | None = None
    date: str | None = None
    url: str | None = None
    language: str | None = None
    licence: str | None = None

    @property
    def sections(self) -> list[Section]:
        return sections(self.text)

    def meta(self) -> dict[str, Any]:
        """The values under the names every source uses; what the page does not state is left out."""
        names = ("title", "author", "date", "url", "language", "sections")
        return {name: value for name in names if (value := getattr(self, name))}


class NoText(Exception):
    """There is no main text in a page; the message is the reason, one of a few fixed phrases."""


def extract(html: bytes | str, *, url: str | None = None, charset: str | None = None) -> Page:
    """The main text of a page and what it says about itself; NoText where there is none.

    charset: as declared by the server. It is checked against the bytes and may be wrong.
    """
    if len(html) > PAGE_BYTES:
        raise NoText(f"larger than {PAGE_BYTES // 1_000_000} MB")
    text = decode_html(html, charset=charset) if isinstance(html, bytes) else html
    text = parsable(text)
    found = _plain(text) if len(_TAG.findall(text)) > MOST_TAGS else _main_text(text, url)
    if found is None or not found.text:
        raise NoText("no main text")
    return found


def decode_html(raw: bytes, *, charset: str | None = None) -> str:
    """Bytes of a page as text: byte order mark, then whichever declared encoding fits the bytes, then a guess.

    UTF-8 wins wherever the bytes are valid UTF-8, whatever is declared: other encodings hardly ever are by chance.
    """
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(name, "replace")
    if raw[1:400:2].count(0) > 0.6 * len(raw[1:400:2]) > 2:
        return raw.decode("utf-16-le", "replace")
    text = raw.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    if wrong * 10 <= len(raw) - len(raw.translate(None, _NOT_ASCII)) - 3 * wrong or wrong == 0:
        return text  # valid, or valid but for a few bytes (a page that was cut, or glued together)
    stated = _META_CHARSET.search(raw, 0, 4096)
    labels = [charset, (stated[1] or stated[2]).decode("ascii", "replace") if stated else None]
    for label in labels:
        encoding = _ENCODINGS.get((label or "").strip().strip("\"'").lower().replace("_", "-"))
        if encoding is None or encoding == "utf-8":
            continue
        text = raw.decode(encoding, "replace")
        if text.count("\ufffd") * 200 <= len(text):
            return text
    return raw.decode(_guessed(raw), "replace")


def _guessed(raw: bytes) -> str:
    from_bytes = web_package("charset_normalizer", "reading this page").from_bytes
    best = from_bytes(raw[:65536], cp_isolation=sorted(set(_ENCODINGS.values()))).best()
    return best.encoding if best is not None else "cp1252"


def parsable(text: str) -> str:
    """The same page without control characters and without tags of more than a thousand attributes."""
    text = _CONTROL.sub("", text)
    return _TOKEN.sub(_unless_giant, text) if len(text) > 2 * MOST_ATTRIBUTES else text


def _unless_giant(match: re.Match[str]) -> str:
    token = match[0]
    if len(token) <= 2 * MOST_ATTRIBUTES:
        return token
    if not match["tag"]:  # a script or comment by the rules; not all parsers follow them to the letter
        return token[:1] + _TAGS.sub(_unless_giant, token[1:])
    return "" if len(_ATTRIBUTE.findall(token.rstrip(_ENDS))) > MOST_ATTRIBUTES else token


def _main_text(text: str, url: str | None) -> Page | None:
    trafilatura = web_package("trafilatura", "reading HTML")
    for name in ("trafilatura", "htmldate", "courlan"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    etree = web_package("lxml.etree", "reading HTML")

    def run(precise: bool) -> tuple[Any, str]:
        try:
            found = trafilatura.bare_extraction(
                text,
                url=url,
                favor_precision=precise,
                include_comments=False,
                with_metadata=True,
                date_extraction_params=_DATES,
            )
        except (etree.Error, ValueError, TypeError, RecursionError, AttributeError, IndexError, KeyError):
            return None, ""  # defects of the library that only broken pages meet
        return found, "" if found is None else _tidy("".join(_rendered(found.body)))

    found, body = run(True)
    if len(body) < SHORT_TEXT:
        found, body = max((found, body), run(False), key=lambda one: len(one[1]))
    if found is None:
        return None
    return Page(
        text=body,
        title=_line(found.title),
        author=_line(found.author),
        date=found.date or None,
        url=url or found.url or None,
        language=_language(text),
        licence=_line(found.license),
    )


def _rendered(body: Any) -> Iterator[str]:
    """The elements of trafilatura's tree as text."""
    for element in body:
        if element.tag == "head":
            title = " ".join("".join(element.itertext()).split())
            level = str(element.get("rend", "h2"))[-1:]
            if title:
                yield f"\n\n{heading(int(level) if level.isdecimal() else 2, title)}"
        elif element.tag == "list":
            items = map(_cell, element.iter("item"))
            yield "\n\n" + "\n".join(f"- {item}" for item in items if item)
        elif element.tag == "table":
            rows = (" | ".join(_cell(cell) for cell in row.iter("cell")) for row in element.iter("row"))
            yield "\n\n" + "\n".join(row for row in rows if row.strip(" |"))
        else:
            yield "\n\n" + "".join(_inline(element))
        yield element.tail or ""


def _cell(element: Any) -> str:
    return " ".join("".join(_inline(element)).split())


def _inline(element: Any) -> Iterator[str]:
    """Text inside an element; the items of a list inside an item belong to the list."""
    yield element.text or ""
    for child in element:
        if child.tag == "lb":
            yield "\n"
        elif child.tag in ("p", "quote", "head"):
            yield "\n"
            yield from _inline(child)
            yield "\n"
        elif not (element.tag == "item" and child.tag == "list"):
            yield from _inline(child)
        yield child.tail or ""


def _plain(text: str) -> Page | None:
    """All text of the page but navigation, forms and scripts, in one walk over it."""
    html = web_package("lxml.html", "reading HTML")
    try:
        root = html.document_fromstring(text.encode("utf-8", "replace"), parser=html.HTMLParser(encoding="utf-8"))
    except (ValueError, html.etree.LxmlError):
        return None
    pieces: list[str] = []
    hidden = 0
    for event, element in html.etree.iterwalk(root, events=("start", "end")):
        tag = element.tag if isinstance(element.tag, str) else "comment"
        begins = event == "start"
        hidden += (tag in _LEFT_OUT) * (1 if begins else -1)
        if not hidden:
            piece = (element.text if begins else element.tail) or ""
            pieces += [_mark(tag, begins), piece.replace("\n", " ")]
    body = _tidy("".join(pieces))
    kept = [block for block in body.split("\n\n") if block.strip("#- ")]
    return Page("\n\n".join(kept), title=_line(root.findtext(".//title")), language=_language(text))


def _mark(tag: str, begins: bool) -> str:
    """What stands before the text of an element, or before the text that follows it."""
    if begins and re.fullmatch("h[1-6]", tag):
        return f"\n\n{'#' * max(int(tag[1]), 2)} "
    if begins and tag == "li":
        return "\n\n- "
    return "\n\n" if tag in _BLOCKS else "\n" if tag == "br" and not begins else ""


def _tidy(text: str) -> str:
    """Single spaces, at most one empty line."""
    spaced = _SPACE.sub(lambda match: "\n" if "\n" in match[0] else " ", text)
    return _PARAGRAPHS.sub("\n\n", spaced).strip()


def _line(text: str | None) -> str | None:
    return " ".join(text.split()) or None if text else None


def _language(text: str) -> str | None:
    match = _LANGUAGE.search(text, 0, 20_000)
    return match[1].lower() if match else None


def web_package(module: str, purpose: str) -> Any:
    """An optional package of the extra `web`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{purpose} needs {module.partition('.')[0]}", fix="pip install 'trivium[web]'") from error


_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NOT_ASCII = bytes(range(128, 256))
_DATES = {"extensive_search": False, "original_date": True, "max_date": "2099-12-31"}
_LANGUAGE = re.compile(r"""<html\b[^<>]{0,2000}?\slang\s*=\s*["']?([a-zA-Z]{2})(?![a-zA-Z])""", re.I)
# Where a tag ends by the rules that parsers follow (https://html.spec.whatwg.org/#tokenization); every character is
# looked at once.
_ATTRIBUTE_RULE = r"""[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+"""
_TAG_RULE = rf"(?P<tag></?[a-z][^\s/>]*+(?:{_ATTRIBUTE_RULE})*+[\s/]*+>?)"
_RULES = re.DOTALL | re.IGNORECASE | re.VERBOSE
_ATTRIBUTE = re.compile(_ATTRIBUTE_RULE)
_ENDS = "/>" + "".join(filter(str.isspace, map(chr, range(0x3001))))
_TAGS = re.compile(_TAG_RULE, _RULES)
_TOKEN = re.compile(
    rf"""<!--(?:>|->|.*?(?:--!?>|\Z)) | <[!?][^>]*+>? | </[^a-z>][^>]*+>?
    | <(?P<raw>script|style|title|textarea|xmp|iframe|noembed|noframes)(?=[\s/>]).*?(?:(?=</(?P=raw))|\Z)
    | {_TAG_RULE}""",
    _RULES,
)
_FURNITURE = "head script style nav header footer aside form noscript iframe svg button select template comment"
_LEFT_OUT = frozenset(_FURNITURE.split())
_APART = "p div section article main ul ol li dl dt dd table tr pre blockquote figure figcaption hr body"
_BLOCKS = frozenset(f"{_APART} h1 h2 h3 h4 h5 h6".split())

_ENCODINGS = {
    label: name
    for name, labels in {
        "utf-8": "utf-8 utf8 unicode-1-1-utf-8",
        "cp1252": "iso-8859-1 iso8859-1 latin1 latin-1 l1 windows-1252 cp1252 ascii us-ascii ansi",
        "cp1250": "windows-1250 cp1250",
        "iso8859-2": "iso-8859-2 latin2 latin-2",
        "cp1251": "windows-1251 cp1251 win-1251",
        "iso8859-5": "iso-8859-5 cyrillic",
        "koi8-r": "koi8-r koi8 koi",
        "koi8-u": "koi8-u",
        "cp866": "ibm866 cp866",
        "cp1253": "windows-1253 cp1253",
        "iso8859-7": "iso-8859-7 greek",
        "cp1254": "windows-1254 iso-8859-9 latin5",
        "cp1255": "windows-1255 iso-8859-8 iso-8859-8-i hebrew",
        "cp1256": "windows-1256",
        "iso8859-6": "iso-8859-6 arabic",
        "cp1257": "windows-1257",
        "iso8859-13": "iso-8859-13",
        "iso8859-4": "iso-8859-4",
        "cp1258": "windows-1258",
        "iso8859-15": "iso-8859-15 latin9 latin-9",
        "cp874": "windows-874 tis-620 iso-8859-11",
        "gb18030": "gb2312 gbk gb18030 x-gbk euc-cn chinese",
        "big5hkscs": "big5 big5-hkscs cn-big5",
        "cp932": "shift-jis shift_jis sjis x-sjis ms932 windows-31j",
        "euc_jp": "euc-jp x-euc-jp",
        "iso2022_jp": "iso-2022-jp",
        "cp949": "euc-kr ks-c-5601-1987 ks_c_5601-1987 korean windows-949 ksc5601",
        "utf-16-le": "utf-16 utf-16le",
        "utf-16-be": "utf-16be",
        "mac-roman": "macintosh x-mac-roman",
    }.items()
    for label in labels.split()
}
"""Encodings of the WHATWG standard by label. No others: some codecs of Python are no encodings of text at all."""
