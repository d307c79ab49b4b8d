"""Vocabularies of characters and of bytes, and the command that makes them."""

from __future__ import annotations

import pytest

from trivium.cli.main import run
from trivium.errors import TokenizerError
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bytes, train_characters

TUNE = 'X:1\nK:D\n|:"D"d2f edc|é:|\n'


def test_one_token_for_each_character() -> None:
    tokenizer = train_characters([TUNE, "zz"])
    ids = tokenizer.encode(TUNE)
    assert len(ids) == len(TUNE)
    assert tokenizer.decode(ids) == TUNE
    assert tokenizer.vocab_size == len(set(TUNE + "z")) + 4
    assert tokenizer.byte_lengths()[ids].sum() == len(TUNE.encode())
    assert tokenizer.encode_document("d")[0] == tokenizer.bos_id
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids) + stream.flush() == TUNE


def test_a_new_character_is_unknown_and_special_tokens_are_text() -> None:
    tokenizer = train_characters(["abc|<>eos"])
    assert tokenizer.encode("aZ") == [tokenizer.encode("a")[0], tokenizer.special_tokens["<|unk|>"]]
    assert tokenizer.eos_id not in tokenizer.encode("<|eos|>")


def test_no_text_gives_no_characters() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        train_characters([])


def test_bytes_hold_any_text() -> None:
    tokenizer = train_bytes()
    text = "Ünï <|eos|> \n 音"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text.encode())
    assert tokenizer.encode_chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).trained


def test_the_command_makes_each_kind(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TUNE)
    for kind, size in (("char", len(set(TUNE)) + 4), ("byte", 264)):
        assert run(["tokenizer", "train", "text.txt", "--kind", kind, "--output", kind]) == 0
        assert Tokenizer.load(kind).vocab_size == size


def test_an_option_without_effect_is_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TUNE)
    for option in (["--vocab-size", "500"], ["--split", "gpt2"]):
        assert run(["tokenizer", "train", "text.txt", "--kind", "char", "--output", "t", *option]) == 2
        assert "no effect" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
