"""A faster encoder that gives the same ids: the Rust core of tiktoken, for the byte-level BPE it is exact for.

tiktoken merges any two neighbours that together are a token, the one learnt first before others; `tokenizers` merges
the pairs of its list, in their order. Both give the same ids if

* the merges of one token stand together in the list, behind those that make its two parts, and
* every token, encoded alone, is that one token.

For then the bytes of a token that lie between two cuts can only have become one pair of neighbours by the time the
token is made, and that pair is in the list. Both conditions are tested when a tokenizer is opened. Texts are cut by the
same pattern; characters that the two libraries count differently as letters, numbers or spaces (their Unicode versions
differ) are found by comparing them, and texts that hold one are left to `tokenizers`, as are all other vocabularies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tiktoken

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text (Radford et al., 2019)."""
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
"""Llama 3's form of the pattern of GPT-4: contractions in any case, up to three digits, one leading non-letter."""
QWEN2 = GPT4.replace("{1,3}", "")
"""The same with each digit alone."""
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_SHORT}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_SHORT}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-4o cuts text: words also where small letters are followed by capitals."""

_CLASSES = (r"\p{L}", r"\p{N}", r"\s", "(?i:[stmdrevl])")
PATTERNS: Mapping[str, Sequence[str]] = {
    GPT2: _CLASSES[:3],
    GPT4: _CLASSES,
    QWEN2: _CLASSES,
    O200K: (*_CLASSES, r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
}
"""Patterns that mean the same in both libraries, and the kinds of characters that they tell apart."""

_COMPARED = 0x20000
"""Characters from here on (rare Chinese ones, tags) are not compared, and count as different."""
_MOST_ADDED = 16
# tiktoken looks for special tokens in every text; with none at all it looks at every single character.
_NEVER = {"\U0010ffff\U0010fffe tiktoken wants a special token": (1 << 32) - 2}


class FastEncoder:
    """Ids of a text without special tokens, or None for a text that the library itself has to encode."""

    def __init__(
        self,
        core: tiktoken.Encoding,
        ids: NDArray[np.uint32],
        *,
        classes: Sequence[str],
        ascii_only: bool,
        added: Sequence[str],
    ) -> None:
        """ids: [ranks] the id of each token by its rank.  added: tokens that are found in text as they are spelled."""
        self._core, self._ids = core, ids
        self._classes, self._ascii_only, self._added = classes, ascii_only, tuple(added)

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """[n] ids."""
        if not text.isascii() and (self._ascii_only or _odd(tuple(self._classes)).search(text)):
            return None
        if any(token in text for token in self._added):
            return None
        try:
            ranks = self._core.encode_to_numpy(text, disallowed_special=())
        except (UnicodeError, ValueError, RuntimeError):
            return None
        found: NDArray[np.uint32] = self._ids[ranks]
        return found


def fast_encoder(definition: Mapping[str, Any], letters: Mapping[str, int]) -> FastEncoder | None:
    """The encoder for a tokenizer.json, or None where it would not be exact or tiktoken is not installed.

    letters: the character by which byte-level vocabularies write each byte.
    """
    model, pattern = definition["model"], _pattern(definition.get("pre_tokenizer"))
    plain = not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    normalizer = (definition.get("normalizer") or {}).get("type")
    special = {token["content"] for token in definition["added_tokens"] if token.get("special")}
    added = [token["content"] for token in definition["added_tokens"] if not token.get("special")]
    known = model.get("type") == "BPE" and plain and pattern is not None and normalizer in (None, "NFC")
    if not known or pattern is None or len(added) > _MOST_ADDED:
        return None
    ranks = _ranks(model, special, letters)
    if ranks is None:
        return None
    try:
        import tiktoken
    except ImportError:
        return None
    ids = np.zeros(len(ranks), dtype=np.uint32)
    by_bytes = {}
    for token, rank in ranks.items():
        ids[rank] = model["vocab"][token]
        by_bytes[bytes(letters[letter] for letter in token)] = rank
    core = tiktoken.Encoding("trivium", pat_str=pattern, mergeable_ranks=by_bytes, special_tokens=_NEVER)
    return FastEncoder(core, ids, classes=PATTERNS[pattern], ascii_only=normalizer == "NFC", added=added)


def _pattern(splitter: Mapping[str, Any] | None) -> str | None:
    """How text is cut, if it is one of the patterns."""
    parts = (splitter or {}).get("pretokenizers", [splitter or {}])
    if any(part.get("type") not in ("Split", "ByteLevel") or part.get("add_prefix_space") for part in parts):
        return None
    if len(parts) == 1 and parts[0].get("type") == "ByteLevel" and parts[0].get("use_regex", True):
        return GPT2
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"] or parts[1].get("use_regex", True):
        return None
    if parts[0].get("behavior") != "Isolated" or parts[0].get("invert"):
        return None
    regex = parts[0].get("pattern", {}).get("Regex")
    return regex if regex in PATTERNS else None


def _ranks(model: Mapping[str, Any], special: set[str], letters: Mapping[str, int]) -> dict[str, int] | None:
    """The rank of every token, or None if tiktoken's order of merges could give other ids."""
    vocab: Mapping[str, int] = model["vocab"]
    if any(letter not in vocab for letter in letters):
        return None
    ranks = {letter: rank for rank, letter in enumerate(letters)}
    last = ""
    for merge in model["merges"]:
        left, right = _pair(merge)
        made = left + right
        if made not in vocab or left not in ranks or right not in ranks:
            return None
        if made in ranks and made != last:
            return None
        last, ranks[made] = made, ranks.get(made, len(ranks))
    if vocab.keys() - ranks.keys() - special:
        return None
    alone = tokenizers.models.BPE(dict(vocab), [_pair(merge) for merge in model["merges"]])
    whole = all(len(alone.tokenize(token)) == 1 for token in ranks)
    return ranks if whole else None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


@cache
def _odd(classes: tuple[str, ...]) -> re.Pattern[str]:
    """Characters of which the two libraries do not think alike."""
    import tiktoken

    characters = "".join(chr(code) for code in range(_COMPARED) if not 0xD800 <= code < 0xE000)
    odd = set("\u017f")  # the long s, as a form of s
    for found in classes:
        splitter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(found), behavior="removed", invert=True)
        theirs = {character for piece, _ in splitter.pre_tokenize_str(characters) for character in piece}
        bytewise = {bytes([byte]): byte for byte in range(256)}
        core = tiktoken.Encoding("characters", pat_str=found, mergeable_ranks=bytewise, special_tokens=_NEVER)
        ours = bytes(core.encode_to_numpy(characters, disallowed_special=()).astype(np.uint8)).decode()
        odd |= theirs ^ set(ours)
    return re.compile(f"[{_ranges(sorted(map(ord, odd)))}{chr(_COMPARED)}-{chr(0x10FFFF)}]")


def _ranges(codes: Sequence[int]) -> str:
    """The codes as the inside of a character class."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)
