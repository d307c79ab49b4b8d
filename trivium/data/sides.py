"""What stands around the two texts of an encoder-decoder.

The source is framed as the tokenizer frames any text. The target is too, where that frame closes a text with a token
of its own (T5: `text </s>`, BART: `<s> text </s>`); elsewhere it is the text and the end token, since the decoder
begins with a start token anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trivium.data.corruption.example import tokens
from trivium.data.framing import framing_of
from trivium.data.table import Ints

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Frame:
    """Tokens before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many tokens it adds."""
        return len(self.before) + len(self.after)

    def around(self, ids: Ints) -> Ints:
        """The text in its frame."""
        return tokens(self.before, ids, self.after)


def text_frame(tokenizer: Tokenizer) -> Frame:
    """What stands around a text that an encoder reads."""
    single = [token for token, _ in framing_of(tokenizer).single]
    at = single.index("A")
    numbers = [token for token in single if isinstance(token, int)]
    return Frame(tuple(numbers[:at]), tuple(numbers[at:]))


def source_ids(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[int]:
    """A text as an encoder reads it."""
    frame = text_frame(tokenizer)
    return [*frame.before, *tokenizer.encode(text, parse_special=parse_special), *frame.after]


def target_frame(tokenizer: Tokenizer) -> Frame:
    """What stands around a text that a decoder writes."""
    frame = text_frame(tokenizer)
    return frame if framing_of(tokenizer).closing else Frame((), frame.after)
