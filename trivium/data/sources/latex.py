r"""LaTeX sources: each main file with all that it reads in, as one document (`trivium.data.markup.latex`).

`\input`, `\include` and their kind are followed inside the source only, never out of it. A file that another one reads
in is counted, not read twice; one that nobody reads in is a document of its own. `meta` holds title, author, date,
arxiv (from names such as `2101.00001`) and sections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.markup.latex import plain_text
from trivium.data.markup.prose import decoded
from trivium.data.markup.sections import sections
from trivium.data.plain import packed, read_whole
from trivium.errors import DataError

EXTENSIONS = packed(".tex", ".ltx", ".latex")

_READS = re.compile(
    r"(?<!\\)%[^\n]*"
    r"|\\(?:input|include|subfile|subimport\s*\{([^{}]{0,200})\}|import\s*\{([^{}]{0,200})\})\s*\{?([^{}\s\\%]{1,200})\}?"
)
_MAIN = re.compile(rb"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)
_ARXIV = re.compile(r"(?:^|/)((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/?\d{7})(?:v\d+)?)(?=[./]|$)")
_DEPTH = 20

_read_by_others: WeakKeyDictionary[Intake, dict[Path, frozenset[Path]]] = WeakKeyDictionary()
"""For each pass and folder, the files that main files there read in."""


def recognises(head: bytes) -> bool:
    """Whether a file begins like a LaTeX document."""
    return _MAIN.search(head) is not None


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """The document of a main file, or of a file that stands alone."""
    root = file.path.resolve().parents[file.name.count("/")]
    path = file.path.resolve()
    if _is_part(path, root, intake):
        intake.skipped["part of another LaTeX document"] += 1
        return
    whole = _Whole(root, intake)
    source = whole.read(path, 0)
    found = plain_text(source, file.path)
    if not found.text:
        intake.skipped["LaTeX files without text"] += 1
        return
    arxiv = _ARXIV.search(file.name)
    name = f"arxiv:{arxiv[1]}" if arxiv else file.name
    meta = {
        "title": found.title,
        "author": found.author,
        "date": found.date if found.date[:1].isdecimal() else "",
        "arxiv": arxiv[1] if arxiv else "",
        "sections": sections(found.text),
        "group": name,
    }
    yield Document(name, found.text, str(file.path), meta={key: value for key, value in meta.items() if value})


class _Whole:
    """A main file with the files that it reads in put in their places."""

    def __init__(self, root: Path, intake: Intake) -> None:
        self._root = root
        self._intake = intake
        self._room = intake.row_bytes
        self._open: list[Path] = []

    def read(self, path: Path, depth: int) -> str:
        """The text of a file and of what it reads in."""
        text = _text(path, self._room)
        self._room -= len(text)
        if "\\in" not in text and "\\sub" not in text and "\\import" not in text:
            return text
        self._open.append(path)
        try:
            return _READS.sub(lambda match: self._one(match, path, depth), text)
        finally:
            self._open.pop()

    def _one(self, match: re.Match[str], path: Path, depth: int) -> str:
        if match[3] is None:
            return ""
        target = _resolved(match, path, self._open[0].parent, self._root)
        if target is None:
            self._intake.skipped["LaTeX files that are read in and are not here"] += 1
            return ""
        if target in self._open or depth >= _DEPTH:
            raise DataError(
                "the LaTeX files read each other in without end",
                where=path,
                value=match[0],
                fix="remove this line, or correct the name of the file",
            )
        return f"{self.read(target, depth + 1)}\n"


def _text(path: Path, room: int) -> str:
    raw = read_whole(path, max(room, 1))
    found = decoded(raw)
    if found is None:
        raise DataError(
            "the file is in no encoding that can be told, or is not text", where=path, fix="convert it to UTF-8"
        )
    return found[0]


def _resolved(match: re.Match[str], path: Path, main: Path, root: Path) -> Path | None:
    """The file that is meant, if it is there and inside the source."""
    folder = match[1] or match[2] or ""
    for base in dict.fromkeys((main / folder, path.parent / folder)):
        for name in (match[3], f"{match[3]}.tex"):
            try:
                target = (base / name).resolve()
                if target.is_relative_to(root) and target.is_file() and target.suffix in (".tex", ".ltx", ".latex", ""):
                    return target
            except (OSError, ValueError):
                continue
    return None


def _is_part(path: Path, root: Path, intake: Intake) -> bool:
    """Whether a main file in this folder or one above it, inside the source, reads this file in."""
    known = _read_by_others.setdefault(intake, {})
    for folder in (path.parent, *path.parent.parents):
        if not folder.is_relative_to(root):
            return False
        if folder not in known:
            known[folder] = frozenset(_reads_in(folder, root))
        if path in known[folder]:
            return True
    return False


def _reads_in(folder: Path, root: Path) -> Iterator[Path]:
    """The files that the main files of a folder read in, and those that these read in."""
    for main in sorted(folder.glob("*.tex")):
        waiting, seen = [main.resolve()], {main.resolve()}
        if not main.is_file() or not _MAIN.search(_bytes(main)):
            continue
        while waiting:
            path = waiting.pop()
            for match in _READS.finditer(_bytes(path).decode("utf-8", "replace")):
                target = None if match[3] is None else _resolved(match, path, folder, root)
                if target is not None and target not in seen:
                    seen.add(target)
                    waiting.append(target)
                    yield target


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(4 << 20)
    except OSError:
        return b""
