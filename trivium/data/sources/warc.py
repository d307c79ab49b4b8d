"""WARC, WET and ARC files: each page that was fetched with success is one document.

HTML goes through `trivium.data.extraction`; plain text and the conversion records of WET files are taken as they are.
`meta` holds url, crawled (when), record, digest, status, content_type, and what the page says about itself; `date` is
the page's own, or else when it was crawled. Records of other kinds, failed requests and other media are counted by
reason; damaged ones go to the intake with their byte offset.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

from trivium.data.crawl.records import Damaged, Message, Record, content_type, digest, message, records
from trivium.data.documents import Document
from trivium.data.extraction import NoText, Page, decode_html, extract
from trivium.data.intake import InputFile, Intake
from trivium.errors import DataError

_KINDS = ("warc", "wet", "arc")
EXTENSIONS = tuple(f".{kind}{packing}" for kind in _KINDS for packing in ("", ".gz", ".zst"))

_HTML = {"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"}
_TEXT = {"text/plain", "text/markdown"}


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """One document for each page; the id is the id of its record."""
    found = False
    for record in records(file.path, intake):
        found = True
        where = f"{file.path}, byte {record.offset}"
        try:
            document = _document(record, file, where)
        except NoText as reason:
            intake.skipped[str(reason)] += 1
        except Damaged as error:
            url = record.headers.get("warc-target-uri", "")
            intake.reject(
                DataError(str(error), where=where, value=url, fix="set such records aside (on_error: quarantine)")
            )
        else:
            yield document
    if not found:
        intake.skipped["file without records"] += 1


def _document(record: Record, file: InputFile, where: str) -> Document:
    headers = record.headers
    if record.type not in ("response", "resource", "conversion"):
        raise NoText(f"{re.sub('[^a-z]', '', record.type)[:20] or 'untyped'} record")
    _check(record)
    answer = _answer(record)
    if answer.status != 200:
        raise NoText(f"status {answer.status}")
    kind, charset = content_type(answer.headers.get("content-type", ""))
    url = headers.get("warc-target-uri", "").strip("<>")
    page = _page(answer, kind, charset, url)
    crawled = headers.get("warc-date")
    meta: dict[str, Any] = {
        "group": url or f"{file.name}@{record.offset}",
        **page.meta(),
        "url": url or page.url,
        "date": page.date or crawled,
        "crawled": crawled,
        "record": headers.get("warc-record-id", "").strip("<>"),
        "digest": headers.get("warc-payload-digest") or digest(answer.body),
        "status": answer.status,
        "content_type": kind,
    }
    name = str(meta["record"]) or f"{file.name}@{record.offset}"
    return Document(name, page.text, where, page.licence, {key: value for key, value in meta.items() if value})


def _answer(record: Record) -> Message:
    """The response of a record; one that holds the content alone counts as a success."""
    kind = record.headers.get("content-type", "")
    if record.type == "response" and record.headers.get("warc-target-uri", "http").lower().strip("<").startswith(
        "http"
    ):
        return message(record.block)
    return Message(200, {"content-type": kind}, record.block)


def _page(answer: Message, kind: str, charset: str | None, url: str) -> Page:
    if kind in _HTML or (not kind and b"<html" in answer.body[:2000].lower()):
        return extract(answer.body, url=url or None, charset=charset)
    if kind in _TEXT:
        text = decode_html(answer.body, charset=charset).replace("\0", "")
        if not text.strip():
            raise NoText("no main text")
        return Page(text)
    family = kind.partition("/")[0]
    raise NoText(f"content type {family}" if family in _FAMILIES else "other content type")


def _check(record: Record) -> None:
    """The digest of the whole block, where there is one of a known kind."""
    name, _, stated = record.headers.get("warc-block-digest", "").partition(":")
    if name.lower() not in ("sha1", "sha256", "md5") or not stated:
        return
    found = hashlib.new(name.lower(), record.block, usedforsecurity=False).digest()
    if stated.lower().rstrip("=") not in (found.hex(), base64.b32encode(found).decode().lower().rstrip("=")):
        raise Damaged("the record does not match its digest")


_FAMILIES = frozenset(["application", "audio", "font", "image", "message", "multipart", "text", "video"])
