"""Reads PDF files in a process of its own, with limits for memory and time that the system keeps.

A PDF is a program for a large library written in C: whatever it does, it cannot take the run with it. Requests and
answers are lines of JSON on standard input and output: `{"path": ...}` gives one object for the whole file, then one
for each page, then `{"end": true}`; `{"problem": ...}` stands for a file that cannot be read.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

MEMORY = 2 << 30
"""Address space in bytes; the library itself and Python take a quarter of it."""
_PAGE_CHARACTERS = 1_000_000


def main() -> None:
    """Answer requests until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pypdfium2

    for request in sys.stdin:
        wanted = json.loads(request)
        try:
            _read(pypdfium2, wanted["path"], wanted["most_pages"])
        except MemoryError:
            _say({"problem": "memory"})
        except pypdfium2.PdfiumError as error:
            _say({"problem": str(error)})
        except (OSError, ValueError) as error:
            _say({"problem": f"{type(error).__name__}: {error}"})
        _say({"end": True})


def _read(library: Any, path: str, most_pages: int) -> None:
    document = library.PdfDocument(path)
    try:
        count = len(document)
        _say({"pages": count, "meta": document.get_metadata_dict(), "outline": _outline(document)})
        for number in range(min(count, most_pages)):
            _say({"page": number, "lines": _lines(document, number)})
    finally:
        document.close()


def _outline(document: Any) -> list[list[Any]]:
    """[level, title, page] of each bookmark."""
    found: list[list[Any]] = []
    for entry in document.get_toc(max_depth=6):
        target = entry.get_dest()
        found.append([entry.level, entry.get_title(), None if target is None else target.get_index()])
        if len(found) >= 10_000:
            break
    return found


def _lines(document: Any, number: int) -> list[list[Any]]:
    """[text, left, bottom, right, top, size of the letters] of each line of a page, in the order of the page."""
    page = document[number]
    words = page.get_textpage()
    try:
        text = words.get_text_range(0, min(words.count_chars(), _PAGE_CHARACTERS))
        lines: list[list[Any]] = []
        at = 0
        for line in text.split("\n"):
            shown = line.rstrip("\r")
            first = at + len(shown) - len(shown.lstrip())
            if shown.strip():
                lines.append([shown, *_place(words, first, at + len(shown.rstrip()) - 1)])
            at += len(line) + 1
        return lines
    finally:
        words.close()
        page.close()


def _place(words: Any, first: int, last: int) -> list[float]:
    """Where a line stands: left, bottom, right, top, and the height of its first letter's box."""
    try:
        left, bottom, _, top = words.get_charbox(first, loose=True)
        right = words.get_charbox(last, loose=True)[2]
    except (IndexError, ValueError, RuntimeError):
        return [0.0, 0.0, 0.0, 0.0, 0.0]
    return [round(value, 1) for value in (left, bottom, right, top, top - bottom)]


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
