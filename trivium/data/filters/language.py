"""Which language a text is in: naive Bayes over byte n-grams (Lui and Baldwin 2012), the model of py3langid.

py3langid was chosen over lingua by measurement, see docs/data/filters.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from trivium.errors import DataError

UNKNOWN = "und"
"""ISO 639 for "undetermined": a text without letters."""


def guess(text: str, languages: tuple[str, ...] = ()) -> tuple[str, float]:
    """(ISO 639 code, probability of it); among `languages` only, where any are named."""
    if not any(map(str.isalpha, text)):
        return UNKNOWN, 0.0
    code, probability = _identifier(languages).classify(text)
    return str(code), float(probability)


def known_languages() -> list[str]:
    """The codes of all languages that can be told apart."""
    return sorted(_identifier(()).labels)


@cache
def _identifier(languages: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError("telling languages apart needs py3langid", fix='pip install "trivium[data]"') from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if languages:
        identifier.set_languages(list(languages))
    return identifier
