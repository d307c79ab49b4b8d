"""Project Gutenberg: what its header says, and the book without header and licence, of every age."""

from __future__ import annotations

import re

_START = re.compile(
    r"^[ \t]*(?:\*{2,3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*(?:\n[^\n*]*){0,3}\*{3}"
    r"|\*\*\* ?START[^\n]*|\*END[* ]*THE SMALL PRINT![^\n]*|\*END THE SMALL PRINT[^\n]*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^[ \t]*(?:\*{2,3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|(?:This is the )?End of (?:the |this )?Project Gutenberg"
    r"|\*\*\* ?END\b|End of The Project Gutenberg|Ende dieses Projekt[s]? Gutenberg|Fin de Project Gutenberg)[^\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_FIELD = re.compile(
    r"^(Title|Author|Editor|Translator|Release Date|Posting Date|Last Updated|Language|Character set encoding)"
    r":[ \t]*(.*(?:\n[ \t]+\S.*)*)",
    re.MULTILINE,
)
_NUMBER = re.compile(r"\[(?:e?(?:book|text)) ?#?(\d{1,6})\]", re.IGNORECASE)
_CREDITS = re.compile(
    r"\A\s*(?:(?:\[?(?:Transcriber'?s?|Editor'?s?) Notes?[^\n]*"
    r"|(?:E-text |Etext )?(?:Produced|prepared|Scanned|Transcribed|created) (?:by|from)"
    r"|This etext was|This eBook was|HTML version by|Credits:)[^\n]*(?:\n[^\n]+)*\n\s*\n)",
    re.IGNORECASE,
)
_SELECTION = re.compile(
    r"\A\s*\[(?P<title>[^\]\n]{1,100}?),? by (?P<author>[^\]\n]{1,80}?)(?: (?P<year>1[4-9]\d\d|20\d\d))?\]"
)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_LANGUAGES = {"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "dutch": "nl"}
_FIRST_LINE = re.compile(
    r"Project Gutenberg(?:'s)? (?:eBook|e-?text) of (.{1,100}?), by (.{1,80}?)[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_DATE = re.compile(r"(?P<month>[A-Z][a-z]+)(?: (?P<day>\d{1,2}))?,? (?P<year>\d{4})")


def is_gutenberg(text: str) -> bool:
    """Whether a text says near its begin or end that it is from Project Gutenberg."""
    return "Project Gutenberg" in text[:20_000] or "PROJECT GUTENBERG" in text[:20_000]


def charset(raw: bytes) -> str | None:
    """The encoding that a header names."""
    found = re.search(rb"Character set encoding:\s*([A-Za-z0-9_-]{3,20})", raw[:20_000])
    return found[1].decode().lower() if found else None


def stripped(text: str) -> tuple[str, dict[str, str]]:
    """(the book itself, what the header says of it: title, author, date, number, language).

    Also the one line that the NLTK selection puts in place of the header, `[Emma by Jane Austen 1816]`.
    """
    selection = _SELECTION.match(text)
    if selection:
        known = {key: value for key, value in selection.groupdict().items() if value}
        return text[selection.end() :], {("date" if key == "year" else key): value for key, value in known.items()}
    if not is_gutenberg(text):
        return text, {}
    begin, end = 0, len(text)
    for match in _START.finditer(text[: max(60_000, len(text) // 3)]):
        begin = match.end()
    last = _END.search(text, begin)
    if last:
        end = last.start()
    known = _header(text[: begin or 20_000])
    body = text[begin:end]
    while credit := _CREDITS.match(body):
        body = body[credit.end() :]
    return body, known


def _header(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for match in _FIELD.finditer(text):
        fields.setdefault(match[1], " ".join(match[2].split()))
    number = _NUMBER.search(text)
    first = _FIRST_LINE.search(text)
    known = {
        "title": fields.get("Title") or (first[1] if first else ""),
        "author": fields.get("Author") or (first[2] if first else ""),
        "date": _iso(fields.get("Release Date", "")),
        "number": number[1] if number else "",
        "language": _LANGUAGES.get(fields.get("Language", "").lower(), ""),
    }
    return {key: value for key, value in known.items() if value}


def _iso(text: str) -> str:
    match = _DATE.search(text)
    if not match or match["month"][:3].lower() not in MONTHS:
        return ""
    month = f"{match['year']}-{MONTHS.index(match['month'][:3].lower()) + 1:02}"
    return f"{month}-{int(match['day']):02}" if match["day"] else month
