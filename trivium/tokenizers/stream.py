"""Text from tokens that arrive one at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder:
    """Gives out text as soon as it is complete: never half a character.

    All pieces together, with the one of `flush`, are exactly what `Tokenizer.decode` says of all the ids.
    """

    def push(self, token: int) -> str:
        """The text that is certain now; often empty in the middle of a character."""
        raise NotImplementedError

    def flush(self) -> str:
        """What is left at the end; broken bytes become U+FFFD."""
        raise NotImplementedError


class ByteStream(StreamDecoder):
    """For byte-level vocabularies, in which every token is a fixed run of bytes."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        known = 0 <= token < len(self._token_bytes)
        return self._decoder.decode(self._token_bytes[token] if known else b"")

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowStream(StreamDecoder):
    """For all other vocabularies: decodes a short window twice and gives out the difference.

    The text of a token can depend on its neighbours there (a space that is dropped at the start, bytes that
    wait for the rest of a character), so the last tokens given out stay in the window.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._given = 0
        self._out = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._given])
        now = self._decode(self._ids[self._start :])
        if now.endswith(_REPLACEMENT) or not now.startswith(before):
            return ""
        if self._decode(self._ids[self._given :]):  # a window without text would begin the text anew
            self._start = self._given
        self._given = len(self._ids)
        self._out += now[len(before) :]
        return now[len(before) :]

    def flush(self) -> str:
        whole = self._decode(self._ids)
        rest = whole[len(self._out) :] if whole.startswith(self._out) else ""
        self._out += rest
        return rest
