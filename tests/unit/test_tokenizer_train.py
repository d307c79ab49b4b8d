"""Vocabularies of each kind: what they are for, what their options change, and that training is repeatable."""

from __future__ import annotations

import pytest

from trivium.cli.main import run
from trivium.errors import TokenizerError
from trivium.tokenizers.kinds import OPTIONS, train_kind
from trivium.tokenizers.special import mask_id, sentinel_ids
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train_pieces import BYTES

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Größe naïve 東京, said Alice.\n" * 10,
    "a fox  and\ta dog\n" * 10,
]
SIZES = {"bpe": 400, "wordpiece": 120, "unigram": 360, "char-bpe": 360, "word": 100}


def made(kind: str, **options) -> Tokenizer:
    size = {"vocab_size": SIZES[kind]} if kind in SIZES else {}
    return train_kind(kind, TEXTS, **{**size, **options})


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_same_texts_give_the_same_vocabulary(kind, tmp_path):
    first = made(kind)
    if kind not in ("unigram", "wordpiece"):  # the library decides between equally good pieces by chance
        assert made(kind).fingerprint() == first.fingerprint()
    first.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode_document(TEXTS[0]) == first.encode_document(TEXTS[0])
    assert first.vocab_size <= SIZES.get(kind, 1000)


@pytest.mark.parametrize("kind", ["bpe", "char-bpe", "byte", "char", "unigram"])
@pytest.mark.parametrize("text", [TEXTS[0], "  two  spaces ", "ÿ\x00😀 <0x41> <|unk|> <|eos|>\r\n", " ", "▁x"])
def test_text_comes_back(kind, text):
    if kind == "char":
        text = "".join(letter for letter in text if letter in TEXTS[0])
    options = {"normalise": "none", "prefix_space": False} if kind in ("unigram", "char-bpe") else {}
    tokenizer = made(kind, **options)
    text = text.replace("▁", "_") if kind in ("unigram", "char-bpe") else text  # is their space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())


def test_wordpiece_is_berts():
    assert len(sentinel_ids(made("wordpiece", special=["sentinels"], vocab_size=300))) == 100
    tokenizer = made("wordpiece")
    assert list(tokenizer.special_tokens)[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.token(mask_id(tokenizer)) == "[MASK]"
    document = tokenizer.encode_document("The fox")
    assert (document[0], document[-1]) == (tokenizer.vocabulary["[CLS]"], tokenizer.vocabulary["[SEP]"])
    assert tokenizer.encode("THE FÖX") == tokenizer.encode("the fox")
    cased = made("wordpiece", lowercase=False)
    assert cased.encode("The") != cased.encode("the")
    assert tokenizer.encode("☃") == [tokenizer.vocabulary["[UNK]"]]
    assert tokenizer.encode("x" * 101) == [tokenizer.vocabulary["[UNK]"]]


@pytest.mark.parametrize("kind", ["unigram", "char-bpe"])
def test_characters_that_are_no_tokens_become_bytes(kind):
    tokenizer = made(kind)
    ids = tokenizer.encode("fox ☃")
    assert [tokenizer.token(token) for token in ids[-3:]] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert not set(BYTES) & set(tokenizer.special_tokens)
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "fox ☃"


@pytest.mark.parametrize(
    ("kind", "options", "one", "other"),
    [
        ("unigram", {"normalise": "nfkc"}, "ﬁ", "fi"),
        ("unigram", {"normalise": "nmt_nfkc"}, "a  \u200bﬁ", "a ﬁ"),
        ("unigram", {"lowercase": True}, "FOX", "fox"),
        ("char-bpe", {"normalise": "nfc"}, "e\u0301", "é"),
        ("char-bpe", {"lowercase": True}, "FOX", "fox"),
        ("char", {"normalise": "nfc"}, "o\u0308", "ö"),
        ("char", {"normalise": "nfkd"}, "ö", "o\u0308"),
        ("byte", {"normalise": "nfd"}, "ö", "o\u0308"),
        ("word", {"lowercase": True}, "FOX", "fox"),
    ],
)
def test_forms_that_are_united(kind, options, one, other):
    tokenizer = made(kind, **options)
    assert tokenizer.encode(one) == tokenizer.encode(other)
    plain = {"normalise": "none"} if "normalise" in OPTIONS[kind] else {}
    tokenizer = made(kind, **plain)
    assert tokenizer.encode(one) != tokenizer.encode(other)


def test_a_space_in_front():
    for kind in ("unigram", "char-bpe"):
        with_space, without = made(kind), made(kind, prefix_space=False)
        assert with_space.encode("fox") == with_space.encode(" fox")
        assert without.encode("fox") != without.encode(" fox")


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "char-bpe", "word"])
def test_what_is_rare_is_not_learnt(kind):
    assert made(kind, min_count=15).vocab_size < made(kind, min_count=2).vocab_size


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char-bpe"])
def test_more_special_tokens(kind):
    tokenizer = made(kind, special=["<|x|>"])
    assert tokenizer.special_tokens["<|x|>"] not in tokenizer.encode("a <|x|> b")
    assert tokenizer.special_tokens["<|x|>"] in tokenizer.encode("a <|x|> b", parse_special=True)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "char-bpe"])
def test_what_cannot_be_made(kind):
    with pytest.raises(TokenizerError, match=r"room|empty|text"):
        train_kind(kind, TEXTS, vocab_size=5)
    with pytest.raises(TokenizerError):
        train_kind(kind, [], vocab_size=600)
    with pytest.raises(TokenizerError, match="surrogate"):
        train_kind(kind, ["a\ud800"], vocab_size=600)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(TEXTS))
    for kind, size in SIZES.items():
        assert run(["tokenizer", "train", "text.txt", "--kind", kind, "--vocab-size", f"{size}", "--output", kind]) == 0
        assert Tokenizer.load(kind).vocab_size <= size
    assert run(["tokenizer", "train", "text.txt", "--kind", "char", "--normalise", "nfkd", "--output", "k"]) == 0
    capsys.readouterr()
    for wrong in (
        ["--kind", "byte", "--min-count", "3"],
        ["--kind", "bpe", "--lowercase"],
        ["--kind", "word", "--split"],
    ):
        assert run(["tokenizer", "train", "text.txt", *wrong, "--output", "w"]) == 2
    assert not (tmp_path / "w").exists()


def test_a_token_that_only_looks_like_a_byte_is_its_spelling():
    tokenizer = made("char-bpe", special=["<0xZZ>"])
    assert tokenizer.token_bytes[tokenizer.vocabulary["<0xZZ>"]] == b"<0xZZ>"
    assert tokenizer.token_bytes[tokenizer.vocabulary["<0x0A>"]] == b"\n"
