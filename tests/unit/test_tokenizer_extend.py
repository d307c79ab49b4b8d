"""A larger vocabulary: old ids stay, and a model says the same about old tokens."""

from __future__ import annotations

import pytest
import torch

from trivium.artifacts.manifest import verify
from trivium.artifacts.record import read_record
from trivium.artifacts.writer import write_artifact
from trivium.cli.main import run
from trivium.drivers.tokenizer_extend import extend_folder
from trivium.errors import TokenizerError
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, save_model
from trivium.tokenizers.extend import extend_tokenizer
from trivium.tokenizers.kinds import train_kind
from trivium.tokenizers.tokenizer import Tokenizer

OLD = ["the cat sat on the mat and the dog sat on the log, said the man. " * 5]
NEW = ["a blockchain of blockchains; the blockchain is a chain of blocks. " * 30]
KINDS = ("bpe", "wordpiece", "unigram", "char-bpe", "word", "char", "byte")


def small(kind: str) -> Tokenizer:
    sizes = {"bpe": 320, "wordpiece": 60, "unigram": 310, "char-bpe": 310}
    return train_kind(kind, [*OLD, "blockis; "], **({"vocab_size": sizes[kind]} if kind in sizes else {}))


@pytest.mark.parametrize("kind", KINDS)
def test_named_tokens_get_ids_behind_the_old_ones(kind, tmp_path):
    old = small(kind)
    found = extend_tokenizer(old, tokens=["blockchain", "zebra"], special=["<|x|>"])
    new = found.tokenizer
    assert {token: new.vocabulary[token] for token in old.vocabulary} == old.vocabulary
    number = new.vocabulary["blockchain"]
    assert number == old.vocab_size
    assert number in new.encode("the blockchain sat")
    assert found.made_of[number] == old.encode("blockchain")
    assert new.special_tokens["<|x|>"] == new.vocab_size - 1
    assert new.special_tokens["<|x|>"] not in new.encode("a <|x|> b")
    assert new.encode("the cat sat on the dog") == old.encode("the cat sat on the dog")
    new.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == new.fingerprint()
    assert again.encode("a blockchain") == new.encode("a blockchain")


def test_whole_words():
    for whole in (False, True):
        new = extend_tokenizer(small("bpe"), tokens=["mouse"], whole_words=whole).tokenizer
        number = new.vocabulary["mouse"]
        assert number in new.encode("a mouse!")
        assert (number in new.encode("dormouse")) is not whole


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char-bpe"])
def test_tokens_learnt_from_texts(kind):
    old = small(kind)
    new = extend_tokenizer(old, texts=NEW, count=20, min_count=5).tokenizer
    assert {token: new.vocabulary[token] for token in old.vocabulary} == old.vocabulary
    assert len(new.encode(NEW[0])) < 0.6 * len(old.encode(NEW[0]))
    assert new.encode("log, mat.") == old.encode("log, mat.")
    assert new.decode(new.encode("the blockchain sat")) == "the blockchain sat"
    few = extend_tokenizer(old, texts=NEW, count=20, min_count=60).tokenizer
    assert few.vocab_size < new.vocab_size


def test_bpe_goes_on_as_if_it_had_never_stopped():
    """In two steps or in one, on the same text."""
    whole = train_kind("bpe", NEW, vocab_size=286)
    short = train_kind("bpe", NEW, vocab_size=272)
    longer = extend_tokenizer(short, texts=NEW, count=whole.vocab_size - short.vocab_size).tokenizer
    assert len(longer.encode(NEW[0])) == len(whole.encode(NEW[0]))
    assert longer.fast is not None
    assert longer.fast.encode(NEW[0]).tolist() == longer.encode(NEW[0])


@pytest.mark.parametrize("tokens", [["the"], ["a b", "a b"], [""]])
def test_tokens_must_be_new(tokens):
    with pytest.raises(TokenizerError, match="new token"):
        extend_tokenizer(small("word"), tokens=tokens)
    with pytest.raises(TokenizerError, match="no token to add"):
        extend_tokenizer(small("bpe"))


def model_folder(place, family: str, rows: int = 0, tied: bool = True):
    tokenizer = small("bpe")
    size = max(rows, tokenizer.vocab_size)
    changes = {"vocab_size": size, "num_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    if family == "llama-1m":
        changes |= {"num_kv_heads": 2, "tie_embeddings": tied}
    config = preset(family, changes)
    model = build_model(config, seed=3)
    with write_artifact(place, kind="model") as folder:
        save_model(folder, config, model.state_dict())
        tokenizer.save(folder)
    return tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("start", ["mean", "random", "zeros"])
def test_a_model_says_the_same_about_old_tokens(tmp_path, tied, start):
    old = model_folder(tmp_path / "m", "llama-1m", tied=tied)
    done = extend_folder(tmp_path / "m", tmp_path / "x", tokens=["blockchain"], special=["<|x|>"], embeddings=start)
    assert done["added"] == ["blockchain", "<|x|>"]
    verify(tmp_path / "x")
    assert [parent.role for parent in read_record(tmp_path / "x").parents] == ["model"]
    before, after = load_model(tmp_path / "m"), load_model(tmp_path / "x")
    assert after.config.vocab_size == old.vocab_size + 2
    ids = torch.tensor([old.encode_document("the cat sat on the mat")])
    with torch.no_grad():
        logits = after(ids)
        torch.testing.assert_close(before(ids), logits[..., : old.vocab_size], rtol=1e-6, atol=1e-6)
    pieces = old.encode("blockchain")
    for weight, grown in ((before.embed.weight, after.embed.weight), (before.head.weight, after.head.weight)):
        assert torch.equal(weight, grown[: old.vocab_size])
        row = grown[old.vocab_size]
        if start == "mean":
            torch.testing.assert_close(row, weight[pieces].mean(0))
        elif start == "zeros":
            assert not row.any()
        else:
            assert 0.3 * weight.std() < row.std() < 3 * weight.std()


@pytest.mark.parametrize("family", ["llama-1m", "bert-1m", "t5-1m"])
def test_transformers_loads_the_larger_model(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    model_folder(tmp_path / "m", family)
    extend_folder(tmp_path / "m", tmp_path / "x", tokens=["blockchain"])
    names = {"llama-1m": "AutoModelForCausalLM", "bert-1m": "AutoModelForMaskedLM", "t5-1m": "AutoModelForSeq2SeqLM"}
    theirs = getattr(transformers, names[family]).from_pretrained(tmp_path / "x")
    ours, tokenizer = load_model(tmp_path / "x"), Tokenizer.load(tmp_path / "x")
    assert theirs.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size == ours.config.vocab_size
    assert torch.equal(theirs.get_input_embeddings().weight, ours.embed.weight)
    if family == "llama-1m":
        ids = torch.tensor([tokenizer.encode_document("the blockchain sat")])
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-4, atol=1e-5)


def test_spare_rows_are_used_first(tmp_path):
    old = model_folder(tmp_path / "m", "llama-1m", rows=400)
    extend_folder(tmp_path / "m", tmp_path / "x", tokens=["blockchain"])
    after = load_model(tmp_path / "x")
    assert after.config.vocab_size == 400
    mean = after.embed.weight[old.encode("blockchain")].mean(0)
    torch.testing.assert_close(after.embed.weight[old.vocab_size], mean)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with write_artifact(tmp_path / "t", kind="tokenizer") as folder:
        small("bpe").save(folder)
    (tmp_path / "new.txt").write_text(NEW[0])
    command = [
        "tokenizer",
        "extend",
        "t",
        "--output",
        "u",
        "--from-texts",
        "new.txt",
        "--count",
        "5",
        "--tokens",
        "xyz",
    ]
    assert run(command) == 0
    assert "6 new tokens" in capsys.readouterr().out
    assert {parent.role for parent in read_record(tmp_path / "u").parents} == {"tokenizer", "documents"}
    assert run(["tokenizer", "extend", "t", "--output", "v"]) == 2
