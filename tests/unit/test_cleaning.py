"""First cleaning: the same characters are the same code points, and white space is plain."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.data.cleaning import clean, has_endless_marks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00\x1b\ufeffb", "ab"),
        ("a\xa0b \t\nc  ", "a b\nc"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n\n  a\n", "  a"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_form_can_stay() -> None:
    assert clean("e\u0301 ", compose=False) == "e\u0301"
    assert has_endless_marks("e" + "\u0301" * 2000) and not has_endless_marks("e\u0301" * 2000)


@given(st.text())
def test_clean_twice_is_clean_once(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
