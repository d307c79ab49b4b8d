"""First cleaning: the same characters are the same code points, and white space is plain.

Linear in the length of the text, whatever it holds.
"""

from __future__ import annotations

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_BLANK_LINES = re.compile("\n{4,}")
_NOT_LETTERS = re.compile(r"[^\w\x00-\x7f]+")  # combining marks are in here
_LONGEST_MARKS = 1000


def clean(text: str, *, compose: bool = True) -> str:
    """Unicode in composed form (NFC), \\n line ends, no control characters, no trailing or excessive white space."""
    text = _CONTROLS.sub("", _LINE_ENDS.sub("\n", text)).replace("\xa0", " ")
    if compose and not text.isascii() and not has_endless_marks(text):
        text = unicodedata.normalize("NFC", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n")


def has_endless_marks(text: str) -> bool:
    """Whether more marks follow each other than in any language: putting them in order takes quadratic time."""
    return any(match.end() - match.start() > _LONGEST_MARKS for match in _NOT_LETTERS.finditer(text))
