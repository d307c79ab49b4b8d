"""`trivium data inspect --explain`: one sentence, one real update."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trivium.cli.main import app
from trivium.config import resolve
from trivium.drivers.explain import Explanation, explain, explanation_as_html
from trivium.errors import ConfigError
from trivium.recipe import Recipe
from trivium.tokenizers.train import train_bpe

SENTENCE = "I like ice cream."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    train_bpe([SENTENCE + " You like bread."] * 20, vocab_size=300).save(folder / "tokenizer")
    (folder / "data.jsonl").write_text(json.dumps({"text": "not this one"}) + "\n")
    return folder


def recipe(folder: Path, **method: object) -> Recipe:
    tree = {
        "name": "explained",
        "method": {"name": "clm", **method},
        "model": {"preset": "llama-1m", "config": {"vocab_size": 300}},
        "tokenizer": str(folder / "tokenizer"),
        "data": {"train": str(folder / "data.jsonl"), "sequence_length": 32},
        "train": {"steps": 10, "threads": 1, "lr": 1e-2},
    }
    return resolve(tree).recipe


@pytest.fixture(scope="module")
def found(world: Path) -> Explanation:
    return explain(recipe(world), SENTENCE)


def test_every_number_is_the_one_of_training(found: Explanation) -> None:
    (sequence,) = found.sequences
    said = "".join(token.target or "" for token in sequence.tokens)
    assert said.startswith(SENTENCE) and sequence.source is None
    losses = [token.loss for token in sequence.tokens if token.loss is not None]
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.terms == {"nll": pytest.approx(found.loss)}
    for token in sequence.tokens:
        assert token.probability is not None and token.loss == pytest.approx(-math.log(token.probability))
        chances = [chance for _, chance in token.guesses]
        assert chances == sorted(chances, reverse=True) and max(chances) >= token.probability - 1e-6


def test_the_update_teaches_the_sentence(found: Explanation) -> None:
    assert found.loss_after < found.loss and found.gradient_norm > 0
    tokens = found.sequences[0].tokens
    after = -sum(math.log(token.after) for token in tokens if token.after) / len(tokens)
    assert found.loss_after == pytest.approx(after, rel=1e-5)


def test_a_row_of_data_stands_for_itself(world: Path) -> None:
    row = json.dumps({"prompt": "I like", "completion": " ice cream."})
    found = explain(recipe(world, name="sft"), row)
    targets = [token.target for token in found.sequences[0].tokens]
    assert None in targets and "".join(target or "" for target in targets).startswith(" ice cream.")


def test_what_predicts_no_tokens_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="can be explained token by token"):
        explain(recipe(world, name="freelb"), SENTENCE)


def test_the_page_holds_no_markup_of_the_text(world: Path) -> None:
    page = explanation_as_html(explain(recipe(world), "I like <script>ice</script>."))
    assert "<script>" not in page and "&lt;" in page and "<meter" in page


def test_on_the_command_line(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(world).model_dump(exclude_unset=True, mode="json")))
    command = ["data", "inspect", str(path), "--explain", SENTENCE]
    shown = CliRunner().invoke(app, [*command, "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["method"] == "clm"
    assert "must say" in CliRunner().invoke(app, command).output
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, [*command, "--html", str(page)]).exit_code == 0
    assert "ice" in page.read_text()
