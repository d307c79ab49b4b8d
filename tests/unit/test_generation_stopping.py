"""Stop strings across token boundaries, and text that is held back until it is certain."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivium.errors import TriviumError
from trivium.inference.stopping import TextStream, check_stop


class Bytes:
    """Tokens are bytes; text comes out when a character is complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def released(text: str, stop: tuple[str, ...]) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stop)  # type: ignore[arg-type]
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    return [*pieces, stream.flush()], stream


def test_text_before_a_stop_string_only() -> None:
    pieces, stream = released("one. two\nUser: three", ("\nUser:",))
    assert "".join(pieces) == stream.text == "one. two"
    assert stream.stopped


def test_a_beginning_of_a_stop_string_is_held_back_and_released_when_it_is_none() -> None:
    stream = TextStream(Bytes(), ("END",))  # type: ignore[arg-type]
    assert [stream.push(byte) for byte in b"aENx"] == ["a", "", "", "ENx"]
    assert [stream.push(byte) for byte in b"EN"] == ["", ""]
    assert stream.flush() == "EN"
    assert not stream.stopped


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert released("abcdef", ("ef", "cd", "de"))[1].text == "ab"


def test_a_character_of_several_bytes_comes_out_whole() -> None:
    pieces, _ = released("a→b", ())
    assert pieces == ["a", "", "", "→", "b", ""]


@given(
    st.text(alphabet="abAB→", max_size=30),
    st.lists(st.text(alphabet="abAB→", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_what_is_shown_is_the_text_up_to_the_first_stop_string_that_is_complete(
    text: str, stop: tuple[str, ...]
) -> None:
    pieces, stream = released(text, stop)
    shown = "".join(pieces)
    assert shown == stream.text
    ends = [text.find(string) + len(string) for string in stop if string in text]
    if not ends:
        assert shown == text
        assert not stream.stopped
    else:
        seen = text[: min(ends)]
        assert shown == seen[: min(seen.find(string) for string in stop if string in seen)]
        assert stream.stopped


def test_stop_may_be_one_string_or_several_but_not_empty() -> None:
    assert check_stop(None) == ()
    assert check_stop("x") == ("x",)
    assert check_stop(["x", "y"]) == ("x", "y")
    with pytest.raises(TriviumError, match="empty"):
        check_stop(["x", ""])
