"""A SentencePiece `.model` file as a tokenizer of Hugging Face's format: unigram, BPE and characters.

Ids are those of the file. What SentencePiece does to a text in one go becomes steps of `tokenizers`: the table of
replacements that the file brings along, spaces united and written as `\u2581`, one put in front. Two rare kinds of text
still get other ids: an accent or vowel sign behind a character that the table replaces and that has no form with it,
and, with BPE, symbols of the user's and a space in front, a text that is one such symbol and nothing else.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trivium.errors import TokenizerError
from trivium.tokenizers.files import TokenizerFiles
from trivium.tokenizers.protobuf import fields, signed, single
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train_pieces import BYTES, NOT_A_BYTE

MOST_BYTES = 256 << 20
"""Largest file that is read; the largest published ones have about 5 MB."""
_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE, _WORD, _CHARACTERS = range(1, 5)
_ROLES = {
    "unk": (40, 45, 0, "<unk>"),
    "bos": (41, 46, 1, "<s>"),
    "eos": (42, 47, 2, "</s>"),
    "pad": (43, 48, -1, "<pad>"),
}


@dataclass(frozen=True)
class Piece:
    """A token: its spelling, its log probability (or minus its rank), and its kind."""

    text: str
    score: float
    kind: int


@dataclass
class Model:
    """What a `.model` file says."""

    pieces: list[Piece] = field(default_factory=list)
    algorithm: int = _UNIGRAM
    roles: dict[str, int] = field(default_factory=dict)
    byte_fallback: bool = False
    suffix: bool = False
    charsmap: bytes = b""
    prefix: bool = True
    united: bool = True
    escaped: bool = True


def import_sentencepiece(path: Path, *, chat_template: str | None = None) -> Tokenizer:
    """Read the file; TokenizerError if it is none, damaged, or of a kind that `tokenizers` cannot run."""
    model = read_model(path)
    if model.algorithm == _WORD or model.suffix or not model.escaped:
        what = "whole words" if model.algorithm == _WORD else "spaces kept at the end of words, or not marked"
        raise TokenizerError(
            f"a SentencePiece model of this kind has no equal in the tokenizers library: {what}",
            where=path,
            fix="use a unigram or bpe model",
        )
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(model),
        "normalizer": _normalizer(model),
        "pre_tokenizer": _splitter(model),
        "post_processor": _framing(model),
        "decoder": _decoder(model),
        "model": _unigram(model) if model.algorithm == _UNIGRAM else _bpe(model),
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": int(1e30)}
    config |= {f"{role}_token": model.pieces[identifier].text for role, identifier in model.roles.items()}
    config |= {"add_bos_token": "bos" in model.roles, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    templates = {} if chat_template is None else {"default": chat_template}
    return Tokenizer(TokenizerFiles(definition, config, templates, str(path)))


def read_model(path: Path) -> Model:
    """The file, every part of it checked."""
    if not path.is_file():
        raise TokenizerError("there is no such file", where=path, fix="check the path")
    if path.stat().st_size > MOST_BYTES:
        raise _damaged(path, f"{path.stat().st_size} bytes are too many for a SentencePiece model")
    try:
        model = _model(path.read_bytes())
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise _damaged(path, str(error)) from None
    names = [piece.text for piece in model.pieces]
    if not names or len(set(names)) != len(names) or "" in names:
        raise _damaged(path, "a piece is there twice or is empty" if names else "there are no pieces")
    if not all(math.isfinite(piece.score) and _NORMAL <= piece.kind <= _BYTE for piece in model.pieces):
        raise _damaged(path, "a piece has an unknown kind, or a score that is no number")
    if model.byte_fallback and not set(names) >= set(BYTES):
        raise _damaged(path, "the model falls back on bytes but has no tokens for all of them")
    if model.charsmap:
        _check_charsmap(model.charsmap, path)
    return model


def _damaged(path: Path, why: str) -> TokenizerError:
    return TokenizerError(
        f"the file is no usable SentencePiece model: {why}", where=path, fix="take the file from its source again"
    )


def _model(data: bytes) -> Model:
    model = Model()
    names: dict[str, str] = {role: default for role, (_, _, _, default) in _ROLES.items()}
    ids = {role: default for role, (_, _, default, _) in _ROLES.items()}
    for number, _, value in fields(data):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError(f"field {number} holds no message")
        if number == 1:
            model.pieces.append(_piece(_bytes(value)))
        elif number == 2:
            _read_trainer(model, _bytes(value), ids, names)
        elif number == 3:
            _read_normalizer(model, _bytes(value))
    for role, identifier in ids.items():
        if 0 <= identifier < len(model.pieces) and model.pieces[identifier].kind in (_UNKNOWN, _CONTROL, _USER):
            model.roles[role] = identifier
    found = [place for place, piece in enumerate(model.pieces) if piece.kind == _UNKNOWN]
    if len(found) != 1:
        raise ValueError(f"{len(found)} pieces stand for the unknown, not one")
    model.roles["unk"] = found[0]
    for role, name in names.items():  # older files name the pieces only
        place = next((n for n, piece in enumerate(model.pieces) if piece.text == name and piece.kind == _CONTROL), None)
        if role not in model.roles and ids[role] >= 0 and place is not None:
            model.roles[role] = place
    return model


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, _NORMAL
    for number, _, value in fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            score = single(value)
        elif number == 3:
            kind = signed(value)
    return Piece(text, score, kind)


def _read_trainer(model: Model, data: bytes, ids: dict[str, int], names: dict[str, str]) -> None:
    for number, _, value in fields(data):
        if number == 3:
            model.algorithm = signed(value)
            if model.algorithm not in (_UNIGRAM, _BPE, _WORD, _CHARACTERS):
                raise ValueError(f"there is no model type {model.algorithm}")
        elif number == 24:
            model.suffix = bool(signed(value))
        elif number == 35:
            model.byte_fallback = bool(signed(value))
        for role, (id_field, name_field, _, _) in _ROLES.items():
            if number == id_field:
                ids[role] = signed(value)
            elif number == name_field:
                names[role] = _bytes(value).decode()


def _read_normalizer(model: Model, data: bytes) -> None:
    for number, _, value in fields(data):
        if number == 2:
            model.charsmap = _bytes(value)
        elif number == 3:
            model.prefix = bool(signed(value))
        elif number == 4:
            model.united = bool(signed(value))
        elif number == 5:
            model.escaped = bool(signed(value))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where text is expected")
    return value


def _check_charsmap(data: bytes, path: Path) -> None:
    """No step through the table (a double-array trie) may leave it, and every result must be whole characters."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 1024 or not 0 < size <= len(data) - 4:
        raise _damaged(path, "the table of replacements is cut short")
    units = np.frombuffer(data[4 : 4 + size], dtype="<u4").astype(np.int64)
    results = data[4 + size :]
    try:
        results.decode()
    except UnicodeDecodeError:
        raise _damaged(path, "the table of replacements is not UTF-8") from None
    inner = units >> 31 == 0
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    next_block = (np.arange(len(units)) ^ offsets) | 255
    values = (units & ((1 << 31) - 1))[~inner]
    starts = np.array([byte & 0xC0 != 0x80 for byte in results] or [False])
    inside = values < len(results)
    if (next_block[inner] >= len(units)).any() or not (inside.all() and starts[values].all()):
        raise _damaged(path, "the table of replacements points outside of itself")


def _replaced(table: bytes, text: str) -> str | None:
    """What the table has for exactly this text."""
    size = int.from_bytes(table[:4], "little")
    units = np.frombuffer(table[4 : 4 + size], dtype="<u4").tolist()

    def offset(unit: int) -> int:
        return int((unit >> 10) << ((unit & (1 << 9)) >> 6))

    at = offset(units[0])
    for byte in text.encode():
        at ^= byte
        if units[at] & (1 << 31 | 0xFF) != byte:
            return None
        leaf, at = units[at] >> 8 & 1, at ^ offset(units[at])
    if not leaf:
        return None
    start = 4 + size + (units[at] & (1 << 31) - 1)
    return table[start : table.index(b"\0", start)].decode()


# The parts of tokenizer.json


def _own_symbols(model: Model) -> list[str]:
    """Symbols of the user's that are cut out of the text before anything is merged."""
    return [piece.text for piece in model.pieces if piece.kind == _USER and model.algorithm != _UNIGRAM]


def _normalizer(model: Model) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []

    def replace(pattern: dict[str, str], content: str) -> None:
        steps.append({"type": "Replace", "pattern": pattern, "content": content})

    if model.charsmap:
        # The library applies the table to five bytes at most, and puts what it has for the first character in the
        # place of all of them. So what can be done before, and what is left to unite, has steps of its own.
        table = base64.b64encode(model.charsmap).decode()
        unite = [{"type": "NFC"}] if _replaced(model.charsmap, "e\u0301") == "\u00e9" else []
        steps += [{"type": "Lowercase"}] if _replaced(model.charsmap, "A") == "a" else []
        steps += [*unite, {"type": "Precompiled", "precompiled_charsmap": table}, *unite]
    if model.united:
        replace({"Regex": r"\A +| +\z"}, "")
        replace({"Regex": " {2,}"}, " ")
    symbols = _own_symbols(model)
    if model.prefix and symbols:
        # The symbols themselves go through these steps too, and must not get a space in front.
        alone = "|".join(re.escape(symbol) for symbol in symbols)
        replace({"Regex": rf"\A(?!(?:{alone})?\z)"}, _SPACE)
    elif model.prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    replace({"String": " "}, _SPACE)
    return {"type": "Sequence", "normalizers": steps}


def _splitter(model: Model) -> dict[str, Any] | None:
    """At spaces where no token holds one inside, and so that text never spells the token of a byte."""
    steps: list[dict[str, Any]] = []
    if not any(_SPACE in piece.text[1:] for piece in model.pieces if piece.kind in (_NORMAL, _USER)):
        space = {"String": _SPACE}
        steps.append({"type": "Split", "pattern": space, "behavior": "MergedWithNext", "invert": False})
    if model.byte_fallback and model.algorithm == _UNIGRAM:
        steps.append({"type": "Split", "pattern": {"Regex": NOT_A_BYTE}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _decoder(model: Model) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if model.byte_fallback else []
    steps += [{"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.prefix else []
    return {"type": "Sequence", "decoders": steps}


def _framing(model: Model) -> dict[str, Any] | None:
    if "bos" not in model.roles:
        return None
    from tokenizers import processors

    bos = model.pieces[model.roles["bos"]].text
    made = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, model.roles["bos"])])
    return dict(json.loads(made.__getstate__()))


def _added(model: Model) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    added = []
    for place, piece in enumerate(model.pieces):
        special = piece.kind in (_CONTROL, _UNKNOWN)
        if special or (piece.kind == _USER and model.algorithm != _UNIGRAM):
            own = {"normalized": not special, "special": special}
            added.append({"id": place, "content": piece.text, **flags, **own})
    return added


def _unigram(model: Model) -> dict[str, Any]:
    """Symbols of the user get the bonus with which SentencePiece makes sure that they win."""
    normal = [piece.score for piece in model.pieces if piece.kind == _NORMAL]
    least, most = min(normal, default=0.0), max(normal, default=0.0)
    scores = dict.fromkeys((_CONTROL, _UNKNOWN, _UNUSED, _BYTE), least)
    vocab = []
    for piece in model.pieces:
        bonus = len(piece.text) * most - 0.1
        score = bonus if piece.kind == _USER else scores.get(piece.kind, piece.score)
        vocab.append([piece.text, score])
    return {
        "type": "Unigram",
        "unk_id": model.roles["unk"],
        "vocab": vocab,
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: Model) -> dict[str, Any]:
    """A pair of neighbours becomes one piece if it spells one, the piece with the highest score first."""
    vocab = {piece.text: place for place, piece in enumerate(model.pieces)}
    merged = [piece for piece in model.pieces if piece.kind == _NORMAL and model.algorithm == _BPE]
    parts = {piece.text for piece in merged}
    merges: list[tuple[str, str]] = []
    for piece in sorted(merged, key=lambda piece: -piece.score):
        cuts = ((piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text)))
        good = [(left, right) for left, right in cuts if left in parts and right in parts]
        merges += sorted(good, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.roles["unk"]].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }
