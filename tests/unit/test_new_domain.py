"""Closed-book questions, and what a run forgets of general text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trivium as tv
from tests.unit.test_transforms import LORA, Changed, changed, world
from trivium.cli.main import run
from trivium.data.cloze import questions
from trivium.data.documents import Document
from trivium.errors import ConfigError, DataError

__all__ = ["changed", "world"]

pytestmark = pytest.mark.timeout(300)

TEXT = (
    "The spear of the old king was forged by Ziroonderel the witch. Nobody knew it. "
    "It was carried over the hills to the Castle of Erl in 1924 by two men. They were silent and cold all day."
)


def test_questions_are_sentences_up_to_a_name_or_number() -> None:
    found = questions([Document("one", TEXT, "file")], count=10)
    assert {(one.prompt, one.answer) for one in found} <= {
        ("The spear of the old king was forged by", "Ziroonderel"),
        ("It was carried over the hills to the", "Castle of Erl"),
        ("It was carried over the hills to the Castle of Erl in", "1924"),
    }
    assert len(found) == 2 and all(f"{one.prompt} {one.answer}" in TEXT and one.document == "one" for one in found)


def test_questions_are_drawn_by_the_seed_from_all_documents_without_repeats() -> None:
    names = ("Alveric", "Orion", "Threl", "Vand")
    documents = [
        Document(name, " ".join(f"For {name.lower()} on day {day} they went to Lord {name}." for day in range(9)), "f")
        for name in names
    ]
    found = questions([*documents, *documents], count=8, seed=1)
    assert sorted({one.document for one in found}) == sorted(names)
    assert len({one.prompt for one in found}) == len(found) == 8
    assert found == questions(documents, count=8, seed=1) != questions(documents, count=8, seed=2)
    assert questions(documents, count=8, least_words=2) != questions(documents, count=8, least_words=6)


def test_a_corpus_without_names_is_refused() -> None:
    with pytest.raises(DataError, match="no sentence"):
        questions([Document("one", "nothing is here. nothing at all.", "file")], count=3)


def test_the_command_writes_rows_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.md").write_text(TEXT)
    output = tmp_path / "questions.jsonl"
    assert run(["data", "cloze", str(tmp_path / "text.md"), "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 2 and set(rows[0]) == {"prompt", "completion", "document"}
    assert run(["data", "cloze", str(tmp_path / "text.md"), "--output", str(output)]) == 2


def test_a_run_says_what_it_forgot(changed: Changed, world: dict, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = changed(LORA, lr=3e-2)
    recipe["data"] = {**recipe["data"], "probe": world["data"]["validation"]}
    done = tv.train(recipe)
    found = json.loads((done.folder / "probe.json").read_text())
    assert found["forgetting"] == pytest.approx(found["after"] - found["before"]) and found["forgetting"] != 0
    assert "on the probe" in capsys.readouterr().err
    assert "Forgotten" in (done.folder / "report.html").read_text(encoding="utf-8")


def test_a_model_from_a_preset_has_nothing_to_forget(changed: Changed, world: dict) -> None:
    recipe = {**changed(), "model": {"preset": "llama-1m"}}
    recipe["data"] = {**recipe["data"], "probe": world["data"]["validation"]}
    with pytest.raises(ConfigError, match="nothing to forget"):
        tv.train(recipe)


def test_models_that_write_are_measured_without_chance(world: dict, tmp_path: Path) -> None:
    from trivium.drivers.evaluating import evaluate_folder

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "abc", "completion": "def"}) + "\n" for _ in range(2)))
    base = Path(world["model"]["path"])
    said = [evaluate_folder(base, rows, seed=seed).summary["samples"] for seed in (1, 2)]
    assert said[0] == said[1] and said[0][0]["predicted"] == said[0][1]["predicted"]
