"""Text and messages to token ids and back: the one path for training, evaluation and serving.

Three rules hold everywhere, because breaking them is silent:

* BOS exactly once. The backend adds no special token by itself (its post-processor is switched off); the methods
  here add BOS and EOS, or the chat template writes them.
* Text is data. A document or a message that happens to contain `<|eos|>` is encoded as those seven characters. Only
  the chat template, and `encode(..., parse_special=True)`, can write special tokens.
* Padding is never EOS, so a model always learns to stop.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trivium.errors import TokenizerError
from trivium.tokenizers.chat import ChatTemplate, EncodedChat, Message, encode_chat, encode_generation_prompt
from trivium.tokenizers.fast import FastEncoder, fast_encoder
from trivium.tokenizers.files import ROLES, TokenizerFiles, read_files, write_files
from trivium.tokenizers.special import is_single_byte
from trivium.tokenizers.stream import ByteStream, StreamDecoder, WindowStream

__all__ = ["EncodedChat", "Message", "StreamDecoder", "Tokenizer"]

_PADS = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<|fim_pad|>", "<|pad_token|>")
_SPARE = ("reserved", "unused", "<|extra_")


class Tokenizer:
    """A tokenizer of any kind that `tokenizers` can run: byte-level BPE, SentencePiece-style BPE, Unigram, WordPiece.

    bos_id: token that opens a text, or None where the vocabulary has none.
    eos_id: token that ends a text; generation stops at it.
    pad_id: token that fills up rows for other programs (Trivium needs none), or None. Never equal to eos_id.
    adds_bos: whether texts begin with BOS, as the folder says.
    vocab_size: one more than the largest id.
    messages: what was decided on loading and is worth telling the user.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.messages: list[str] = []
        self.where = files.where
        definition, roles = _with_declared_specials(files)
        self.vocabulary: dict[str, int] = _vocabulary(definition)
        self.vocab_size: int = max(self.vocabulary.values(), default=-1) + 1
        self._parsing = self._backend(definition)
        for token in definition["added_tokens"]:
            if self._parsing.token_to_id(token["content"]) != token["id"]:
                raise TokenizerError(
                    "an added token does not get the id that the file gives it",
                    where=f"{self.where}/tokenizer.json: added_tokens",
                    value=token,
                    fix="give each added token the id it has in the vocabulary, or one of its own",
                )
        self.special_tokens: dict[str, int] = {
            token["content"]: token["id"] for token in definition["added_tokens"] if token.get("special")
        }
        self.eos_id, self.bos_id = self._end_and_start(roles)
        self.pad_id = self._padding(roles)
        self.adds_bos = self._says_bos(files.config)
        self._parsing.post_processor = None
        self.role_tokens: dict[str, str] = {key: token for key, token in roles.items() if key != "pad_token"}
        if self.pad_id is not None:
            self.role_tokens["pad_token"] = self.token(self.pad_id)
        self.files = replace(files, definition=definition, config=self._config(files.config))

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer (or model) folder; TokenizerError says what is wrong with it."""
        return cls(read_files(Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Write the files into `folder`; call it inside a `write_artifact` block for a whole artifact."""
        write_files(Path(folder), self.files)

    def with_chat_template(self, template: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(replace(self.files, templates={"default": template}))

    @property
    def bos_token(self) -> str | None:
        """The text of the token that opens a text."""
        return None if self.bos_id is None else self._parsing.id_to_token(self.bos_id)

    @property
    def eos_token(self) -> str:
        """The text of the token that ends a text."""
        return str(self._parsing.id_to_token(self.eos_id))

    # Text to ids

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, exactly these and no others unless asked for.

        bos, eos: put the token before or after; BOS is put only where the tokenizer has one.
        parse_special: special tokens that are spelled out in the text become those tokens. Only for text that you
            wrote yourself, never for text of a user or a document.
        """
        backend = self._parsing if parse_special else self._plain
        return self._framed(_encoding(backend, text).ids, bos=bos, eos=eos)

    def encode_document(self, text: str) -> list[int]:
        """Ids of a training document: BOS exactly once (where this tokenizer uses it), the text, EOS."""
        return self.encode(text, bos=self.adds_bos, eos=True)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_document` of many texts at once, on all cores that RAYON_NUM_THREADS allows."""
        try:
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, ValueError, UnicodeError):
            return [self.encode_document(text) for text in texts]
        return [self._framed(encoding.ids, bos=self.adds_bos, eos=True) for encoding in encodings]

    def document_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode_documents` as arrays, by a faster encoder where there is one for this tokenizer (`fast`).

        Can be called in several threads at once.
        """
        before = [] if not self.adds_bos or self.bos_id is None else [self.bos_id]
        bos, eos = np.array(before, dtype=np.uint32), np.array([self.eos_id], dtype=np.uint32)
        fast = self.fast
        plain = [None if fast is None else fast.encode(text) for text in texts]
        left = [place for place, ids in enumerate(plain) if ids is None]
        arrays = [np.concatenate((bos, ids, eos)) for ids in plain if ids is not None] if not left else []
        if left:
            rest = dict(zip(left, self.encode_documents([texts[place] for place in left]), strict=True))
            arrays = [
                np.array(rest[place], dtype=np.uint32) if ids is None else np.concatenate((bos, ids, eos))
                for place, ids in enumerate(plain)
            ]
        return arrays

    @cached_property
    def fast(self) -> FastEncoder | None:
        """A faster encoder with the same ids, if there is one."""
        return fast_encoder(self.files.definition, LETTERS)

    def encode_prompt(self, prompt: str | Sequence[Message], *, tools: Sequence[Message] | None = None) -> list[int]:
        """Ids that generation continues: BOS and a text, or messages with the template's generation prompt."""
        if isinstance(prompt, str):
            return self.encode(prompt, bos=self.adds_bos)
        return encode_generation_prompt(self, prompt, tools=tools)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        train_on: str | Sequence[str] = "all",
        prompt_weight: float = 0.0,
    ) -> EncodedChat:
        """Ids of a whole conversation and, for each, whether it is trained: what the assistant says and its end.

        A message with `train: false` is not trained; `train_on` and `prompt_weight` as in `trivium.tokenizers.chat`.
        TokenizerError names the message that cannot be encoded.
        """
        return encode_chat(self, messages, tools=tools, train_on=train_on, prompt_weight=prompt_weight)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text` with its special tokens parsed, and the [start, end) characters of each."""
        encoding = _encoding(self._parsing, text)
        return encoding.ids, encoding.offsets

    def guarded_offsets(self, pieces: Sequence[str | int]) -> tuple[list[int], list[tuple[int, int]]]:
        """As `offsets`, for text in which only the given ids are special tokens.

        pieces: strings, in which no special token is parsed, and ids of special tokens.

        The backend can only parse all special tokens or none. So it runs a twin of itself in which every special
        token is spelled as a long random word nobody can know, and that word is written where the token is meant.
        The text is still encoded in one go: the same ids as `offsets` gives wherever both are right.
        """
        spelled = [self._words[piece] if isinstance(piece, int) else piece for piece in pieces]
        names = {identifier: content for content, identifier in self.special_tokens.items()}
        encoding = _encoding(self._guarded, "".join(spelled))
        # Places in the twin's text, moved to places in the text with the tokens as they are really spelled.
        starts, at, real = [], 0, 0
        for piece, word in zip(pieces, spelled, strict=True):
            shown = len(names[piece]) if isinstance(piece, int) else len(piece)
            starts.append((at, len(word), real, shown))
            at, real = at + len(word), real + shown
        return encoding.ids, _moved(encoding.offsets, starts)

    # Ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that form no character become U+FFFD."""
        numbers = [int(token) for token in ids]
        if numbers and min(numbers) < 0:
            raise TokenizerError(
                "a negative number is no token id", value=min(numbers), fix="leave out the ignored positions (-100)"
            )
        return self._parsing.decode(numbers, skip_special_tokens=skip_special)

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        if not self.byte_level:
            return WindowStream(lambda ids: self.decode(ids, skip_special=skip_special))
        if not skip_special:
            return ByteStream(self.token_bytes)
        hidden = set(self.special_tokens.values())
        return ByteStream([b"" if token in hidden else value for token, value in enumerate(self.token_bytes)])

    def token(self, identifier: int) -> str:
        """The vocabulary's own spelling of a token, for people; `decode` gives its text."""
        return self._parsing.id_to_token(identifier) or ""

    # Facts

    @property
    def byte_level(self) -> bool:
        """Whether each token is a fixed run of bytes, so that nothing is unknown and nothing is lost."""
        return bool((self.files.definition.get("decoder") or {}).get("type") == "ByteLevel")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of each token by id; special tokens are their spelling, ids without a token are empty."""
        table: list[bytes] = [b""] * self.vocab_size
        for token, identifier in self.vocabulary.items():
            table[identifier] = _bytes_of(token) if self.byte_level else self._approximate_bytes(token)
        return table

    def byte_lengths(self) -> NDArray[np.int32]:
        """[vocab_size] bytes of text that each token stands for; 0 for special tokens.

        Exact for byte-level vocabularies: over a text's tokens they add up to its length in UTF-8. In the other
        kinds the bytes can depend on the neighbours (a space before the first word), and this is what the token
        stands for in the middle of a text.
        """
        lengths = np.array([len(value) for value in self.token_bytes], dtype=np.int32)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The template for conversations; TokenizerError if the folder has none."""
        return ChatTemplate.of(self)

    @cached_property
    def _tool_template(self) -> ChatTemplate:
        return ChatTemplate.of(self, tools=True)

    def chat_template_for(self, tools: Sequence[Message] | None) -> ChatTemplate:
        """The template for conversations with or without tools; few folders tell them apart."""
        return self._tool_template if tools and "tool_use" in self.files.templates else self.chat_template

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends: EOS, and the end of an assistant's turn where that is another token."""
        if "default" not in self.files.templates:
            return (self.eos_id,)
        try:
            chat = self.encode_chat([{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}])
        except TokenizerError:  # a template for other conversations than this one
            return (self.eos_id,)
        said = [token for token, trained in zip(chat.ids, chat.trained, strict=True) if trained]
        ends = [token for token in said if token in self.special_tokens.values()]
        return tuple(dict.fromkeys([self.eos_id, *ends[-1:]]))

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides which ids come out."""
        templates = sorted(self.files.templates.items())
        facts = [self.files.definition, self.bos_id, self.eos_id, self.adds_bos, templates]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    # Building

    def backend(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, in which text never spells a special token; not to be changed."""
        return self._plain

    def _framed(self, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
        before = [self.bos_id] if bos and self.bos_id is not None else []
        return [*before, *ids, self.eos_id] if eos else [*before, *ids]

    def _backend(self, definition: dict[str, Any]) -> tokenizers.Tokenizer:
        """Never with truncation, padding or BPE dropout, which change silently what a text becomes."""
        model = {**definition["model"], "dropout": None} if "dropout" in definition["model"] else definition["model"]
        fixed = {**definition, "truncation": None, "padding": None, "model": model}
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(fixed, ensure_ascii=False))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(
                f"the tokenizers library refuses the file: {error}",
                where=f"{self.where}/tokenizer.json",
                fix="take the file from the model's source again, or write it with Tokenizer.save",
            ) from None

    @cached_property
    def _words(self) -> dict[int, str]:
        """Special token id -> its unguessable spelling in the twin; lower-case letters survive any normaliser."""
        secret = secrets.token_hex(16)
        return {identifier: f"zq{secret}q{identifier}z" for identifier in self.special_tokens.values()}

    @cached_property
    def _guarded(self) -> tokenizers.Tokenizer:
        """The twin: no text can be a special token in it, neither as added token nor as entry of the vocabulary."""
        spelling = {content: self._words[identifier] for content, identifier in self.special_tokens.items()}
        definition = self.files.definition
        added = [
            {**token, "content": spelling.get(token["content"], token["content"])}
            for token in definition["added_tokens"]
        ]
        model, vocab = definition["model"], definition["model"]["vocab"]
        if isinstance(vocab, dict):
            renamed: Any = {spelling.get(token, token): identifier for token, identifier in vocab.items()}
        else:
            renamed = [[spelling.get(token, token), score] for token, score in vocab]
        unknown = {"unk_token": spelling.get(model["unk_token"], model["unk_token"])} if model.get("unk_token") else {}
        renamed_model = {**model, "vocab": renamed, **unknown}
        return self._backend({**definition, "added_tokens": added, "model": renamed_model, "post_processor": None})

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A backend that parses no special token. It shares the model, so it costs next to nothing.

        Where text could spell a special token that is an entry of the vocabulary, the model is that of the twin.
        """
        model = self.files.definition["model"]
        vocab = model["vocab"] if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
        only_merges = model.get("type") == "BPE" and not model.get("ignore_merges")
        source = self._parsing if only_merges or not self.special_tokens.keys() & vocab else self._guarded
        plain = tokenizers.Tokenizer(source.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(source, part) is not None:
                setattr(plain, part, getattr(source, part))
        added = source.get_added_tokens_decoder()
        plain.add_tokens([added[identifier] for identifier in sorted(added)])
        if plain.get_added_tokens_decoder().keys() != added.keys():  # gaps in the numbering
            plain = tokenizers.Tokenizer.from_str(source.to_str())
        plain.encode_special_tokens = True
        return plain

    def _approximate_bytes(self, token: str) -> bytes:
        if is_single_byte(token):
            return bytes.fromhex(token[3:5])
        return token.removeprefix("##").replace("\u2581", " ").encode()

    # Roles

    def _end_and_start(self, roles: dict[str, str]) -> tuple[int, int | None]:
        """BERT-like vocabularies call the end and the start of a text sep and cls."""
        end = roles.get("eos_token", roles.get("sep_token"))
        start = roles.get("bos_token", roles.get("cls_token"))
        if end is None:
            raise TokenizerError(
                "the tokenizer names no end token, so a model could not learn to stop",
                where=f"{self.where}/tokenizer_config.json: eos_token",
                fix='add "eos_token": "<the token that ends a text>"',
            )
        for key, token in (("eos_token", end), ("bos_token", start)):
            if token is not None and token not in self.vocabulary:
                raise TokenizerError(
                    f"the {key} is not in the vocabulary",
                    where=f"{self.where}/tokenizer_config.json: {key}",
                    value=token,
                    fix="name a token of tokenizer.json, or add it there under added_tokens",
                )
        return self.vocabulary[end], None if start is None else self.vocabulary[start]

    def _padding(self, roles: dict[str, str]) -> int | None:
        declared = roles.get("pad_token")
        identifier = None if declared is None else self.vocabulary.get(declared)
        if identifier is not None and identifier != self.eos_id:
            return identifier
        if declared is None:
            problem = "the tokenizer names no padding token"
        elif identifier is None:
            problem = f"the padding token {declared!r} is not in the vocabulary"
        else:
            problem = f"the padding token was the end token {declared!r}, with which models never learn to stop"
        spare = [token for token in self.special_tokens if any(part in token for part in _SPARE)]
        unknown = [roles["unk_token"]] if "unk_token" in roles else []
        for token in (*_PADS, *spare, *unknown):
            if self.vocabulary.get(token) not in (None, self.eos_id, self.bos_id):
                self.messages.append(f"{problem}; {token!r} is used instead")
                return self.vocabulary[token]
        if declared is not None:
            self.messages.append(f"{problem}; it is used without padding token (Trivium needs none)")
        return None

    def _says_bos(self, config: dict[str, Any]) -> bool:
        """`add_bos_token` decides where it is given, as in transformers 5; otherwise the post-processor."""
        if self.bos_id is None:
            return False
        declared = config.get("add_bos_token")
        if isinstance(declared, bool):
            return declared
        return self._parsing.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]

    def _config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as it is saved: no code, no other padding than ours."""
        kept = {key: value for key, value in config.items() if key not in ("auto_map", "pad_token")}
        if self.pad_id is not None:
            kept["pad_token"] = self._parsing.id_to_token(self.pad_id)
        return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **kept}


def _encoding(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        return backend.encode(text, add_special_tokens=False)
    except (TypeError, UnicodeError):
        place = next((place for place, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
        if place is None:
            raise
        raise TokenizerError(
            "the text contains half a character (a lone surrogate), which UTF-8 cannot hold",
            where=f"character {place}",
            value=f"U+{ord(text[place]):04X} in {text[max(0, place - 20) : place + 20]!a}",
            fix="read the text with errors='replace', or remove the character",
        ) from None


def _moved(offsets: list[tuple[int, int]], pieces: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    """Move [start, end) from one text to another; pieces: (start, length) there and (start, length) here, in order."""
    moved, number = [], 0
    for start, end in offsets:
        while number + 1 < len(pieces) and start >= pieces[number][0] + pieces[number][1]:
            number += 1
        last = number
        while last + 1 < len(pieces) and end > pieces[last][0] + pieces[last][1]:
            last += 1
        there, length, here, shown = pieces[number]
        begin = here + (start - there if length == shown else 0)
        there, length, here, shown = pieces[last]
        moved.append((begin, here + (end - there if length == shown else shown)))
    return moved


def _content(value: Any) -> str | None:
    """A token is written as a string, or as an object with its flags."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _with_declared_specials(files: TokenizerFiles) -> tuple[dict[str, Any], dict[str, str]]:
    """The definition in which every token with a role is special, as transformers makes it on loading; the roles."""
    roles = {key: token for key in ROLES if (token := _content(files.config.get(key))) is not None}
    extra = files.config.get("extra_special_tokens") or files.config.get("additional_special_tokens") or []
    declared = [*roles.values(), *map(_content, extra.values() if isinstance(extra, dict) else extra)]
    known = _vocabulary(files.definition)
    added = {token["content"]: dict(token) for token in files.definition["added_tokens"]}
    for content in declared:
        if content in added:
            added[content]["special"] = True
        elif content in known:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added[content] = {"id": known[content], "content": content, **flags, "special": True}
    in_order = sorted(added.values(), key=lambda token: int(token["id"]))
    return {**files.definition, "added_tokens": in_order}, roles


def _vocabulary(definition: dict[str, Any]) -> dict[str, int]:
    vocab = definition["model"].get("vocab") or {}
    base = vocab if isinstance(vocab, dict) else {entry[0]: place for place, entry in enumerate(vocab)}
    return {**base, **{token["content"]: int(token["id"]) for token in definition["added_tokens"]}}


def _byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level vocabularies write each byte (Radford et al., 2019, GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return {**characters, **{chr(256 + place): byte for place, byte in enumerate(others)}}


LETTERS = _byte_alphabet()
"""The byte behind each character of a byte-level vocabulary."""


def _bytes_of(token: str) -> bytes:
    """A token with a character outside the alphabet is an added one and stands for itself."""
    try:
        return bytes(LETTERS[character] for character in token)
    except KeyError:
        return token.encode()
