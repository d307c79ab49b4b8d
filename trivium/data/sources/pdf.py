"""PDF files: one document a file, paragraphs whole, without running heads and page numbers, sections from its outline.

Read by PDFium (`pip install 'trivium[data]'`) in a process of its own with limits for memory and time, so that a broken
or hostile file is an error and nothing else. `meta` holds title, author, date, doi, arxiv, pages and sections. The list
of references at the end of a paper is left out. A file without text (scanned pages) is counted; recognising letters in
pictures is not done here.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup import pdf_worker
from trivium.data.markup.pages import Line, running_text, without_references
from trivium.data.markup.sections import sections
from trivium.data.plain import PACKINGS, packed, read_whole, unpacked_name
from trivium.errors import DataError

EXTENSIONS = packed(".pdf")

MOST_PAGES = 5000
"""Further pages of a file are left out and counted."""
FILE_BYTES = 1 << 30
PAGE_SECONDS = 60.0
"""Longest time for one page."""

_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_DOI = re.compile(r"\b(?:doi:\s*|doi\.org/)(10\.\d{4,9}/[^\s\"<>]{1,200}[^\s\"<>.,;)])", re.IGNORECASE)
_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?\b")


def recognises(head: bytes) -> bool:
    """Whether a file begins like a PDF."""
    return head[:1024].lstrip().startswith(b"%PDF-")


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The text of the file."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise DataError("reading PDF needs pypdfium2", where=file.path, fix="pip install 'trivium[data]'")
    if not file.path.is_file() or not file.path.stat().st_size:
        raise DataError("the PDF is empty", where=file.path, fix="download or write the file again")
    if file.path.suffix not in PACKINGS:
        document = _document(file, file.path, intake)
    else:
        with tempfile.NamedTemporaryFile(suffix=".pdf") as unpacked:
            unpacked.write(read_whole(file.path, FILE_BYTES))
            unpacked.flush()
            document = _document(file, Path(unpacked.name), intake)
    if document is None:
        intake.skipped["PDF files without text (scanned pages)"] += 1
    else:
        yield document


def _document(file: InputFile, readable: Path, intake: Intake) -> Document | None:
    head: dict[str, Any] = {}
    pages: list[list[Line]] = []
    room = intake.row_bytes
    for answer in _worker().ask(readable, file.path):
        if "meta" in answer:
            head = answer
            continue
        page = [Line(answer["page"], *line) for line in answer["lines"]]
        room -= sum(len(line.text) for line in page)
        if room < 0:
            raise DataError("the text of the PDF is too long", where=file.path, value=f"more than {intake.row_bytes:,}")
        pages.append(page)
    if head.get("pages", 0) > len(pages):
        intake.skipped[f"pages of PDF files after the first {MOST_PAGES}"] += head["pages"] - len(pages)
    outline = {(page, title): level for level, title, page in head.get("outline", []) if page is not None}
    text, left_out = running_text(pages, outline)
    intake.skipped["lines of PDF files: page numbers, running heads, contents"] += left_out
    if not re.search(r"\w", text):
        return None
    said = head.get("meta", {})
    date = _DATE.match(said.get("CreationDate") or "")
    doi, arxiv = _DOI.search(text[:10_000]), _ARXIV.search(text[:10_000])
    text = without_references(text)
    name = f"arxiv:{arxiv[1]}" if arxiv else f"doi:{doi[1]}" if doi else unpacked_name(file.name)
    meta = {
        "title": said.get("Title", "").strip(),
        "author": said.get("Author", "").strip(),
        "date": "-".join(filter(None, date.groups())) if date else "",
        "doi": doi[1] if doi else "",
        "arxiv": arxiv[1] if arxiv else "",
        "pages": head.get("pages"),
        "sections": sections(text),
        "group": name,
    }
    known = {key: value for key, value in meta.items() if value}
    return Document(unpacked_name(file.name), text, str(file.path), meta=known)


class _Worker:
    """The process that reads, and what it answers; started anew after a file that it did not survive."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._held = b""
        self._owner = 0

    def ask(self, readable: Path, shown: Path) -> Iterator[dict[str, Any]]:
        """One answer for the file and one for each page."""
        process = self._started()
        done = False
        try:
            assert process.stdin is not None
            request = {"path": str(readable.resolve()), "most_pages": MOST_PAGES}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            problem = ""
            while not done:
                answer = self._answer(process, shown)
                done = "end" in answer
                problem = answer.get("problem", problem)
                if not done and "problem" not in answer:
                    yield answer
            if problem:
                raise _unreadable(shown, problem)
        except BrokenPipeError as error:
            raise _unreadable(shown, "the process that reads it has ended") from error
        finally:
            if not done:
                self.stop()

    def stop(self) -> None:
        """End the process, if it is this one's."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-P", str(Path(pdf_worker.__file__))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            self._owner = os.getpid()
            self._held = b""
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], shown: Path) -> dict[str, Any]:
        assert process.stdout is not None
        parts = [self._held]
        until = time.monotonic() + PAGE_SECONDS
        while b"\n" not in parts[-1]:
            if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise _unreadable(shown, f"a page took longer than {PAGE_SECONDS:.0f} seconds")
            block = os.read(process.stdout.fileno(), 1 << 20)
            if not block:
                raise _unreadable(shown, "it needs more memory than any document, or is made to break the reader")
            parts.append(block)
        line, _, self._held = b"".join(parts).partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


_the_worker = _Worker()
atexit.register(_the_worker.stop)


def _worker() -> _Worker:
    return _the_worker


def _unreadable(path: Path, problem: str) -> DataError:
    if "password" in problem.lower() or "security" in problem.lower():
        return DataError("the PDF is encrypted", where=path, fix="remove its password first, for example with qpdf")
    return DataError(
        "the PDF cannot be read",
        where=path,
        value="it needs more memory than any document" if problem == "memory" else problem,
        fix="the file may have been cut off; download or write it again",
    )
