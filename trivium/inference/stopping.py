"""From tokens to text that may be shown: incomplete characters and possible stop strings are held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trivium.errors import TriviumError

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import StreamDecoder


def check_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings as a tuple; raises on an empty one, which would stop everything at once."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise TriviumError("a stop string cannot be empty", where="stop", value=string, fix="leave it out")
    return strings


class TextStream:
    """Text of one sample as it grows, token by token, up to the first stop string.

    A stop string is found also where it spans several tokens. Text that could be the beginning of a stop string is
    held back until it is clear, so nothing ever shown has to be taken back.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        """All text released so far."""
        self.stopped = False
        """Whether a stop string has appeared; nothing is released after it."""

    def push(self, token: int) -> str:
        """Takes one token and returns the text it releases, often "" and sometimes more than its own."""
        return self._release(self._decoder.push(token), last=False)

    def flush(self) -> str:
        """Ends the sample and returns what was held back."""
        return self._release(self._decoder.flush(), last=True)

    def _release(self, piece: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        self.stopped = bool(found)
        if found:
            end = min(found)
        elif last:
            end = len(text)
        else:
            end = len(text) - _longest_beginning(text, self._stop)
        self._held = "" if self.stopped else text[end:]
        self.text += text[:end]
        return text[:end]


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a beginning of a stop string."""
    longest = 0
    for string in stop:
        for length in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return longest
