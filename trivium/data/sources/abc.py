"""ABC notation: each tune is a document.

A tune begins with `X:` and ends before the next `X:` or at an empty line after its music. Left out, because it is no
music: comments (`%` up to the end of the line) and text between tunes, which is counted. The rest is kept as it is
written. `meta` holds title, key, metre and rhythm; the id is `file:number`.

A tune without a key (`K:` ends the header) or without music is malformed and goes to the intake. Whether the music
itself is right is not asked here: `trivium music check`. The standard: https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from trivium.data.documents import Document
from trivium.data.intake import InputFile, Intake
from trivium.data.plain import lines, packed
from trivium.errors import DataError

EXTENSIONS = packed(".abc")

_FIELD = re.compile(r"([A-Za-z]):\s*(.*?)\s*$")
_COMMENT = re.compile(r"(?<!\\)%.*")


def documents(file: InputFile, intake: Intake) -> Iterator[Document]:
    """One document a tune; two of the same number in one file get different ids."""
    seen: Counter[str] = Counter()
    found = False
    for line, tune in _tunes(file, intake):
        found = True
        document = _document(file, line, tune, seen, intake)
        if document is not None:
            yield document
    if not found:
        intake.skipped["no tune (no line begins with X:)"] += 1


def _tunes(file: InputFile, intake: Intake) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, its lines without comments) of each tune."""
    begin, tune = 0, list[str]()
    for number, text in lines(file.path, intake):
        line = _COMMENT.sub("", text).rstrip()
        if line.startswith("X:"):
            if tune:
                yield begin, tune
            begin, tune = number, [line]
        elif tune and line:
            tune.append(line)
        elif tune and not text.strip() and _music(tune):
            yield begin, tune
            tune = []
        elif line and not tune:
            intake.skipped["lines outside of tunes"] += 1
    if tune:
        yield begin, tune


def _music(tune: Sequence[str]) -> list[str]:
    """The lines after the first key; none if there is no key."""
    key = next((at for at, line in enumerate(tune) if line.startswith("K:")), len(tune))
    return [line for line in tune[key + 1 :] if not _FIELD.match(line)]


def _document(file: InputFile, line: int, tune: list[str], seen: Counter[str], intake: Intake) -> Document | None:
    fields: dict[str, str] = {}
    for match in filter(None, map(_FIELD.match, tune)):
        fields.setdefault(match[1], match[2])
    where = f"{file.path}:{line}"
    if not _music(tune):
        problem = "the tune has no music" if "K" in fields else "the tune has no key (K: ends its header)"
        fix = "write the music below K:" if "K" in fields else "write a line such as K:G between header and music"
        intake.reject(DataError(problem, where=where, value=fields.get("T", tune[0]), fix=fix))
        return None
    number = fields["X"]
    seen[number] += 1
    name = f"{file.name}:{number}" + (f"#{seen[number]}" if seen[number] > 1 else "")
    named = {"title": "T", "key": "K", "metre": "M", "rhythm": "R"}
    meta = {name: fields[letter] for name, letter in named.items() if fields.get(letter)}
    return Document(name, "\n".join(tune) + "\n", where, meta={**meta, "group": name})
