"""From rows to a measured model folder: the end of a run, `trivium eval`, and what the model says afterwards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trivium as tv
from tests.unit.labelled import wordpiece, write_rows
from trivium.artifacts.manifest import verify
from trivium.cli.main import run as command
from trivium.drivers.evaluating import data_settings, evaluate_folder
from trivium.errors import ModelError, TriviumError
from trivium.inference.decisions import DECISIONS, read_decisions

GOOD, BAD = ["good", "great", "joy", "wonderful"], ["bad", "boring", "without", "point"]


def texts(number: int, seed: int) -> list[dict[str, Any]]:
    """Texts whose label is the word that counts."""
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        label = draw.choice(["bad", "good"])
        words = ["the", "film", draw.choice(GOOD if label == "good" else BAD), "story"]
        draw.shuffle(words)
        found.append({"text": " ".join(words), "label": label})
    return found


def sentences(number: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        place = draw.choice([["London"], ["New", "York"]])
        words = [draw.choice(["Ada", "she"]), "lives", "in", *place]
        tags = ["B-PER" if words[0] == "Ada" else "O", "O", "O", "B-LOC", "I-LOC"][: len(words)]
        found.append({"tokens": words, "tags": tags})
    return found


def questions(number: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for at in range(number):
        place = draw.choice(["London", "Paris"])
        context = f"Ada lives in {place} , where she writes"
        known = at % 4 > 0
        answers = {"text": [place] if known else [], "answer_start": [13] if known else []}
        found.append({"context": context, "question": "where ?" if known else "who wrote it ?", "answers": answers})
    return found


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "labels": ("classification", texts, {}),
    "several": (
        "classification",
        lambda number, seed: [
            {"text": row["text"], "good": int(row["label"] == "good"), "story": at % 2}
            for at, row in enumerate(texts(number, seed))
        ],
        {"label": ["good", "story"]},
    ),
    "numbers": (
        "classification",
        lambda number, seed: [
            {"text": row["text"], "score": 1.5 if row["label"] == "good" else -0.5} for row in texts(number, seed)
        ],
        {},
    ),
    "words": ("token_classification", sentences, {}),
    "questions": ("question_answering", questions, {"stride": 4}),
}
ENCODER = {
    "preset": "bert-1m",
    "config": {"vocab_size": 200, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains each case once, when it is first asked for."""
    base = tmp_path_factory.mktemp("runs")
    wordpiece(base / "tokenizer")
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            method, make, labels = CASES[case]
            for split, seed in (("train", 0), ("held", 1)):
                write_rows(base / f"{case}-{split}.jsonl", make(120, seed))
            recipe = {
                "name": case,
                "runs": str(base),
                "method": {"name": method, "dropout": 0.0},
                "model": ENCODER,
                "tokenizer": str(base / "tokenizer"),
                "data": {
                    "train": str(base / f"{case}-train.jsonl"),
                    "validation": str(base / f"{case}-held.jsonl"),
                    "sequence_length": 48,
                    "labels": labels,
                },
                "train": {"steps": 40, "batch_size": 8, "lr": 5e-3, "threads": 1, "compile": "off"},
            }
            made[case] = tv.train(recipe).folder
        return made[case]

    return get


def metrics(run: Path, name: str = "validation") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval" / name / "metrics.json").read_text())
    return found


@pytest.mark.parametrize(
    ("case", "figure", "at_least"),
    [
        ("labels", "accuracy", 0.95),
        ("several", "macro_f1", 0.6),
        ("words", "f1", 0.95),
        ("questions", "f1", 0.7),
    ],
)
def test_run_measures_its_model_at_the_end(runs: Any, case: str, figure: str, at_least: float) -> None:
    run = runs(case)
    verify(run / "final")
    verify(run / "eval" / "validation")
    found = metrics(run)["metrics"][figure]
    assert at_least <= found["value"] <= 1 and found["low"] <= found["value"] <= found["high"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["kind"] == "validation"][-1]
    assert "exact" in held_out if case == "questions" else "accuracy" in held_out
    page = (run / "report.html").read_text()
    assert 'id="evaluation"' in page and "Held-out data of the run" in page
    assert ("<svg xmlns" in page and "Confusion matrix" in page) == (case in ("labels", "words"))


def test_numbers_are_measured_too(runs: Any) -> None:
    found = metrics(runs("numbers"))
    assert found["kind"] == "regression" and found["labels"] == ["score"]
    assert found["per_label"]["score"]["spearman"]["value"] > 0.7
    assert tv.load(runs("numbers") / "final").classify(["a good film"])[0].labels == ()


def test_predictions_are_those_of_classify(runs: Any) -> None:
    run = runs("labels")
    model = tv.load(run / "final")
    lines = [json.loads(line) for line in (run / "eval" / "validation" / "predictions.jsonl").read_text().splitlines()]
    said = model.classify([line["text"] for line in lines])
    assert [one.label for one in said] == [line["predicted"] for line in lines]
    right = np.mean([line["predicted"] == line["true"] for line in lines])
    assert metrics(run)["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert all(sum(one.scores.values()) == pytest.approx(1) for one in said)


def test_text_alone_and_in_company_is_the_same(runs: Any) -> None:
    model = tv.load(runs("labels") / "final")
    several = ["a good film", "the bad boring story without any point", ("great joy", "bad story")]
    together = model.classify(several)
    for text, found in zip(several, together, strict=True):
        assert model.classify([text])[0].scores == pytest.approx(found.scores, abs=1e-5)


def test_transformers_gives_the_same_scores(runs: Any) -> None:
    transformers = pytest.importorskip("transformers")
    folder = runs("labels") / "final"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = tv.load(folder)
    for pair in (("a good film",), ("a good film", "a bad story")):
        encoded = tokenizer(*pair, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            logits = theirs(**encoded).logits[0].double() / ours.decisions.temperature
        found = ours.classify([pair if len(pair) > 1 else pair[0]])[0]
        assert [*found.scores.values()] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}


def test_temperature_and_thresholds_stand_in_the_folder(runs: Any) -> None:
    decisions = read_decisions(runs("several") / "final", ("good", "story"))
    assert decisions.rows == 120 and set(decisions.thresholds) == {"good", "story"}
    assert not (runs("words") / "final" / DECISIONS).exists()


def test_thresholds_decide(runs: Any, tmp_path: Path) -> None:
    model = tv.load(runs("several") / "final")
    (found,) = model.classify(["the good film"])
    for threshold, chosen in ((0.0, {"good", "story"}), (1.0, set())):
        strict = type(model.decisions)(1.0, dict.fromkeys(("good", "story"), threshold), 1)
        model.decisions = strict
        assert set(model.classify(["the good film"])[0].labels) == chosen
    assert set(found.scores) == {"good", "story"}


def test_damaged_decisions_are_refused(runs: Any, tmp_path: Path) -> None:
    for content in ("[]", '{"temperature": 0, "thresholds": {}}', '{"temperature": 1, "thresholds": {"x": 0.5}}', "{"):
        (tmp_path / DECISIONS).write_text(content)
        with pytest.raises(ModelError, match="become decisions"):
            read_decisions(tmp_path, ("good",))


def test_words_and_answers_from_python(runs: Any) -> None:
    tags = tv.load(runs("words") / "final").tag([["Ada", "lives", "in", "New", "York"], ["she", "lives"]])
    assert tags == [["B-PER", "O", "O", "B-LOC", "I-LOC"], ["O", "O"]]
    model = tv.load(runs("questions") / "final")
    context = "Ada lives in Paris , where she writes"
    found = model.answer("where ?", context, stride=4)
    assert found.text == "Paris" and context[found.start : found.end] == "Paris"
    always = model.answer("who wrote it ?", context, stride=4, allow_none=False)
    assert always.text and model.answer("who wrote it ?", context, stride=4).text in ("", always.text)


def test_long_contexts_are_read_in_windows(runs: Any) -> None:
    model = tv.load(runs("questions") / "final")
    context = "she writes " * 200 + "Ada lives in Paris , where she writes"
    found = model.answer("where ?", context, stride=8, allow_none=False)
    assert context[found.start : found.end] == found.text


def test_text_that_is_too_long_is_an_error_unless_cut(runs: Any) -> None:
    model = tv.load(runs("labels") / "final")
    with pytest.raises(TriviumError, match="too long"):
        model.classify(["good " * 400])
    assert model.classify(["good " * 400], truncate=True)[0].label == "good"
    with pytest.raises(TriviumError, match="no text"):
        model.classify([" "])


def test_other_heads_are_refused(runs: Any) -> None:
    with pytest.raises(ModelError, match="cannot tag words"):
        tv.load(runs("labels") / "final").tag([["a"]])


# The verb


def test_eval_of_a_run(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("labels")
    data = write_rows(tmp_path / "test.jsonl", texts(30, 5))
    assert command(["eval", str(run), str(data), "--json", "--threads", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 30 and said["metrics"]["accuracy"]["value"] > 0.8
    assert said["folder"] == str(run / "eval" / "test") and metrics(run, "test")["rows"] == 30
    assert said["calibration"]["fitted_on"] == "other data"
    assert (run / "eval" / "test" / "confusion.svg").read_text().startswith("<svg")
    assert command(["eval", str(run), str(data), "--name", "again"]) == 0
    text = capsys.readouterr().out
    assert "accuracy: " in text and (run / "eval" / "again").is_dir()
    assert (run / "report.html").read_text().count("30 rows") >= 2


def test_eval_of_a_folder_writes_only_where_it_is_told(runs: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "test.jsonl", texts(60, 6))
    found = evaluate_folder(runs("labels") / "final", data, threads=1)
    assert found.folder is None and found.summary["rows"] == 60
    target = tmp_path / "calibrated"
    found = evaluate_folder(runs("labels") / "final", data, output=tmp_path / "out", calibrate=target, threads=1)
    verify(tmp_path / "out")
    verify(target)
    assert tv.load(target).decisions.rows == 60
    assert tv.load(target).classify(["a good film"])[0].label == "good"


def test_eval_changes_how_data_is_read(runs: Any, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "verdict": row["label"]} for row in texts(20, 7)]
    data = write_rows(tmp_path / "test.jsonl", rows)
    found = evaluate_folder(runs("labels"), data, ["data.labels.label=verdict"], threads=1, output=tmp_path / "out")
    assert found.summary["rows"] == 20
    with pytest.raises(TriviumError, match="no column for the label"):
        evaluate_folder(runs("labels") / "final", data, threads=1)
    with pytest.raises(TriviumError):
        data_settings(None, data, ["data.sequence_length=0"], length=64)
    with pytest.raises(TriviumError, match="only settings of the data"):
        data_settings(None, data, ["train.lr=1"], length=64)


def test_eval_of_a_model_without_such_a_head(tmp_path: Path) -> None:
    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model

    model = build_model(preset("bert-1m", ENCODER["config"]), seed=0)
    save_model(tmp_path, model.config, model.state_dict())
    with pytest.raises(ModelError, match="no head for labels"):
        evaluate_folder(tmp_path, tmp_path / "x.jsonl")


def test_a_model_that_writes_is_measured_on_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.tokenizers.train import train_bpe

    pairs = [{"source": f"{word} {word}", "target": word} for word in ("cat", "dog", "fox", "hen") for _ in range(8)]
    data = write_rows(tmp_path / "pairs.jsonl", pairs)
    train_bpe([pair["source"] for pair in pairs], vocab_size=300).save(tmp_path / "tokenizer")
    shape = {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "head_dim": 16, "intermediate_size": 64}
    run = tv.train(
        {
            "name": "pairs",
            "runs": str(tmp_path / "runs"),
            "method": "seq2seq",
            "model": {"preset": "t5-1m", "config": {**shape, "num_layers": 1, "num_decoder_layers": 1}},
            "tokenizer": str(tmp_path / "tokenizer"),
            "data": {"train": str(data), "sequence_length": 64},
            "train": {"steps": 60, "batch_size": 8, "lr": 1e-2, "schedule": "constant", "threads": 1},
        }
    )
    found = evaluate_folder(run.folder, data)
    metrics = found.summary["metrics"]
    assert metrics["exact"]["value"] > 0.7 and metrics["copied"]["value"] == 0
    assert metrics["rougeL"]["low"] <= metrics["rougeL"]["value"] <= metrics["rougeL"]["high"]
    assert found.folder is not None
    lines = (found.folder / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(pairs) and json.loads(lines[0])["true"] == "cat"
    assert "ROUGE-L" in (run.folder / "report.html").read_text()
    assert command(["eval", str(run.final), str(data), "--rows", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5
    with pytest.raises(TriviumError, match="columns for a pair"):
        evaluate_folder(run.final, write_rows(tmp_path / "other.jsonl", [{"text": "x"}]))


@pytest.mark.parametrize("case", ["labels", "several", "numbers", "words", "questions"])
def test_preflight_overfits_rows_with_labels(case: str, runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.config import resolve

    recipe = resolve(runs(case) / "config.yaml").recipe.model_dump(mode="json")
    before = sorted((runs(case).parent).iterdir())
    tv.train({**recipe, "name": "rehearsed", "train": {**recipe["train"], "lr": 1e-2}}, preflight=True)
    said = capsys.readouterr().out
    assert "ok   labels: " in said and "ok   learning: " in said
    assert sorted((runs(case).parent).iterdir()) == before
