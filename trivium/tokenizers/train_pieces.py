"""Vocabularies of pieces of words as other families have them: WordPiece, unigram, and BPE on characters.

WordPiece is BERT's (Devlin et al., 2019): words are cut off first, pieces that go on begin with `##`. Unigram (Kudo,
2018) and BPE on characters are SentencePiece's: a space is written as `\u2581` and belongs to the word behind it, and
a character that is no token becomes its bytes. The algorithms are those of the library `tokenizers`, which decides
between equally good pieces of WordPiece and unigram by chance: there the same texts can give a vocabulary that differs
in a few of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from trivium.errors import TokenizerError
from trivium.tokenizers.files import TokenizerFiles
from trivium.tokenizers.templates import TRIVIUM
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import (
    SPECIAL,
    UNKNOWN,
    Normalise,
    check_different,
    checked,
    configuration,
    framing,
    normalizer,
)

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens of a WordPiece vocabulary, in the order of their ids."""
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""How SentencePiece spells the tokens of single bytes."""
NOT_A_BYTE = "(?<=<)(?=0x[0-9A-F]{2}>)"
"""Where text that spells the token of a byte, such as `<0x41>`, is cut, for it must not become that byte."""
_SPACE = "\u2581"
_LONGEST_WORD = 100


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    special: Sequence[str] = (),
    min_frequency: int = 2,
    sequence_length: int | None = None,
) -> Tokenizer:
    """BERT's kind: [CLS] begins and [SEP] ends a text, [MASK] is there for masked language modelling.

    A word with a character that was not in the texts, or of more than 100 characters, is [UNK]; white space is lost.

    lowercase: also removes accents, as BERT's uncased models do.
    """
    names = [*BERT_SPECIAL, *(token for token in special if token not in BERT_SPECIAL)]
    _check(names, vocab_size)
    backend = tokenizers.Tokenizer(models.WordPiece({}, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=names,
        limit_alphabet=vocab_size // 2,
        show_progress=False,
    )
    backend.train_from_iterator(checked(texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", names.index("[CLS]")), ("[SEP]", names.index("[SEP]"))],
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name[1:-1].lower()}_token": name for name in BERT_SPECIAL},
        "additional_special_tokens": names[len(BERT_SPECIAL) :],
        "model_max_length": sequence_length or int(1e30),
        "clean_up_tokenization_spaces": False,
    }
    return _finished(json.loads(backend.to_str()), config, vocab_size, len(names), min_frequency, None)


def train_unigram(
    texts: Iterable[str],
    *,
    vocab_size: int,
    normalise: Normalise = "nmt_nfkc",
    lowercase: bool = False,
    prefix_space: bool = True,
    special: Sequence[str] = (),
    sequence_length: int | None = None,
    chat_template: str = TRIVIUM,
) -> Tokenizer:
    """SentencePiece's unigram model: of all ways to cut a text the likeliest, by the probability of the pieces.

    normalise:    what becomes of a text first; `nmt_nfkc`, like SentencePiece's default, unites forms of a character
                  and runs of spaces, so a text does not decode to itself. `none` keeps it.
    prefix_space: a space in front of every text, so that its first word is the same as inside.
    """
    names = [*SPECIAL, *special, UNKNOWN]
    _check(names, vocab_size - len(BYTES))
    backend = tokenizers.Tokenizer(models.Unigram())
    _as_sentencepiece(backend, normalise, lowercase, prefix_space)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[*names, *BYTES], unk_token=UNKNOWN, show_progress=False
    )
    backend.train_from_iterator(checked(texts), trainer)
    definition = json.loads(backend.to_str())
    model = definition["model"]
    least = min((score for piece, score in model["vocab"]), default=0.0)
    model["vocab"] = [[piece, least if piece in BYTES else score] for piece, score in model["vocab"]]
    cut = {"type": "Split", "pattern": {"Regex": NOT_A_BYTE}, "behavior": "Isolated", "invert": False}
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [definition["pre_tokenizer"], cut]}
    return _with_bytes(definition, names, vocab_size, 0, sequence_length, chat_template)


def train_character_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    normalise: Normalise = "none",
    lowercase: bool = False,
    prefix_space: bool = True,
    special: Sequence[str] = (),
    min_frequency: int = 2,
    sequence_length: int | None = None,
    chat_template: str = TRIVIUM,
) -> Tokenizer:
    """BPE as in Llama 2: on characters; those that are too rare to be tokens become bytes. Options as in unigram.

    A quarter of the vocabulary at most is single characters.
    """
    names = [*SPECIAL, *special, UNKNOWN]
    _check(names, vocab_size - len(BYTES))
    backend = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    _as_sentencepiece(backend, normalise, lowercase, prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*names, *BYTES],
        limit_alphabet=vocab_size // 4,
        show_progress=False,
    )
    backend.train_from_iterator(checked(texts), trainer)
    definition = json.loads(backend.to_str())
    return _with_bytes(definition, names, vocab_size, min_frequency, sequence_length, chat_template)


def _as_sentencepiece(backend: tokenizers.Tokenizer, normalise: Normalise, lowercase: bool, prefix_space: bool) -> None:
    found = normalizer(normalise, lowercase=lowercase)
    if found is not None:
        backend.normalizer = found
    scheme: Literal["always", "never"] = "always" if prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix_space else parts)


def _with_bytes(
    definition: dict[str, Any],
    names: Sequence[str],
    vocab_size: int,
    min_frequency: int,
    sequence_length: int | None,
    chat_template: str,
) -> Tokenizer:
    """The tokens of bytes are part of the vocabulary, but no special tokens that could stand in a text."""
    definition["model"]["byte_fallback"] = True
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in names]
    definition["post_processor"] = json.loads(framing(names).__getstate__())
    config = {**configuration(names, sequence_length), "unk_token": UNKNOWN}
    extra = [name for name in config["additional_special_tokens"] if name != UNKNOWN]
    config["additional_special_tokens"] = extra
    return _finished(definition, config, vocab_size, len(names) + len(BYTES), min_frequency, chat_template)


def _finished(
    definition: dict[str, Any],
    config: dict[str, Any],
    vocab_size: int,
    fixed: int,
    min_frequency: int,
    chat_template: str | None,
) -> Tokenizer:
    if len(definition["model"]["vocab"]) <= fixed:
        raise TokenizerError(
            "the training texts are empty, or no piece occurs often enough",
            value=f"min_frequency={min_frequency}" if min_frequency else f"{vocab_size} tokens wanted",
            fix="give more text, or lower min_frequency",
        )
    templates = {} if chat_template is None else {"default": chat_template}
    tokenizer = Tokenizer(TokenizerFiles(definition, config, templates))
    if tokenizer.vocab_size < vocab_size:
        tokenizer.messages.append(f"the text gave {tokenizer.vocab_size} tokens, not {vocab_size}")
    return tokenizer


def _check(names: Sequence[str], room: int) -> None:
    check_different(names)
    if room <= len(names):
        raise TokenizerError(
            "the vocabulary has no room for pieces of words beside its special tokens and bytes",
            value=f"{room - len(names)} left",
            fix="use 1024 or more; 8192 is right for a few megabytes of text",
        )
