"""A `.tiktoken` file (each line a token in base64, and its rank) as a tokenizer of Hugging Face's format.

The file does not say how text is cut, nor the special tokens; both belong to the name of an encoding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.errors import TokenizerError
from trivium.tokenizers.fast import GPT2, GPT4, O200K, QWEN2
from trivium.tokenizers.files import TokenizerFiles
from trivium.tokenizers.tokenizer import LETTERS, Tokenizer

MOST_BYTES = 64 << 20
"""Largest file that is read; the largest published ones have about 4 MB."""
MOST_TOKENS = 1 << 21
LONGEST = 4096
"""Bytes of the longest token."""
_END = "<|endoftext|>"
_MOST_GAPS = 4096
_MIDDLE = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


@dataclass(frozen=True)
class Encoding:
    """How an encoding cuts text, and the ids of its special tokens."""

    pattern: str
    special: Mapping[str, int]
    end: str = _END


ENCODINGS: Mapping[str, Encoding] = {
    "gpt2": Encoding(GPT2, {_END: 50256}),
    "r50k_base": Encoding(GPT2, {_END: 50256}),
    "p50k_base": Encoding(GPT2, {_END: 50256}),
    "cl100k_base": Encoding(
        GPT4, {_END: 100257, **dict(zip(_MIDDLE, (100258, 100259, 100260), strict=True)), "<|endofprompt|>": 100276}
    ),
    "o200k_base": Encoding(O200K, {_END: 199999, "<|endofprompt|>": 200018}),
    "llama3": Encoding(GPT4, {}),
    "qwen2": Encoding(QWEN2, {}),
}
"""Published encodings by name. Those of `llama3` and `qwen2` are the way of cutting; give their special tokens."""


def import_tiktoken(
    path: Path, *, encoding: str, special: Mapping[str, int] | None = None, end: str | None = None
) -> Tokenizer:
    """Read the file; TokenizerError, with the line, for what is no such file.

    encoding: a name of `ENCODINGS`.  special: further special tokens, and their ids.  end: the one that ends a text.
    """
    if encoding not in ENCODINGS:
        raise TokenizerError("there is no such encoding", value=encoding, fix=f"use one of {', '.join(ENCODINGS)}")
    known = ENCODINGS[encoding]
    ranks = read_ranks(path)
    tokens = {**known.special, **(special or {})}
    taken = {identifier for identifier in tokens.values() if identifier in ranks.values()}
    if taken or len(set(tokens.values())) != len(tokens):
        raise TokenizerError(
            "two tokens have the same id",
            where=path,
            value=sorted(taken) or tokens,
            fix="check the name of the encoding, and give each special token an id of its own",
        )
    last = end or (known.end if known.end in tokens else next(iter(tokens), None))
    if last is None or last not in tokens:
        raise TokenizerError(
            "no special token ends a text",
            where=path,
            value=last or "no special tokens",
            fix="name one and its id: --special '<|endoftext|>=128001'",
        )
    gaps = sorted(set(range(max(tokens.values()) + 1)) - set(ranks.values()) - set(tokens.values()))
    if len(gaps) > _MOST_GAPS:
        raise TokenizerError(
            f"{len(gaps)} ids below those of the special tokens are not in the file",
            where=path,
            value=f"{len(ranks)} tokens, and {last} is {tokens[last]}",
            fix=f"check the name of the encoding ({encoding}), and whether the file is complete",
        )
    tokens |= {f"<|reserved_{gap}|>": gap for gap in gaps}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": last,
        "additional_special_tokens": [token for token in tokens if token != last],
        "add_bos_token": False,
        "model_max_length": int(1e30),
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(TokenizerFiles(_definition(ranks, known.pattern, tokens), config, {}, str(path)))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Rank by token; every single byte is one."""
    if not path.is_file():
        raise TokenizerError("there is no such file", where=path, fix="check the path")
    if path.stat().st_size > MOST_BYTES:
        raise _damaged(f"{path}", f"{path.stat().st_size} bytes are too many")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        words = line.split()
        try:
            token, rank = base64.b64decode(words[0], validate=True), int(words[1])
        except (IndexError, ValueError, binascii.Error):
            raise _damaged(f"{path}:{number}", "a line must hold base64 and a number", line[:80]) from None
        if len(words) != 2 or not token or token in ranks or not 0 <= rank < MOST_TOKENS or len(token) > LONGEST:
            raise _damaged(
                f"{path}:{number}", "a token is there twice, empty, too long, or has no usable rank", line[:80]
            )
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks):
        raise _damaged(f"{path}", "two tokens have the same rank")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _damaged(f"{path}", f"{len(missing)} of the 256 bytes are no tokens, so some text could not be encoded")
    return ranks


def _damaged(where: str, why: str, line: bytes | None = None) -> TokenizerError:
    return TokenizerError(
        f"the file is no usable tiktoken file: {why}",
        where=where,
        fix="take the file from its source again",
        **({} if line is None else {"value": line}),
    )


def _definition(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> dict[str, Any]:
    """tiktoken joins two neighbours that are a token together, so every way to cut a token in two is a merge."""
    letter = {byte: name for name, byte in LETTERS.items()}
    spelled = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges: list[list[str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        good = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        good.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[spelled[left], spelled[right]] for left, right in good]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = sorted(special.items(), key=lambda pair: pair[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags, "special": True} for token, number in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splitters(pattern)},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece of text that is a token becomes that token
            "vocab": {**{spelled[token]: rank for token, rank in ranks.items()}, **special},
            "merges": merges,
        },
    }


def _splitters(pattern: str) -> Sequence[Mapping[str, Any]]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, level]
