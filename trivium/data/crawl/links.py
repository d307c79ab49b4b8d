"""What a page or a sitemap points to, and what its owner says about using it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trivium.data.crawl.records import Damaged, unpacked
from trivium.data.crawl.urls import Refused, canonical
from trivium.data.extraction import decode_html, parsable, web_package

MOST_LINKS = 10_000
"""More links of one page are left out."""

_SITEMAP_LINKS = 50_000
_LINKED = {"a": "href", "area": "href", "frame": "src"}


@dataclass(frozen=True)
class Found:
    """links: canonical and different. index, follow: whether the page may be kept, and its links followed."""

    links: Sequence[str] = ()
    index: bool = True
    follow: bool = True
    reserved: bool = False


def of_page(body: bytes, url: str, *, charset: str | None, agent: str, robots_headers: Iterable[str]) -> Found:
    """The links of an HTML page that may be followed, and the wishes in its headers and meta elements."""
    html = web_package("lxml.html", "crawling")
    wishes = {wish for header in robots_headers for wish in _wishes(header, agent)}
    try:
        text = parsable(decode_html(body, charset=charset)).encode("utf-8", "replace")
        root = html.document_fromstring(text, parser=html.HTMLParser(encoding="utf-8"))
    except (ValueError, html.etree.LxmlError):
        root = html.Element("html")
    reserved = False
    for meta in root.iter("meta"):
        name = (meta.get("name") or "").strip().lower()
        if name in ("robots", agent.lower()):
            wishes |= set(_words(meta.get("content") or ""))
        reserved |= name == "tdm-reservation" and (meta.get("content") or "").strip() == "1"
    follow = not wishes & {"nofollow", "none"}
    return Found(
        links=_links(root, url) if follow else (),
        index=not wishes & {"noindex", "none"},
        follow=follow,
        reserved=reserved or bool(wishes & {"noai", "noml"}),
    )


def _links(root: object, url: str) -> list[str]:
    found: dict[str, None] = {}
    seen: set[str] = set()
    base = _base(root, url)
    for element in root.iter(*_LINKED):  # type: ignore[attr-defined]
        target = element.get(_LINKED[element.tag])
        if not target or target in seen or "nofollow" in (element.get("rel") or "").lower().split():
            continue
        seen.add(target)
        try:
            link = canonical(target, base)
        except Refused:
            continue
        if link != url:
            found[link] = None
        if len(seen) >= MOST_LINKS:
            break
    return list(found)


def _base(root: object, url: str) -> str:
    """What links are relative to: the first <base> that is an address, else the page."""
    for element in root.iter("base"):  # type: ignore[attr-defined]
        try:
            return canonical(element.get("href") or "", url)
        except Refused:
            return url
    return url


def _wishes(header: str, agent: str) -> Iterator[str]:
    """The words of an X-Robots-Tag header that are meant for everybody or for this crawler."""
    name, colon, rest = header.partition(":")
    if colon and re.fullmatch(r"[\w-]+", name.strip()) and name.strip().lower() != "unavailable_after":
        if name.strip().lower() == agent.lower():
            yield from _words(rest)
        return
    yield from _words(header)


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",")]


def of_sitemap(body: bytes, *, limit: int) -> tuple[list[str], list[str]]:
    """(pages, further sitemaps) that a sitemap lists: XML or one address a line, packed or not.

    Entities are not expanded and nothing is loaded. (https://www.sitemaps.org/protocol.html)
    """
    try:
        body = unpacked(body, "gzip" if body.startswith(b"\x1f\x8b") else "", limit)
    except Damaged:
        return [], []
    if b"<" not in body[:1000]:
        return _canonical_all(line.decode("utf-8", "replace") for line in body.splitlines()[:_SITEMAP_LINKS]), []
    etree = web_package("lxml.etree", "crawling")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True, huge_tree=False)
    try:
        root = etree.fromstring(body, parser)
    except (ValueError, etree.LxmlError):
        return [], []
    pages: list[str] = []
    sitemaps: list[str] = []
    for element in root.iter() if root is not None else ():
        if not isinstance(element.tag, str) or etree.QName(element).localname != "loc":
            continue
        parent = element.getparent()
        kind = etree.QName(parent).localname if parent is not None else ""
        if kind in ("url", "sitemap"):
            (pages if kind == "url" else sitemaps).append(element.text or "")
        if len(pages) + len(sitemaps) >= _SITEMAP_LINKS:
            break
    return _canonical_all(pages), _canonical_all(sitemaps)


def _canonical_all(links: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for link in links:
        try:
            found[canonical(link)] = None
        except Refused:
            continue
    return list(found)
