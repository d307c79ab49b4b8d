"""Embeddings that start from word vectors: which rows, which values, what is refused, and a run that does it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import trivium as tv
from trivium.artifacts.record import read_record
from trivium.artifacts.writer import write_artifact
from trivium.errors import ConfigError, ModelError, TriviumError
from trivium.models.word_vectors import fitted, matches, set_embeddings
from trivium.tokenizers.train import train_bpe, train_word
from trivium.tokenizers.vectors import WordVectors, token_words
from trivium.tokenizers.vectors_train import train_vectors

TEXTS = [f"The {a} sees the {b}. The {b} likes a {c}." for a, b, c in itertools.permutations(
    ["cat", "dog", "king", "queen", "list", "value"], 3)]  # fmt: skip


def test_words_that_tokens_spell() -> None:
    tokenizer = train_bpe(TEXTS, vocab_size=300)
    words = token_words(tokenizer)
    assert len(words) == tokenizer.vocab_size
    assert [words[token] for token in tokenizer.encode(" king")] == ["king"]
    assert words[tokenizer.eos_id] is None
    assert words[tokenizer.encode(" ")[0]] is None
    assert "\ufffd" not in "".join(word or "" for word in words)


def test_pieces_inside_a_word_are_no_words() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    from trivium.tokenizers.files import TokenizerFiles
    from trivium.tokenizers.tokenizer import Tokenizer

    vocabulary = {"[UNK]": 0, "[SEP]": 1, "king": 2, "##king": 3, "\u2581king": 4}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    import json

    files = TokenizerFiles(json.loads(backend.to_str()), {"sep_token": "[SEP]", "unk_token": "[UNK]"})
    assert token_words(Tokenizer(files)) == [None, None, "king", None, "king"]


def test_matches_prefer_the_same_case() -> None:
    assert matches(["The", "the", "Cat", None, "x"], {"the": 0, "The": 1, "cat": 2}) == [(0, 1), (1, 0), (2, 2)]


@pytest.mark.parametrize(("size", "width"), [(6, 6), (6, 20), (20, 6)])
def test_exactly_the_rows_of_words_change(size: int, width: int) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((40, size)).astype(np.float32)
    index = {f"w{number}": number for number in range(40)}
    tokens = [f"w{number}" if number % 3 else None for number in range(60)]
    weight = torch.randn(64, width) * 0.02
    before = weight.clone()
    note = set_embeddings(weight, tokens, index, matrix, scale=0.02, seed=1)
    chosen = [number for number in range(40) if number % 3]
    same = (weight == before).all(1)
    assert same.logical_not().nonzero().flatten().tolist() == chosen
    assert note.startswith(f"{len(chosen)} of 60 embeddings")
    assert float(weight[chosen].square().mean().sqrt()) == pytest.approx(0.02, rel=1e-5)
    assert weight[chosen].mean(0).abs().max() < 1e-6
    if size <= width:  # all distances are those of the vectors, up to one factor
        ratio = torch.pdist(weight[chosen]) / torch.pdist(torch.from_numpy(matrix[chosen]))
        assert float(ratio.std() / ratio.mean()) < 1e-4


def test_projection_depends_on_the_seed_only() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 3))
    assert (fitted(vectors, 8, seed=1) == fitted(vectors, 8, seed=1)).all()
    assert not (fitted(vectors, 8, seed=1) == fitted(vectors, 8, seed=2)).all()
    assert fitted(vectors, 3, seed=1) is vectors


def test_what_cannot_start_embeddings_is_refused() -> None:
    weight = torch.zeros(4, 8)
    matrix = np.eye(2, 6, dtype=np.float32)
    with pytest.raises(ModelError, match="6 numbers, the embeddings 8"):
        set_embeddings(weight, ["a", "b"], {"a": 0, "b": 1}, matrix, scale=1, seed=0, width="exact")
    with pytest.raises(ModelError, match="no two tokens"):
        set_embeddings(weight, ["a", "c"], {"a": 0, "b": 1}, matrix, scale=1, seed=0)
    with pytest.raises(ModelError, match="the same"):
        set_embeddings(weight, ["a", "b"], {"a": 0, "b": 1}, np.ones((2, 6), np.float32), scale=1, seed=0)
    assert not weight.any()


def recipe(folder: Path, **model: object) -> dict[str, object]:
    return {
        "name": f"run-{len(list(folder.iterdir()))}",
        "runs": str(folder / "runs"),
        "method": "clm",
        "model": {
            "preset": "llama-1m",
            "config": {"vocab_size": 400, "hidden_size": 32, "num_layers": 1},
            "word_vectors": str(folder / "vectors"),
            **model,
        },
        "tokenizer": str(folder / "tokenizer"),
        "data": {"train": str(folder / "corpus"), "sequence_length": 32},
        "train": {"steps": 2, "batch_size": 2, "compile": "off"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("\n".join(TEXTS))
    (tmp_path / "tokenizer").mkdir()
    train_word(TEXTS).save(tmp_path / "tokenizer")
    with write_artifact(tmp_path / "vectors", kind="word vectors") as place:
        train_vectors(TEXTS, size=12, epochs=1).save(place)
    return tmp_path


def test_a_run_starts_from_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tv.train(recipe(folder))
    words = len(WordVectors.load(folder / "vectors"))
    assert f"{words} of {words + 4} embeddings start from word vectors" in capsys.readouterr().err
    assert run.final is not None
    record = read_record(run.final)
    assert record is not None
    assert "word vectors" in {parent.role for parent in record.parents}
    assert tv.load(run.final).generate("The cat", max_new_tokens=2, temperature=0) is not None


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"word_vectors": "missing.vec"}, "no such file"),
        ({"word_vectors_width": "exact"}, "12 numbers, the embeddings 32"),
    ],
)
def test_a_run_refuses(folder: Path, model: dict[str, object], problem: str) -> None:
    with pytest.raises(TriviumError, match=problem):
        tv.train(recipe(folder, **model))


def test_a_model_folder_has_its_own_embeddings(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has its embeddings already"):
        tv.train(recipe(folder, preset=None, path="model", config={}))
