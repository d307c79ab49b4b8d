"""Comparisons: settings, prompts that are scored, statistics, and a whole small one that is continued."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from tests.crash.kills import make_world
from trivium.comparison import BUILT_IN, Comparison, resolve_comparison
from trivium.data.sealing import seal
from trivium.drivers.compare import Work
from trivium.drivers.compare_summary import recommend
from trivium.drivers.forgetting import bits_per_byte, with_language_head
from trivium.errors import ConfigError
from trivium.evaluation.prompted import Prompting, draw_examples, likelihoods, that_fits, written
from trivium.evaluation.significance import holm, paired_p, share_right
from trivium.models.folder import load_model
from trivium.recipe import Source

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small decoder and labelled rows whose label shows in their words."""
    folder = tmp_path_factory.mktemp("compare")
    recipe = make_world(folder, "clm")
    recipe["train"].update(steps=20, checkpoint_every=20, validate_every=20, sample_every=20, threads=1)
    base = tv.train({**recipe, "name": "base"}).final
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=4)) for _ in range(40)]
    rows = []
    for number in range(240):
        label = ("good", "bad")[number % 2]
        own = words[:20] if label == "good" else words[20:]
        rows.append({"text": " ".join(chance.choices(own, k=4) + chance.choices(words, k=2)), "label": label})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {
        "name": "small",
        "runs": str(folder / "runs"),
        "base": str(base),
        "data": {"train": str(folder / "rows.jsonl"), "sequence_length": 64},
        "budget": {"epochs": 1, "batch_size": 16},
        "contenders": {"likelihood": {}, "few_shot": {}, "lora": {"lrs": [3e-3]}},
        "seeds": [0],
        "probe": str(folder / "validation.jsonl"),
        "probe_rows": 10,
    }


def test_a_whole_comparison_is_measured_and_continued(world: dict[str, Any]) -> None:
    first = tv.compare(world)
    rows = {row["contender"]: row for row in first.summary["bases"][0]["rows"]}
    assert set(rows) == {"likelihood", "few_shot", "lora"}
    assert rows["lora"]["trained_parameters"] > 0 and rows["likelihood"]["trained_parameters"] == 0
    assert rows["lora"]["peak_memory_bytes"] > 1 << 26 and rows["lora"]["seconds"] > 0
    assert rows["likelihood"]["forgetting"] == 0.0 and rows["lora"]["forgetting"] != 0.0
    assert all(row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] for row in rows.values())
    assert first.summary["bases"][0]["recommendation"]["contender"] in rows
    assert sum(first.summary["parts"].values()) == 240
    parts = [{text for text, _ in _rows(first.folder / "data" / f"{name}.jsonl")} for name in first.summary["parts"]]
    assert all(not one & other for one, other in itertools.combinations(parts, 2))
    page = (first.folder / "report.html").read_text(encoding="utf-8")
    assert "lora" in page and "Recommended" in page and "http" not in page.replace("http-equiv", "")
    kept = {path: path.stat().st_mtime_ns for path in (first.folder / "results").iterdir()}
    began = time.perf_counter()
    again = tv.compare(world, ["jobs=2"])
    assert again.summary == first.summary and time.perf_counter() - began < 60
    assert kept == {path: path.stat().st_mtime_ns for path in (first.folder / "results").iterdir()}
    with pytest.raises(ConfigError, match="another comparison"):
        tv.compare(world, ["seeds=[1]"])


def _rows(path: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contenders": ["loar"]}, "did you mean lora"),
        ({"contenders": {"mine": {"like": "ful"}}}, "did you mean full"),
        ({"contenders": {"mine": {"prompt": "likelihood", "lrs": [1e-3]}}}, "only prompted has no lrs"),
        ({"prompt": {"template": "What?"}}, "does not hold the text"),
        ({"budget": {"epochs": 1, "steps": 3}}, "exactly one of"),
        ({"seeds": []}, "seeds"),
        ({"budjet": {"epochs": 1}}, "did you mean"),
        (
            {"contenders": {"lora": {"transforms": [{"name": "lora", "target": ["nothing"]}]}}},
            "contender lora cannot run",
        ),
        ({"contenders": {"lora": {"transforms": [{"name": "lora", "rank": 0}]}}}, "contender lora cannot run"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(world: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tv.compare({**world, "name": "wrong", **change})
    assert str(caught.value).count("\n") < 5


def test_built_in_contenders_are_all_taken_by_default(world: dict[str, Any]) -> None:
    everything = {name: value for name, value in world.items() if name != "contenders"}
    settings = resolve_comparison({**everything, "name": "everything"})
    assert set(settings.resolved()) == set(BUILT_IN)
    assert settings.resolved()["lora"].transforms == BUILT_IN["lora"]["transforms"]
    Work(settings).begin()  # refuses any whose recipes could not run


def test_sealed_sets_beside_the_users_runs_count(world: dict[str, Any], tmp_path: Path) -> None:
    """The runs of a comparison lie in a folder of their own, beside which there is none."""
    text = " ".join(f"w{number}" for number in range(40))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    sealed = seal([tmp_path / "rows.jsonl"], tmp_path / "sealed" / "quiz")
    work = Work(resolve_comparison({**world, "runs": str(tmp_path / "runs"), "contenders": ["lora"]}))
    assert work.recipe(work.entries[0], 1e-3)["data"]["sealed"] == [str(sealed.folder)]


# Prompts


def test_likelihoods_are_the_sums_of_the_scores_of_the_answers(world: dict[str, Any]) -> None:
    model = tv.load(world["base"])
    prompting = Prompting("{text} =", {"good": " abc", "bad": " ghi jab"}, examples=[("abab", "good")])
    found = likelihoods(model, prompting, ["cafe", "bad hi"])
    for row, text in zip(found, ["cafe", "bad hi"], strict=True):
        prompt = prompting.prompt(text)
        sums = []
        for answer in prompting.answers.values():
            before, whole = model.score(prompt), model.score(prompt + answer)
            sums.append(sum(value or 0 for value in whole.logprobs[len(before.ids) :]))
        expected = np.array(sums) - np.logaddexp.reduce(sums)
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_calibration_takes_off_what_the_prompt_alone_prefers(world: dict[str, Any]) -> None:
    model = tv.load(world["base"])
    prompting = Prompting("{text} =", {"good": " abc", "bad": " ghi jab"})
    calibrated = likelihoods(model, prompting, ["", "cab"], empty=[""])
    np.testing.assert_allclose(np.exp(calibrated[0]), [0.5, 0.5], atol=1e-6)
    assert not np.allclose(calibrated[1], likelihoods(model, prompting, ["cab"])[0])


def test_examples_are_balanced_drawn_by_the_seed_and_fit(world: dict[str, Any]) -> None:
    rows = [(f"text {number}", "ab"[number % 5 == 0]) for number in range(50)]
    drawn = draw_examples(rows, ["a", "b"], 6, seed=1)
    assert sorted(label for _, label in drawn) == ["a"] * 3 + ["b"] * 3
    assert drawn == draw_examples(rows, ["a", "b"], 6, seed=1) != draw_examples(rows, ["a", "b"], 6, seed=2)
    model = tv.load(world["base"])
    long = Prompting("{text} =", {"a": " a", "b": " b"}, examples=[("abc " * 60, "a")] * 8)
    fitting = that_fits(model, long, ["abc"])
    assert 0 < len(fitting.examples) < 8


def test_a_written_label_counts_only_if_it_is_one(world: dict[str, Any]) -> None:
    model = tv.load(world["base"])
    said = model.generate("abc", temperature=0, max_new_tokens=3)
    prompting = Prompting("{text}", {"right": said[:4], "wrong": "zzzz"})
    assert written(model, prompting, ["abc"]) == ["right"]
    assert written(model, Prompting("{text}", {"one": "zzzz", "two": "yyyy"}), ["abc"]) == [None]


def test_forgetting_of_an_untouched_model_is_nothing(world: dict[str, Any]) -> None:
    base, probe = Path(world["base"]), [Source(path=world["probe"])]
    tokenizer = tv.load(base).tokenizer
    model = with_language_head(base, base)
    same = bits_per_byte(model, tokenizer, probe, rows=5, length=64)
    assert same == bits_per_byte(load_model(base).eval(), tokenizer, probe, rows=5, length=64) > 0


# Statistics


def test_the_randomisation_test_agrees_with_all_flips() -> None:
    random_ = np.random.default_rng(0)
    first, second = (random_.random((2, 10)) < share for share in (0.8, 0.5))
    difference = first.astype(float).mean(0) - second.astype(float).mean(0)
    flips = [abs(sum(d * s for d, s in zip(difference, signs, strict=True))) for signs in
             itertools.product((-1, 1), repeat=10)]  # fmt: skip
    exact = np.mean([flip >= abs(difference.sum()) - 1e-12 for flip in flips])
    assert abs(paired_p(first.astype(float), second.astype(float), flips=20_000) - exact) < 0.02
    assert paired_p(first.astype(float), first.astype(float)) == 1.0


def test_holm_is_as_in_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random_ = np.random.default_rng(1)
    held = 0
    for trial in range(100):
        right = (random_.random((1, 200)) < 0.7).astype(float)
        figure = share_right(right, resamples=400, seed=trial)
        held += figure.low <= 0.7 <= figure.high
    assert 88 <= held <= 100


def _row(name: str, accuracy: float, p: float, stored: int, forgetting: float | None = None) -> dict[str, Any]:
    figure = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
    return {"contender": name, "accuracy": figure, "p": p, "stored_bytes": stored, "seconds": 1.0,
            "forgetting": forgetting, "behind_best": 0.9 - accuracy}  # fmt: skip


def test_the_recommendation_is_the_smallest_that_is_not_worse(world: dict[str, Any]) -> None:
    settings = Comparison.model_validate(world)
    rows = [_row("full", 0.9, 1.0, 10_000_000, 0.5), _row("lora", 0.89, 0.4, 50_000, 0.1), _row("head", 0.7, 0.001, 9)]
    assert recommend(rows, settings)["contender"] == "lora"
    assert recommend(rows[:1] + rows[2:], settings)["contender"] == "full"
    strict = settings.model_copy(update={"max_forgetting": 0.2})
    found = recommend([*rows[:1], _row("lora", 0.8, 0.001, 50_000, 0.1)], strict)
    assert found["contender"] == "lora" and "forgets more" in found["reason"]
    assert recommend(rows[:1], strict)["contender"] is None
