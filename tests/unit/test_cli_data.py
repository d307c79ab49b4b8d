"""`trivium data` and `trivium tokenizer` on a small text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivium.cli.main import run

RECIPE = """\
name: run
method: clm
model: {preset: llama-1m}
tokenizer: tokenizer
data:
  train: text.txt
  sequence_length: 16
train:
  steps: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cli")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return place


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    if not (folder / "tokenizer").exists():
        assert run(["tokenizer", "train", "text.txt", "--vocab-size", "300", "--output", "tokenizer"]) == 0
        capsys.readouterr()
    return folder / "tokenizer"


def test_a_tokenizer_is_an_artifact_with_a_past(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "tokenizer"]) == 0
    capsys.readouterr()
    assert run(["lineage", "tokenizer"]) == 0
    assert "text.txt" in capsys.readouterr().out


def test_a_tokenizer_replaces_nothing_else(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir(exist_ok=True)
    Path("full/mine.txt").write_text("mine")
    assert run(["tokenizer", "train", "text.txt", "--output", "full"]) == 2
    assert Path("full/mine.txt").read_text() == "mine"
    assert "fix:" in capsys.readouterr().err


def test_encode(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tokenizer", "encode", "tokenizer", "quick fox", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "".join(result["tokens"]) == "quick fox" and len(result["ids"]) == len(result["tokens"])
    assert run(["tokenizer", "encode", "tokenizer", "quick fox"]) == 0
    assert "for 9 bytes" in capsys.readouterr().out
    assert run(["tokenizer", "encode", "full", "x"]) == 2


def test_prepare_counts_what_is_there(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "prepare", "recipe.yaml", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary) == {"train"} and summary["train"]["documents"] == 1
    assert run(["data", "prepare", "recipe.yaml", "data.validation=text.txt", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"train", "validation"}


def test_inspect_shows_what_is_trained(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "inspect", "recipe.yaml", "--json", "--count", "2"]) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert len(samples) == 2 and samples[0]["trained"] == 16
    assert samples[0]["tokens"][1]["token"] == samples[0]["tokens"][0]["target"]
    assert run(["data", "inspect", "recipe.yaml"]) == 0
    assert "target" in capsys.readouterr().out
    assert run(["data", "inspect", "recipe.yaml", "--html", "rows.html"]) == 0
    assert "<html" in Path("rows.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data", "inspect", "recipe.yaml", "--first", "100000"], "no such sample"),
        (["data", "inspect", "recipe.yaml", "data.train=txt.txt"], "no such data"),
        (["data", "prepare", "recipe.yaml", "tokenizer=nowhere"], "no such folder"),
        (["tokenizer", "train", "nowhere.txt", "--output", "new"], "nowhere.txt"),
        (["tokenizer", "train", "text.txt", "--output", "new", "--vocab-size", "10"], "vocab"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], expected: str, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) <= 5
    assert not Path("new").exists()
