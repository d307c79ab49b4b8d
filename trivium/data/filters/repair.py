"""Text whose characters were mangled on the way: UTF-8 read as Latin-1 ("donâ€™t"), HTML entities, ligatures.

The repair is ftfy's (Speer 2019), line by line, and linear: what cannot be broken is not looked at, and lines longer
than any of prose are left as they are.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, Literal

from trivium.data.cleaning import has_endless_marks
from trivium.errors import DataError

Form = Literal["NFC", "NFKC", "none"]

_LONGEST_LINE = 1_000_000


def repair(text: str, *, mojibake: bool, entities: bool, quotes: bool, form: Form) -> str:
    """The text with broken characters repaired; `quotes` makes curly quotation marks straight."""
    if not text.isascii() or (entities and "&" in text):
        config = _config(mojibake, entities, quotes)
        text = "\n".join(_line(line, config) for line in text.split("\n"))
    if form != "none" and not text.isascii() and not has_endless_marks(text):
        text = unicodedata.normalize(form, text)
    return text


def _line(line: str, config: Any) -> str:
    if (line.isascii() and "&" not in line) or len(line) > _LONGEST_LINE or has_endless_marks(line):
        return line
    fixed: str = _ftfy().fix_text_segment(line, config)
    return fixed


@cache
def _config(mojibake: bool, entities: bool, quotes: bool) -> Any:
    return _ftfy().TextFixerConfig(
        unescape_html="auto" if entities else False,
        fix_encoding=mojibake,
        uncurl_quotes=quotes,
        fix_line_breaks=False,
        fix_character_width=False,
        normalization=None,
        explain=False,
    )


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise DataError("repairing text needs ftfy", fix='pip install "trivium[data]"') from error
    return ftfy
