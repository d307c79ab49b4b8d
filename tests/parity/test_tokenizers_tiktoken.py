"""Imported tiktoken files, and the faster encoder, give the ids of the library they stand for."""

from __future__ import annotations

import base64
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.tokenizers.fast import GPT2, GPT4, O200K, QWEN2
from trivium.tokenizers.ranks import ENCODINGS, Encoding, import_tiktoken
from trivium.tokenizers.tokenizer import LETTERS, Tokenizer
from trivium.tokenizers.train import train_bpe

tiktoken = pytest.importorskip("tiktoken")
transformers = pytest.importorskip("transformers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Don't you'LL think so?\r\n" * 20,
    "def add(a, b):\n    return a + b\n\n\n" * 20,
    "Größe naïve 東京 привет 😀👍🏽 e\u0301 \u200d 1234567 3.14\t\r\n   x" * 20,
    "aaaa aaaaaaa abab ababab bababa " * 30,
]
ODD = [
    *"abAB  \n\t\r.,'\"<>/019-_",
    *[
        "'s",
        "'S",
        "'\u017f",
        "\u212a",
        "'ll",
        "é",
        "e\u0301",
        "ﬁ",
        "①",
        "²",
        "東京",
        "привет",
        "😀",
        "👩‍👩‍👧",
        "\u200b",
    ],
    *["\ufeff", "\u3000", "\u0085", "\x1c", "\x00", "\u2028", "\U00020000", "\U0010ffff", "\U0001d400", "٣", "aaaa"],
    *["    ", "\n\n", " \n ", "<|eos|>", "<|endoftext|>", "CamelCase", "Ⅷ", "\u0301", "ǅ"],
]


def odd_texts(number: int) -> list[str]:
    draw = random.Random(3)
    long = ["a" * 5000, " " * 5000, " " * 5000 + "x", "\n" * 5000, "^" * 5000, " \n" * 3000, "1" * 5000, "'" * 5000]
    texts = ["".join(draw.choices(ODD, k=draw.randrange(1, 40))) for _ in range(number)]
    return [*long, *CORPUS, *texts, *(chr(code) + "a " + chr(code) for code in range(0, 0x3000, 7)), ""]


def write_ranks(path: Path) -> dict[bytes, int]:
    tokenizer = train_bpe(CORPUS, vocab_size=600)
    names = [token for token in tokenizer.vocabulary if token not in tokenizer.special_tokens]
    ranks = {bytes(LETTERS[letter] for letter in name): rank for rank, name in enumerate(names)}
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return ranks


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base", "qwen2"])
def test_imported_ranks_give_the_ids_of_tiktoken(tmp_path, monkeypatch, name):
    ranks = write_ranks(tmp_path / "x.tiktoken")
    special = {"<|endoftext|>": len(ranks) + 5}
    monkeypatch.setattr("trivium.tokenizers.ranks.ENCODINGS", {name: Encoding(ENCODINGS[name].pattern, special)})
    ours = import_tiktoken(tmp_path / "x.tiktoken", encoding=name)
    assert ours.eos_id == len(ranks) + 5
    theirs = tiktoken.Encoding("x", pat_str=ENCODINGS[name].pattern, mergeable_ranks=ranks, special_tokens={})
    for text in odd_texts(1000):
        assert ours.encode(text) == theirs.encode_ordinary(text), text
    ours.save(tmp_path / "folder")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    for text in CORPUS:
        assert again(text, add_special_tokens=False).input_ids == ours.encode(text)


@pytest.mark.parametrize("split", ["gpt4", "gpt2"])
def test_the_faster_encoder_gives_the_same_ids(split):
    tokenizer = train_bpe(CORPUS, vocab_size=900, split=split, min_frequency=1)
    assert tokenizer.fast is not None
    texts = odd_texts(3000)
    quick = [tokenizer.fast.encode(text) for text in texts]
    for text, ids in zip(texts, quick, strict=True):
        assert ids is None or ids.tolist() == tokenizer.encode(text), text
    assert sum(ids is None for ids in quick) < len(quick) / 2
    assert [ids.tolist() for ids in tokenizer.document_arrays(texts)] == tokenizer.encode_documents(texts)


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60), corpus=st.lists(st.text(alphabet="ab c", min_size=30, max_size=80), min_size=1))
def test_any_text_and_any_merges(text, corpus):
    """Few letters make merges that overlap in every way."""
    tokenizer = train_bpe([*corpus, "ab ab ab"], vocab_size=330, min_frequency=1)
    if tokenizer.fast is None:
        return
    for each in (text, *corpus, "".join(reversed(corpus))):
        ids = tokenizer.fast.encode(each)
        assert ids is None or ids.tolist() == tokenizer.encode(each)


@pytest.mark.parametrize("pattern", [GPT2, GPT4, QWEN2, O200K])
def test_patterns_of_published_folders(tmp_path, pattern):
    ours = train_bpe(CORPUS, vocab_size=700)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    definition = {**ours.files.definition, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]}}
    other = Tokenizer(type(ours.files)(definition, ours.files.config))
    assert other.fast is not None
    for text in odd_texts(500):
        ids = other.fast.encode(text)
        assert ids is None or ids.tolist() == other.encode(text), text


def test_merges_in_another_order_are_left_to_the_library():
    """Here tiktoken would join `ab` and `c`, which no merge allows."""
    ours = train_bpe(["ab ab bc bc abc abc "] * 20, vocab_size=268)
    model = ours.files.definition["model"]
    vocab = {token: place for token, place in model["vocab"].items() if len(token) == 1 or token in ours.special_tokens}
    for token in ("ab", "bc", "abc"):
        vocab[token] = len(vocab)
    model = {**model, "vocab": vocab, "merges": [["a", "b"], ["b", "c"], ["a", "bc"]]}
    other = Tokenizer(type(ours.files)({**ours.files.definition, "model": model}, ours.files.config))
    assert [other.token(token) for token in other.encode("abc")] == ["ab", "c"]
    assert other.fast is None


@pytest.mark.parametrize("change", ["normalizer", "pre_tokenizer", "added"])
def test_what_is_not_known_is_left_to_the_library(change):
    ours = train_bpe(CORPUS, vocab_size=400)
    definition = dict(ours.files.definition)
    if change == "normalizer":
        definition["normalizer"] = {"type": "Lowercase"}
    elif change == "pre_tokenizer":
        definition["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    else:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        added = [*definition["added_tokens"], {"id": ours.vocab_size, "content": "brown", **flags}]
        definition["added_tokens"] = added
    other = Tokenizer(type(ours.files)(definition, ours.files.config))
    if change != "added":
        assert other.fast is None
    else:
        assert other.fast is not None
        assert other.fast.encode("the brown fox") is None
    texts = [*CORPUS, "A Brown fox, brown FOX"]
    assert [ids.tolist() for ids in other.document_arrays(texts)] == other.encode_documents(texts)


def test_a_run_of_spaces_that_is_too_long_is_left_to_the_library():
    tokenizer = train_bpe(CORPUS, vocab_size=400)
    assert tokenizer.fast is not None
    text = "a" + " " * 1_500_000 + "b"
    assert tokenizer.fast.encode(text) is None
    (ids,) = tokenizer.document_arrays([text])
    assert tokenizer.decode(ids[1:-1].tolist()) == text


def test_without_tiktoken_it_is_the_library_that_encodes(monkeypatch):
    tokenizer, other = (train_bpe(CORPUS, vocab_size=400) for _ in range(2))
    assert tokenizer.fast is not None
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert other.fast is None
    ours, theirs = tokenizer.document_arrays(CORPUS), other.document_arrays(CORPUS)
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]
