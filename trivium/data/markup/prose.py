"""Plain text that people typed: its encoding, its paragraphs broken into lines, its chapters."""

from __future__ import annotations

import codecs
import re

from trivium.data.markup.sections import heading

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_LINE_ENDS = re.compile("\r\n|\r")
_ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
_NUMBER = (
    rf"(?:{_ROMAN}|\d{{1,3}}|the \w{{3,12}}|(?:twenty|thirty|forty|fifty|sixty)?-?(?:one|two|three|four|five|six|seven"
    r"|eight|nine|ten|eleven|twelve|\w{4,6}teen|twenty|thirty|forty|fifty|sixty|first|second|third|fourth|fifth|sixth|seventh"
    r"|eighth|ninth|tenth|last)|prim[au]s?|secund[ao]s?|terti[au]s?|quart[au]s?|quint[au]s?)"
)
_RANKS = (
    (1, r"volume|vol\.|tome|band|part|partie|teil"),
    (2, r"book|livre|buch|act|acte|actus"),
    (
        3,
        r"chapter|chap\.|chapitre|kapitel|capitulo|cap[ií]tulo|canto|letter|adventure|stave|scene|scoena|scena",
    ),
)
_NUMBERED = re.compile(
    rf"\s{{0,40}}(?P<word>{'|'.join(words for _, words in _RANKS)})\s+{_NUMBER}\b(?P<rest>[.:\s—–-].{{0,80}})?$",  # noqa: RUF001
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\s{0,40}(preface|prologue|epilogue|introduction|foreword|afterword|conclusion|dedication|appendix|contents"
    r"|etymology|extracts|postscript)[.:]?$",
    re.IGNORECASE,
)
_BARE = re.compile(rf"\s{{0,40}}{_ROMAN}\.?(?P<title>\s+[A-Z].{{2,60}})?$")
_SENTENCE_END = re.compile(r"[,;]$")
_VERSE = 45
"""Lines of prose that was broken by a machine or typist are longer than this, lines of most verse are not."""


def decoded(raw: bytes, declared: str | None = None) -> tuple[str, str] | None:
    """(text, encoding) of bytes: by their mark, as UTF-8, as declared, as Windows-1252 or Latin-1; None for no text."""
    marked = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    for name in filter(None, (marked, "utf-8", declared, "cp1252", "latin-1")):
        try:
            text = raw.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" in text or (name in ("cp1252", "latin-1") and not _plausible(raw)):
            return None
        return _LINE_ENDS.sub("\n", text), name.removesuffix("-sig")
    return None


def _plausible(raw: bytes) -> bool:
    """Whether bytes that are not UTF-8 look like a European language: mostly ASCII letters, few other high bytes."""
    sample = raw[: 1 << 20]
    letters = sum(sample.count(bytes([byte])) for byte in (*range(65, 91), *range(97, 123), 10, 32))
    controls = sum(sample.count(bytes([byte])) for byte in (*range(1, 9), *range(14, 32), 127))
    return letters > 0.6 * len(sample) and controls < 0.001 * len(sample)


def unwrapped(text: str) -> str:
    """Paragraphs of prose on one line each; verse, tables and anything indented as it stands."""
    return "\n\n".join(_joined(paragraph) for paragraph in re.split(r"\n[ \t]*\n(?:[ \t]*\n)*", text))


def _joined(paragraph: str) -> str:
    lines = [line.rstrip() for line in paragraph.strip("\n").split("\n")]
    if len(lines) < 2 or any(line[:1].isspace() for line in lines[1:]) or lines[0].startswith("## "):
        return "\n".join(lines)
    whole = lines[:-1]
    lengths = sorted(map(len, whole))
    capitals = sum(line[:1].isupper() for line in lines[1:])
    if (
        lengths[len(lengths) // 2] < _VERSE
        or max(lengths) > 120
        or capitals >= min(len(lines) - 1, max(3, len(lines) - 2))
    ):
        return "\n".join(lines)
    return " ".join(line.strip() for line in lines)


def with_chapters(text: str) -> str:
    """The text in which lines that name a part, chapter, act or scene are headings (`## Chapter I`)."""
    lines = text.split("\n")
    found: dict[int, tuple[int, str]] = {}
    for at, line in enumerate(lines):
        if not line.strip() or len(line) > 120 or (at and lines[at - 1].strip()):
            continue
        rank = _rank(line)
        alone = at + 1 == len(lines) or not lines[at + 1].strip()
        if rank is not None and (alone or _NUMBERED.match(line)) and not _in_contents(lines, at):
            found[at] = (rank, line)
    found = _without_bare(found)
    used = sorted({rank for rank, _ in found.values()})
    for at, (rank, line) in found.items():
        lines[at] = f"{heading(2 + used.index(rank), line)}\n"
    return "\n".join(lines)


def _rank(line: str) -> int | None:
    match = _NUMBERED.match(line)
    if match and not _SENTENCE_END.search(line.strip()):
        word = match["word"].lower()
        return next(rank for rank, words in _RANKS if re.fullmatch(words, word))
    if _NAMED.match(line):
        return 3
    return 4 if _BARE.match(line) else None


def _in_contents(lines: list[str], at: int) -> bool:
    """Whether a line is one of a list of chapters: the next line that is not empty names a chapter too, close by."""
    following = [line for line in lines[at + 1 : at + 3] if line.strip()]
    return len(following) == 2 and all(_rank(line) is not None for line in following)


def _without_bare(found: dict[int, tuple[int, str]]) -> dict[int, tuple[int, str]]:
    """Numbers that stand alone count only where they run on from I without a chapter of another form."""
    bare = [line.split()[0].rstrip(".") for rank, line in found.values() if rank == 4]
    others = any(rank == 3 and not _NAMED.match(line) for rank, line in found.values())
    if others or len(bare) < 3 or bare[0] not in ("I", "1"):
        return {at: entry for at, entry in found.items() if entry[0] != 4}
    return found
