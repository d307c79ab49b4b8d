"""Make a vocabulary: byte-level BPE (Sennrich et al., 2016; on bytes: Radford et al., 2019), words, or characters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from trivium.errors import TokenizerError
from trivium.tokenizers.fast import GPT4
from trivium.tokenizers.files import TokenizerFiles
from trivium.tokenizers.templates import TRIVIUM
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.vectors_text import WORD, words_of

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIAL = (PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>", "<|tool_call|>", "<|tool|>")
"""The special tokens of a new vocabulary, in the order of their ids: 0 is padding, 1 begins and 2 ends a text."""

MASK = "[MASK]"
_BYTES = 256
UNKNOWN = "<|unk|>"

Normalise = Literal["none", "nfc", "nfd", "nfkc", "nfkd", "nmt_nfkc"]
"""What becomes of a text before it is encoded: a form of Unicode, or SentencePiece's default."""


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    split: Literal["gpt4", "gpt2"] = "gpt4",
    special: Sequence[str] = (),
    min_frequency: int = 2,
    sequence_length: int | None = None,
    chat_template: str = TRIVIUM,
) -> Tokenizer:
    """Learn `vocab_size` tokens from `texts` (a stream, read once); the same texts give the same vocabulary.

    split: how text is cut before pairs are counted; no token crosses a cut. `gpt2` keeps numbers and newlines whole,
        `gpt4` cuts numbers into three digits and keeps line ends together.
    special: further special tokens, after those of `SPECIAL`.
    min_frequency: pairs seen less often are not merged, so a small text can give fewer tokens than asked for.
    sequence_length: written as `model_max_length`, for programs that ask for it.

    All cores are used; RAYON_NUM_THREADS sets another number.
    """
    names = [*SPECIAL, *special]
    _check(names, vocab_size)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _splitter(split)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(checked(texts), trainer)
    backend.post_processor = framing(names)
    if backend.get_vocab_size() <= len(names) + _BYTES:
        raise TokenizerError(
            "the training texts are empty, or no two bytes stand together often enough to be merged",
            value=f"min_frequency={min_frequency}",
            fix="give more text, or lower min_frequency",
        )
    tokenizer = Tokenizer(
        TokenizerFiles(json.loads(backend.to_str()), configuration(names, sequence_length), {"default": chat_template})
    )
    if tokenizer.vocab_size < vocab_size:
        tokenizer.messages.append(
            f"the text gave {tokenizer.vocab_size} tokens, not {vocab_size}: no other pair occurs {min_frequency} times"
        )
    return tokenizer


def train_word(
    texts: Iterable[str],
    *,
    vocab_size: int | None = None,
    min_count: int = 2,
    lowercase: bool = False,
    sequence_length: int | None = None,
) -> Tokenizer:
    """One token for each word that occurs at least `min_count` times, the most frequent first.

    Words are those of `trivium.tokenizers.vectors_text`: runs of letters and digits, and each other character alone.
    Every other word becomes `<|unk|>`, and white space is lost, so a text does not decode to itself. There is no chat
    template.

    vocab_size: most tokens, with the special ones; default: no limit.
    """
    counts = Counter(word for text in checked(texts) for word in words_of(text, lowercase=lowercase))
    names = [PAD, BOS, EOS, UNKNOWN]
    frequent = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    words = frequent if vocab_size is None else frequent[: max(0, vocab_size - len(names))]
    if not words:
        raise TokenizerError(
            "no word of the training texts occurs often enough, or the vocabulary has no room for words",
            value=f"min_count={min_count}, vocab_size={vocab_size}",
            fix="give more text, lower min_count, or raise vocab_size",
        )
    vocabulary = {token: identifier for identifier, token in enumerate([*names, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.add_special_tokens(names)
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="removed", invert=True)
    backend.post_processor = framing(names)
    config = {**configuration(names, sequence_length), "unk_token": UNKNOWN}
    return Tokenizer(TokenizerFiles(json.loads(backend.to_str()), config))


def train_characters(
    texts: Iterable[str], *, normalise: Normalise = "none", sequence_length: int | None = None
) -> Tokenizer:
    """One token for each character of `texts`, in the order of their code points, after padding, BOS, EOS and unknown.

    Suits texts of few different characters, such as ABC notation. A character that the texts did not hold becomes
    `<|unk|>`. There is no chat template.
    """
    prepared = normalizer(normalise)
    plain = checked(texts) if prepared is None else map(prepared.normalize_str, checked(texts))
    characters = sorted({character for text in plain for character in text})
    if not characters:
        raise TokenizerError("the training texts are empty", fix="check the sources")
    names = [PAD, BOS, EOS, UNKNOWN]
    vocabulary = {token: identifier for identifier, token in enumerate([*names, *characters])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    backend.add_special_tokens(names)
    backend.decoder = decoders.Fuse()
    if prepared is not None:
        backend.normalizer = prepared
    backend.post_processor = framing(names)
    config = {**configuration(names, sequence_length), "unk_token": UNKNOWN}
    return Tokenizer(TokenizerFiles(json.loads(backend.to_str()), config))


def train_bytes(
    *, normalise: Normalise = "none", sequence_length: int | None = None, chat_template: str = TRIVIUM
) -> Tokenizer:
    """One token for each of the 256 bytes, after the tokens of `SPECIAL`; learns nothing, so it needs no text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: identifier for identifier, token in enumerate([*SPECIAL, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(list(SPECIAL))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    prepared = normalizer(normalise)
    if prepared is not None:
        backend.normalizer = prepared
    backend.post_processor = framing(SPECIAL)
    config = configuration(SPECIAL, sequence_length)
    return Tokenizer(TokenizerFiles(json.loads(backend.to_str()), config, {"default": chat_template}))


def framing(names: Sequence[str]) -> processors.TemplateProcessing:
    """BOS in front of each text, for programs that leave that to the file; names: the special tokens by id."""
    return processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, list(names).index(BOS))]
    )


def normalizer(name: Normalise, *, lowercase: bool = False) -> normalizers.Normalizer | None:
    """The step of the library that stands for it, or None."""
    forms = {"nfc": normalizers.NFC, "nfd": normalizers.NFD, "nfkc": normalizers.NFKC, "nfkd": normalizers.NFKD}
    parts: list[normalizers.Normalizer] = []
    if name == "nmt_nfkc":
        parts = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    elif name != "none":
        parts = [forms[name]()]
    if lowercase:
        parts.append(normalizers.Lowercase())
    if len(parts) == 1:
        return parts[0]
    return normalizers.Sequence(parts) if parts else None


def configuration(names: Sequence[str], sequence_length: int | None) -> dict[str, Any]:
    """`tokenizer_config.json` of a vocabulary with these special tokens."""
    mask = {"mask_token": MASK} if MASK in names else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **mask,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [name for name in names if name not in (BOS, EOS, PAD, MASK)],
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": sequence_length or int(1e30),  # transformers' own mark for "no limit"
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def check_different(names: Sequence[str]) -> None:
    """TokenizerError for a special token that is there twice or empty."""
    double = {name for name in names if list(names).count(name) > 1}
    if double or not all(names):
        raise TokenizerError(
            "special tokens must be different and not empty",
            value=sorted(double) or list(names),
            fix="leave out what is there by default",
        )


def _check(names: Sequence[str], vocab_size: int) -> None:
    check_different(names)
    if vocab_size <= len(names) + _BYTES:
        raise TokenizerError(
            f"the vocabulary must be larger than its {_BYTES} bytes and {len(names)} special tokens",
            value=vocab_size,
            fix="use 1024 or more; 8192 is right for a few megabytes of text",
        )


def _splitter(split: str) -> pre_tokenizers.PreTokenizer:
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "gpt4":
        cut = pre_tokenizers.Split(tokenizers.Regex(GPT4), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise TokenizerError("there is no such way to split text", value=split, fix="use gpt4 or gpt2")


def checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts; TokenizerError for one that UTF-8 cannot hold."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                "a training text contains half a character (a lone surrogate)",
                where=f"text number {number}, character {error.start}",
                value=f"U+{ord(text[error.start]):04X}",
                fix="read the text with errors='replace'",
            ) from None
        yield text
