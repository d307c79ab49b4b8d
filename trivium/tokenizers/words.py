"""Where words and sentences begin and end, told from the tokens alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

_ENDS = ".!?\u2026\u3002\uff01\uff1f\n"
_CLOSING = "\"')]}\u201d\u2019\u00bb"


@dataclass(frozen=True)
class WordTable:
    """[V] each: whether a token begins a word, and whether the token after it does.

    WordPiece marks the tokens that go on (`##ing`), SentencePiece those that begin (`\u2581the`). Elsewhere a word
    begins at a space, a line end or a sign that is no letter or digit, behind such a sign, and at each character of a
    script without spaces.
    """

    opens: NDArray[np.bool_]
    closes: NDArray[np.bool_]

    def starts(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] which tokens begin a word."""
        begins = self.opens[ids]
        begins[1:] |= self.closes[ids[:-1]]
        begins[:1] = True
        return begins


def word_table(tokenizer: Tokenizer) -> WordTable:
    """The table of a vocabulary."""
    opens = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    closes = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    kind = tokenizer.files.definition["model"].get("type")
    marked = any(token.startswith("\u2581") for token in tokenizer.vocabulary)
    for token, identifier in tokenizer.vocabulary.items():
        if kind == "WordPiece":
            opens[identifier] = not token.startswith("##")
        elif marked and not tokenizer.byte_level:
            opens[identifier] = token.startswith("\u2581")
        else:
            text = tokenizer.token_bytes[identifier].decode("utf-8", "surrogateescape")
            opens[identifier] = bool(text) and _apart(text[0])
            closes[identifier] = bool(text) and _apart(text[-1]) and text[-1] != " "
    return WordTable(opens, closes)


def sentence_ends(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """[V] which tokens end a sentence: a full stop or the like, a bracket or quotation mark behind it, a line end."""
    ends = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    for identifier, value in enumerate(tokenizer.token_bytes):
        text = value.decode("utf-8", "ignore").rstrip(" ").rstrip(_CLOSING)
        ends[identifier] = text.endswith(tuple(_ENDS))
    ends[list(tokenizer.special_tokens.values())] = False
    return ends


def ordinary(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """[V] which tokens stand for text."""
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    table[list(tokenizer.vocabulary.values())] = True
    table[list(tokenizer.special_tokens.values())] = False
    return table


def _apart(character: str) -> bool:
    """Whether a character is a word of its own or stands between words; half a character is part of a word."""
    if "\udc80" <= character <= "\udcff":
        return False
    return not character.isalnum() or "\u3040" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff"
