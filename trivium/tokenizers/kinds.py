"""The kinds of vocabularies that can be made, and which options each of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from trivium.errors import TokenizerError
from trivium.nearest import nearest
from trivium.tokenizers.special import expanded
from trivium.tokenizers.tokenizer import Tokenizer

Kind = Literal["bpe", "wordpiece", "unigram", "char-bpe", "word", "char", "byte"]
DEFAULT_SIZE = 8192

OPTIONS: Mapping[str, frozenset[str]] = {
    "bpe": frozenset({"vocab_size", "split", "special", "min_count"}),
    "wordpiece": frozenset({"vocab_size", "special", "lowercase", "min_count"}),
    "unigram": frozenset({"vocab_size", "special", "normalise", "lowercase", "prefix_space"}),
    "char-bpe": frozenset({"vocab_size", "special", "normalise", "lowercase", "prefix_space", "min_count"}),
    "word": frozenset({"vocab_size", "lowercase", "min_count"}),
    "char": frozenset({"normalise"}),
    "byte": frozenset({"normalise"}),
}
"""Options of each kind; an option that is not here has no effect on it and is refused."""


def check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raises TokenizerError for a kind that there is not, or an option without effect."""
    if kind not in OPTIONS:
        near = nearest(kind, get_args(Kind))
        fix = f"did you mean {near}?" if near else f"use one of {', '.join(OPTIONS)}"
        raise TokenizerError("there is no such kind of vocabulary", value=kind, fix=fix)
    for name, value in given.items():
        if name not in OPTIONS[kind]:
            option = f"--{name.replace('_', '-')}"
            raise TokenizerError(f"{option} has no effect on --kind {kind}", value=value, fix=f"leave out {option}")


def train_kind(kind: Kind, texts: Iterable[str], *, sequence_length: int | None = None, **options: Any) -> Tokenizer:
    """Learn a vocabulary from a stream of texts.

    options: those of `OPTIONS[kind]`, by default as in the function of the kind; special tokens may be names of groups.
    """
    from trivium.tokenizers import train, train_pieces

    check_options(kind, options)
    more: dict[str, Any] = {**options, "sequence_length": sequence_length}
    if "special" in more:
        more["special"] = expanded(more["special"])
    if "vocab_size" in OPTIONS[kind]:
        more.setdefault("vocab_size", DEFAULT_SIZE)
    if kind != "word" and "min_count" in more:
        more["min_frequency"] = more.pop("min_count")
    if kind == "byte":
        return train.train_bytes(**more)
    makers: dict[str, Callable[..., Tokenizer]] = {
        "bpe": train.train_bpe,
        "wordpiece": train_pieces.train_wordpiece,
        "unigram": train_pieces.train_unigram,
        "char-bpe": train_pieces.train_character_bpe,
        "word": train.train_word,
        "char": train.train_characters,
    }
    return makers[kind](texts, **more)
