"""Special tokens that objectives need, under the names that published vocabularies give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trivium.errors import TokenizerError

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

GROUPS: dict[str, tuple[str, ...]] = {
    "mask": ("[MASK]",),
    "sentinels": tuple(f"<extra_id_{number}>" for number in range(100)),
    "middle": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "modes": ("[R]", "[S]", "[X]"),
}
"""Names for `trivium tokenizer train --special`, each standing for the tokens of one kind of objective."""

_MASKS = ("[MASK]", "<mask>", "<|mask|>")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SENTINEL = re.compile(r"\u2581?<extra_id_(\d+)>")
_MIDDLES = (
    GROUPS["middle"],
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)


def expanded(names: Iterable[str]) -> list[str]:
    """Names of groups as their tokens; anything else is a token itself."""
    return [token for name in names for token in GROUPS.get(name, (name,))]


def is_single_byte(token: str) -> bool:
    """Whether a token is spelled as one byte, `<0x41>`, for characters that are no tokens."""
    return _BYTE.fullmatch(token) is not None


def mask_id(tokenizer: Tokenizer) -> int:
    """The token that hides another one."""
    names = (tokenizer.role_tokens.get("mask_token", ""), *_MASKS)
    found = next((tokenizer.vocabulary[name] for name in names if name in tokenizer.vocabulary), None)
    if found is None:
        raise _missing(tokenizer, "token that masks another one ([MASK])", "mask")
    return found


def sentinel_ids(tokenizer: Tokenizer, *, least: int = 1) -> tuple[int, ...]:
    """The tokens that stand for missing spans, `<extra_id_0>` first; at least so many."""
    numbered = {
        int(match[1]): identifier
        for token, identifier in tokenizer.vocabulary.items()
        if (match := _SENTINEL.fullmatch(token))
    }
    found = tuple(numbered[number] for number in sorted(numbered))
    if not found:
        raise _missing(tokenizer, "tokens for missing spans (<extra_id_0>, <extra_id_1>, ...)", "sentinels")
    if len(found) < least:
        raise TokenizerError(
            f"texts of this length can have {least} missing spans, the tokenizer has {len(found)} tokens for them",
            where=tokenizer.where,
            fix="use a smaller data.sequence_length, longer spans (method.mean_length), or a smaller method.rate",
        )
    return found


def middle_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The tokens before the first part, the last part and the middle of a text."""
    for names in _MIDDLES:
        if all(name in tokenizer.vocabulary for name in names):
            first, last, middle = (tokenizer.vocabulary[name] for name in names)
            return first, last, middle
    raise _missing(tokenizer, "tokens to fill in the middle (<|fim_prefix|> and its two companions)", "middle")


def mode_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The tokens that announce regular, sequential and extreme noise."""
    if not all(name in tokenizer.vocabulary for name in GROUPS["modes"]):
        raise _missing(tokenizer, "tokens for the modes of UL2 ([R], [S], [X])", "modes")
    regular, sequential, extreme = (tokenizer.vocabulary[name] for name in GROUPS["modes"])
    return regular, sequential, extreme


def _missing(tokenizer: Tokenizer, what: str, group: str) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer has no {what}",
        where=tokenizer.where,
        fix=f"make one that has: trivium tokenizer train ... --special {group}",
    )
