"""Mail as text: what the author of each message wrote, without headers, quoted replies and signatures.

`.eml` is one message, `.mbox` many, streamed. The text is the plain part, else the HTML part as text; attachments are
counted. The id is the Message-ID; `meta` holds title (the subject), date and, as the group, the thread, so that no
split cuts a conversation in two. Addresses of people are not kept.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import cast

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup.prose import decoded
from trivium.data.markup.sections import tidy
from trivium.data.markup.xhtml import page, page_text
from trivium.data.plain import DAMAGED, damaged, open_bytes, packed, read_whole
from trivium.errors import DataError

EXTENSIONS = packed(".eml", ".mbox", ".mbx")

MESSAGE_BYTES = 32 << 20
"""Longest message that is read; a longer one is set aside."""

_QUOTED = re.compile(r"^[ \t]*(?:>|\|(?= ))")
_SAYS = re.compile(
    r"^[ \t]*(?:On\b.{4,200}\bwrote:|Am\b.{4,200}\bschrieb.{0,80}:|Le\b.{4,200}\ba écrit ?:"
    r"|.{1,100}\b(?:writes|wrote|schrieb):)[ \t]*$",
    re.IGNORECASE,
)
_FORWARDED = re.compile(
    r"^[ \t]*-{2,}[ \t]*(?:Original Message|Forwarded Message|Ursprüngliche Nachricht|Begin forwarded message).{0,80}$"
    r"|^_{20,}[ \t]*$|^Begin forwarded message:",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^(?:\s*(?:re|aw|fwd?|wg|sv|antw)\s*(?:\[\d+\])?:\s*)+", re.IGNORECASE)
_ID = re.compile(r"<([^<>\s]{3,250})>")
_FIRST = (b"From ", b"Return-Path:", b"Received:", b"Delivered-To:", b"From:", b"Date:", b"Message-ID:")


def recognises(head: bytes) -> bool:
    """Whether a file begins like a mailbox or a message."""
    fields = sum(mark in head[:8000].lower() for mark in (b"\nmessage-id:", b"\nsubject:", b"\ndate:", b"\nfrom:"))
    return fields >= 3 and head.startswith(_FIRST)


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """One document a message."""
    seen: set[str] = set()
    for line, raw in _messages(file, intake):
        where = f"{file.path}:{line}"
        if len(raw) > MESSAGE_BYTES:
            problem = DataError("the message is too long", where=where, value=f"more than {MESSAGE_BYTES:,} bytes")
            intake.reject(problem)
            continue
        try:
            document = _document(raw, file, line, intake)
        except (RecursionError, LookupError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            intake.reject(
                DataError(
                    "the message cannot be read",
                    where=where,
                    value=f"{type(error).__name__}: {error}",
                    fix="repair or remove it",
                )
            )
            continue
        if document is None:
            intake.skipped["messages without text of their own"] += 1
        elif document.id in seen:
            intake.skipped["messages that are in the mailbox twice"] += 1
        else:
            seen.add(document.id)
            yield document


def _messages(file: InputFile, intake: Intake) -> Iterator[tuple[int, bytes]]:
    """(line on which it begins, bytes) of each message; of one that is too long, only the begin."""
    with open_bytes(file.path) as stream:
        try:
            first = stream.readline(MESSAGE_BYTES)
        except DAMAGED as error:
            raise damaged(file.path, 0, error) from error
        if not first.startswith(b"From "):
            yield 1, read_whole(file.path, MESSAGE_BYTES)
            return
        line, begin, held, size, blank = 1, 1, list[bytes](), 0, False
        try:
            while row := stream.readline(1 << 20):
                line += 1
                if blank and row.startswith(b"From "):
                    yield begin, b"".join(held)
                    begin, held, size = line, [], 0
                elif size <= MESSAGE_BYTES:
                    held.append(row[1:] if row.startswith((b">From ", b">>From ")) else row)
                    size += len(row)
                blank = row in (b"\n", b"\r\n")
        except DAMAGED as error:
            intake.reject(damaged(file.path, line, error))
        if held:
            yield begin, b"".join(held)


def _document(raw: bytes, file: InputFile, line: int, intake: Intake) -> Document | None:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    text = own_words(_text(message, intake, f"{file.path}:{line}"))
    if not text:
        return None
    subject = _PREFIX.sub("", " ".join(str(message.get("Subject", "")).split()))
    found = _ID.search(str(message.get("Message-ID", "")))
    before = _ID.findall(str(message.get("References", "")) or str(message.get("In-Reply-To", "")))
    identity = found[1] if found else f"{file.name}:{line}"
    meta = {"title": subject, "date": _date(message), "group": before[0] if before else identity}
    known = {key: value for key, value in meta.items() if value}
    return Document(identity, text, f"{file.path}:{line}", meta=known)


def own_words(text: str) -> str:
    """What the author wrote: up to the signature or a forwarded message, without quoted lines."""
    kept: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.rstrip("\r") in ("-- ", "--") or _FORWARDED.match(line):
            break
        if _QUOTED.match(line):
            while kept and not kept[-1].strip():
                kept.pop()
            broken = len(kept) > 1 and kept[-2].lstrip().startswith(("On ", "Am ", "Le "))
            back = 2 if broken else 1  # the line that says who is quoted may be broken
            if kept and sum(map(len, kept[-back:])) < 400 and _SAYS.match(" ".join(kept[-back:])):
                del kept[-back:]
            kept.append("")
        else:
            kept.append(line)
    return tidy("\n".join(kept))


def _text(message: EmailMessage, intake: Intake, where: str) -> str:
    """The plain text of a message, else its HTML as text."""
    attached = sum(1 for _ in message.iter_attachments()) if message.is_multipart() else 0
    if attached:
        intake.skipped["attachments of messages"] += attached
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    raw = cast("bytes", body.get_payload(decode=True) or b"")
    if body.get_content_type() == "text/html":
        return page_text(page(raw, where)) if raw.strip() else ""
    found = decoded(raw, body.get_content_charset())
    if found is None:
        raise ValueError("the text is in no encoding that can be told")
    return found[0]


def _date(message: EmailMessage) -> str:
    try:
        return parsedate_to_datetime(str(message.get("Date", ""))).isoformat()
    except (ValueError, TypeError, OverflowError):
        return ""
