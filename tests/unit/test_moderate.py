"""Documents are judged by category; what is near a threshold is shown to people, and nothing depends on the parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from trivium.artifacts.manifest import verify
from trivium.cli.main import app
from trivium.config import StrictModel
from trivium.data.documents import Document
from trivium.data.safety.linear import LinearClassifier, train_linear
from trivium.data.safety.moderation import WordClassifier
from trivium.data.safety.phrases import Phrases, read_lists
from trivium.data.step import Dropped
from trivium.data.steps.moderate import BINS, Moderate
from trivium.errors import ConfigError, DataError, ModelError

TEXTS = ("Kill the wolf.", "Kill and shoot and stab him.", "A quiet evening.", "You dirty rat, you rat king.")


class Lengths:
    """A classifier of one's own: long words are bad."""

    class Config(StrictModel):
        worst: int = 10
        """Length of the worst word."""

    categories = ("long",)

    def __init__(self, config: Lengths.Config) -> None:
        self.worst = config.worst

    def scores(self, texts: Sequence[str]) -> list[list[float]]:
        return [[min(1.0, max(map(len, text.split())) / self.worst)] for text in texts]


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.yaml"
    path.write_text("violence: [kill, shoot, stab]\nhate: [rat, dirty rat, rat king]\n", encoding="utf-8")
    return str(path)


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [Document(f"d{number}", text, f"file:{number}") for number, text in enumerate(texts)]


def judged(tmp_path: Path, texts: Sequence[str] = TEXTS, *, parts: int = 1, **settings: Any) -> tuple[list[Any], Path]:
    """The results, and the folder of what the step wrote."""
    folder = tmp_path / f"out-{parts}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    given = documents(texts)
    size = -(-len(given) // parts)
    pieces = [given[at : at + size] for at in range(0, len(given), size)]
    sketches = []
    for number, piece in enumerate(pieces):
        paths = {}
        for name, data in Moderate(Moderate.Config(**settings)).sketch(piece).items():
            paths[name] = folder / f"{number}.{name}"
            paths[name].write_bytes(data)
        sketches.append(paths)
    step = Moderate(Moderate.Config(**settings))
    decisions = json.loads(json.dumps(list(step.decide(sketches, folder))))
    results = [one for piece, how in zip(pieces, decisions, strict=True) for one in step.apply_all(piece, how)]
    return results, folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_word_scores_a_half_and_more_words_more(words: str) -> None:
    classifier = WordClassifier(words)
    assert classifier.categories == ("violence", "hate")
    assert classifier.scores(TEXTS) == [[0.5, 0.0], [0.875, 0.0], [0.0, 0.0], [0.0, 0.75]]


def test_documents_above_a_threshold_are_left_out_with_the_reason(tmp_path: Path, words: str) -> None:
    results, folder = judged(tmp_path, words=words, threshold=0.7)
    assert [type(result) for result in results] == [Document, Dropped, Document, Dropped]
    assert results[1] == Dropped("violence", "violence 0.88, threshold 0.70")
    assert results[3].reason == "hate"
    assert results[0].meta["moderation"]["scores"] == {"violence": 0.5, "hate": 0.0}
    report = json.loads((folder / "moderation.json").read_text())
    assert report["documents"] == 4 and report["flagged"] == 2
    histogram = report["categories"]["violence"]["histogram"]
    assert len(histogram) == BINS and sum(histogram) == 4 and histogram[10] == histogram[17] == 1 and histogram[0] == 2


def test_each_category_has_its_threshold(tmp_path: Path, words: str) -> None:
    results, _ = judged(tmp_path, words=words, threshold=0.7, thresholds={"hate": 0.8, "violence": 0.5})
    assert [isinstance(result, Dropped) for result in results] == [True, True, False, False]
    with pytest.raises(ConfigError, match="did you mean violence"):
        judged(tmp_path, words=words, thresholds={"violense": 0.8})


def test_kept_documents_say_what_they_are_flagged_for(tmp_path: Path, words: str) -> None:
    results, _ = judged(tmp_path, words=words, threshold=0.7, action="keep")
    assert all(isinstance(result, Document) for result in results)
    assert [result.meta["moderation"].get("flagged") for result in results] == [None, ["violence"], None, ["hate"]]
    results, _ = judged(tmp_path, words=words, threshold=0.7, action="keep", scores=False)
    assert all(result.meta == {} for result in results)


def test_documents_set_aside_are_whole(tmp_path: Path, words: str) -> None:
    results, folder = judged(tmp_path, words=words, threshold=0.7, action="quarantine")
    assert [isinstance(result, DataError) for result in results] == [False, True, False, True]
    assert [row["text"] for row in lines(folder / "set-aside.jsonl")] == [TEXTS[1], TEXTS[3]]


def test_what_is_near_a_threshold_is_shown_to_people(tmp_path: Path, words: str) -> None:
    _, folder = judged(tmp_path, words=words, threshold=0.55, margin=0.1)
    assert [(row["id"], row["category"], row["flagged"]) for row in lines(folder / "borderline.jsonl")] == [
        ("d0", "violence", False)
    ]
    _, folder = judged(tmp_path, words=words, threshold=0.55, margin=0.0)
    assert lines(folder / "borderline.jsonl") == []


def test_how_the_corpus_is_cut_changes_nothing(tmp_path: Path, words: str) -> None:
    texts = [TEXTS[number % 4] for number in range(17)]
    one, first = judged(tmp_path, texts, words=words, threshold=0.7)
    many, second = judged(tmp_path, texts, parts=5, words=words, threshold=0.7)
    assert one == many
    for name in ("moderation.json", "borderline.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_class_of_ones_own_judges(tmp_path: Path) -> None:
    name = f"{__name__}:Lengths"
    results, _ = judged(tmp_path, classifier=name, settings={"worst": 7}, threshold=0.99)
    assert [isinstance(result, Dropped) for result in results] == [False, False, True, False]
    with pytest.raises(ConfigError, match="named with its module"):
        judged(tmp_path, classifier="Lengths")


def test_scores_must_be_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ([[1.5]] * 4, [[float("nan")]] * 4, [[0.1, 0.2]] * 4, [[0.5]]):
        monkeypatch.setattr(Lengths, "scores", lambda self, texts, wrong=wrong: wrong)
        with pytest.raises(ConfigError, match="a score from 0 to 1"):
            judged(tmp_path, classifier=f"{__name__}:Lengths")


def test_somebody_must_judge(tmp_path: Path, words: str) -> None:
    with pytest.raises(ValidationError, match="not none"):
        Moderate.Config()
    with pytest.raises(ValidationError, match="model and words"):
        Moderate.Config(model="m", words=words)
    with pytest.raises(ValidationError, match="your own class"):
        Moderate.Config(words=words, settings={"worst": 7})
    assert list(Moderate(Moderate.Config(words=words)).parents()) == [Path(words)]


def test_lists_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "lists.yaml"
    for text in ("- a", "a: b", "a: [[b]]", "a: ["):
        path.write_text(text)
        with pytest.raises(DataError):
            read_lists(path)


def test_of_phrases_the_longest_counts() -> None:
    phrases = Phrases({"a": ["New York", "york"], "b": ["new york city"]})
    found = list(phrases.find("In NEW York city and york"))
    assert found == [("b", "new york city", 3, 16), ("a", "york", 21, 25)]


def test_a_model_of_trivium_judges_long_texts_in_pieces(tmp_path: Path) -> None:
    import trivium as tv
    from trivium.data.safety.moderation import ModelClassifier
    from trivium.tokenizers.train import train_bpe

    texts = [f"the {word} is {'bad' if number % 2 else 'good'}" for number, word in enumerate(["cat", "dog"] * 8)]
    train_bpe(texts, vocab_size=300).save(_made(tmp_path / "tokenizer"))
    rows = [{"text": text, "labels": ["bad"] if "bad" in text else []} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = {"vocab_size": 300, "num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
    run = tv.train(
        {
            "name": "m",
            "runs": str(tmp_path / "runs"),
            "method": {"name": "classification", "pooling": "max"},
            "model": {"preset": "bert-1m", "config": {**shape, "max_positions": 32}},
            "tokenizer": str(tmp_path / "tokenizer"),
            "data": {"train": str(tmp_path / "rows.jsonl"), "sequence_length": 32},
            "train": {"steps": 30, "batch_size": 8, "lr": 1e-2, "compile": "off"},
        }
    )
    scores = {}
    long = "the cat is good. " * 60 + "the dog is bad bad bad"
    for pieces in ("max", "mean", "first"):
        classifier = ModelClassifier(run.final, pieces=pieces)
        assert classifier.categories == ("bad",)
        scores[pieces] = classifier.scores(["the dog is bad", long, " "])
    assert scores["max"][0] == pytest.approx(scores["first"][0]) and scores["max"][0][0] > 0.5
    foreign = "\U0001f40d" * 12 + " bad bad bad"  # fewer characters than the model reads tokens, and more bytes
    assert len(ModelClassifier(run.final)._cut(foreign)) > 1
    assert scores["max"][1][0] > max(scores["mean"][1][0], scores["first"][1][0])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def labelled(path: Path, number: int = 60) -> str:
    """Rows about two categories; of every fourth the second one is not known."""
    rows: list[dict[str, Any]] = []
    for at in range(number):
        row = {"prompt": f"the {'evil' if at % 2 else 'nice'} {'cat' if at % 3 else 'dog'} number {at}", "bad": at % 2}
        rows.append(row if at % 4 == 0 else {**row, "dog": int(at % 3 == 0)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_linear_classifier_learns_from_few_rows_and_is_a_model_of_the_step(tmp_path: Path) -> None:
    folder = tmp_path / "linear"
    run = CliRunner().invoke(
        app,
        [
            "data",
            "classifier",
            labelled(tmp_path / "rows.jsonl"),
            "--label",
            "bad",
            "--label",
            "dog",
            "--output",
            str(folder),
        ],
    )
    assert run.exit_code == 0 and "60 rows (bad 30, dog 15)" in run.stdout, run.output
    verify(folder)
    scores = LinearClassifier(folder).scores(["an evil cat", "a nice dog", ""])
    assert scores[0][0] > 0.5 > scores[1][0] and scores[1][1] > 0.5 > scores[0][1]
    assert all(0 < score < 1 for score in scores[2])
    results, _ = judged(tmp_path, ["an evil cat", "a nice cat"], model=str(folder))
    assert isinstance(results[0], Dropped) and results[0].reason == "bad" and isinstance(results[1], Document)


def test_the_linear_classifier_is_the_minimum_that_scikit_learn_finds(tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    import numpy as np

    from trivium.data.safety import linear

    path = labelled(tmp_path / "rows.jsonl")
    folder = tmp_path / "linear"
    linear.train_linear(path, folder, text="prompt", labels=["bad", "dog"], strength=3.0)
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    counted = [linear.features(row["prompt"]) for row in rows]
    ours = LinearClassifier(folder)
    known = linear.rows_of(counted, ours._idf)
    used, place = np.unique(known.column, return_inverse=True)
    dense = np.zeros((len(rows), len(used)))
    dense[known.row, place] = known.value
    for number, name in enumerate(("bad", "dog")):
        there = [at for at, row in enumerate(rows) if name in row]
        model = linear_model.LogisticRegression(C=3.0, class_weight="balanced", max_iter=500, tol=1e-6)
        model.fit(dense[there], [rows[at][name] for at in there])
        theirs = model.predict_proba(dense)[:, 1]
        assert np.abs(theirs - np.array(ours.scores([row["prompt"] for row in rows]))[:, number]).max() < 5e-3


def test_rows_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "x": 1}\n{"text": "b", "x": 1}\n')
    with pytest.raises(DataError, match="cannot be learnt"):
        train_linear(path, tmp_path / "out", text=None, labels=["x"])
    path.write_text('{"text": "a", "x": 7}\n{"text": "b", "x": 1}\n')
    with pytest.raises(DataError, match="neither 0 nor 1"):
        train_linear(path, tmp_path / "out", text=None, labels=["x"])
    with pytest.raises(ModelError, match="no linear classifier"):
        LinearClassifier(tmp_path)
