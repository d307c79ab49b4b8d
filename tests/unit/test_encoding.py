"""Filling gaps and comparing texts with a loaded encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.artifacts.writer import write_artifact
from trivium.errors import ModelError, TriviumError
from trivium.inference.model import LanguageModel, load
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.tokenizers.train import train_bpe

TEXTS = ["a dog runs on the grass", "two men talk", "a dog"]


def folder_of(target: Path, name: str, **changes: Any) -> Path:
    tokenizer = train_bpe([" ".join(TEXTS)] * 3, vocab_size=300, special=["[MASK]"])
    shape: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    shape |= {"intermediate_size": 48, "max_positions": 64, "init_std": 0.3}
    shape |= {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, **changes}
    config = preset(name, shape)
    with write_artifact(target, kind="model") as path:
        save_model(path, config, build_model(config, seed=3).state_dict())
        tokenizer.save(path)
    return target


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(folder_of(tmp_path_factory.mktemp("models") / "bert", "bert-1m"))


def test_gaps_are_filled_with_the_likeliest_tokens(encoder: LanguageModel) -> None:
    first, second = encoder.fill("a [MASK] runs on [MASK] grass", top=4)
    assert len(first) == len(second) == 4
    chances = [each.probability for each in first]
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1
    assert first[0].text == encoder.tokenizer.decode([first[0].id])
    # Both sides of a gap count.
    assert encoder.fill("a [MASK] runs", top=1) != encoder.fill("a [MASK] talks in the street", top=1)


def test_what_cannot_be_filled(encoder: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(TriviumError, match="no gap"):
        encoder.fill("a dog")
    decoder = load(folder_of(tmp_path / "gpt2", "gpt2-1m"))
    with pytest.raises(ModelError, match="mlm"):
        decoder.fill("a [MASK]")


def test_an_encoder_does_not_write(encoder: LanguageModel) -> None:
    for call in (lambda: encoder.generate("a dog"), lambda: encoder.stream("a dog"), lambda: encoder.score("a dog")):
        with pytest.raises(ModelError, match="encoder"):
            call()


@pytest.mark.parametrize("name", ["bert-1m", "gpt2-1m", "t5-1m"])
def test_a_text_is_a_vector(tmp_path: Path, name: str) -> None:
    more = {"start_id": 0, "bos_id": None} if name == "t5-1m" else {}
    model = load(folder_of(tmp_path / "model", name, **more))
    for pooling in ("first", "last", "mean", "max"):
        vectors = model.embed(TEXTS, pooling=pooling)
        assert vectors.shape == (3, 32)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
        for text, vector in zip(TEXTS, vectors, strict=True):
            torch.testing.assert_close(model.embed(text, pooling=pooling), vector, rtol=0, atol=1e-5)
    assert model.embed(TEXTS[0], normalize=False).norm() != pytest.approx(1.0)
    with pytest.raises(TriviumError, match="pooling"):
        model.embed("a", pooling="median")
