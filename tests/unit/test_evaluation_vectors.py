"""Figures of vectors against loops and scikit-learn, and `trivium eval` on every kind of data they are measured on."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from tests.unit.labelled import wordpiece, write_rows
from trivium.cli.main import main
from trivium.drivers.evaluating import describe, evaluate_folder
from trivium.errors import DataError, ModelError
from trivium.evaluation import vectors
from trivium.report.evaluations import evaluations

WORDS = [
    *("the", "good", "film", "was", "a", "great", "joy", "to", "watch"),
    *("bad", "and", "boring", "story", "without", "any", "point"),
]


def drawn(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return vectors.unit(np.random.default_rng(seed).standard_normal((count, width)))


def test_search_figures_are_their_definitions() -> None:
    found = [np.array([3, 1, 0, 2, *range(4, 20)]), np.array([5, 4, *range(6, 30), 0])]
    values = vectors.search_values(found, [{1: 2.0, 0: 1.0, 19: 1.0}, {0: 1.0}])
    gain = 2 / math.log2(3) + 1 / math.log2(4)
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["ndcg@10"].tolist() == pytest.approx([gain / ideal, 0.0])
    assert values["mrr@10"].tolist() == [0.5, 0.0]
    assert values["recall@1"].tolist() == [0.0, 0.0]
    assert values["recall@10"].tolist() == pytest.approx([2 / 3, 0.0])
    assert values["recall@100"].tolist() == [1.0, 1.0]


def test_ndcg_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    queries, passages, rng = drawn(6, seed=1), drawn(30, seed=2), random.Random(0)
    relevant = [{number: float(rng.randint(1, 3)) for number in rng.sample(range(30), 4)} for _ in range(6)]
    ours = vectors.search_values(vectors.best_passages(queries, passages), relevant)["ndcg@10"]
    truth = np.array([[own.get(number, 0.0) for number in range(30)] for own in relevant])
    theirs = [sklearn.ndcg_score(truth[[at]], (queries[[at]] @ passages.T), k=10) for at in range(6)]
    assert ours.tolist() == pytest.approx(theirs)


def test_area_alignment_and_uniformity_are_their_definitions() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    given, labels = drawn(40), np.arange(40) % 3
    pairs = [(i, j) for i in range(40) for j in range(i)]
    values = [float(given[i] @ given[j]) for i, j in pairs]
    same = [bool(labels[i] == labels[j]) for i, j in pairs]
    distance = np.array([((given[i] - given[j]) ** 2).sum() for i, j in pairs])
    found = vectors.same_label(given, labels, 0)
    assert found["same_label_auc"].value == pytest.approx(sklearn.roc_auc_score(same, values))
    assert found["alignment"].value == pytest.approx(distance[same].mean())
    assert vectors._spread(given, 0)["uniformity"].value == pytest.approx(math.log(np.exp(-2 * distance).mean()))
    for figure in found.values():
        assert figure.low < figure.value < figure.high


def test_neighbours_are_those_of_scikit_learn() -> None:
    neighbours = pytest.importorskip("sklearn.neighbors")
    given, labels = drawn(60, seed=3), np.arange(60) % 2
    other, known = drawn(50, seed=4), np.arange(50) % 2
    theirs = neighbours.NearestNeighbors(n_neighbors=vectors.NEIGHBOURS, metric="cosine").fit(other)
    places = theirs.kneighbors(given, return_distance=False)
    votes = known[places].sum(axis=1)
    ours = vectors.neighbour_labels(given, labels, other, known, 2)
    clear = votes != vectors.NEIGHBOURS / 2
    assert (ours[clear] == (votes[clear] > vectors.NEIGHBOURS / 2)).all() and clear.any()
    even = np.flatnonzero(~clear)
    assert len(even), "with an even vote"
    alone = vectors.neighbour_labels(np.eye(3), np.array([0, 0, 1]), None, labels, 2)
    assert alone.tolist() == [0, 0, 0], "a text is no neighbour of itself"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for search, with held-out pairs."""
    folder = tmp_path_factory.mktemp("run")
    wordpiece(folder / "tokens")
    pairs = [{"query": " ".join(WORDS[at:]), "passage": " ".join(WORDS[: at + 1])} for at in range(len(WORDS))]
    shape = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 32, "vocab_size": 200}
    found = tv.train(
        {
            "name": "run",
            "runs": str(folder),
            "method": {"name": "embedding", "matryoshka": [4]},
            "model": {"preset": "bert-1m", "config": {**shape, "init_std": 0.2}},
            "tokenizer": str(folder / "tokens"),
            "data": {
                "train": str(write_rows(folder / "train.jsonl", pairs)),
                "validation": str(write_rows(folder / "validation.jsonl", pairs[:9])),
                "sequence_length": 128,
                "similar": {"query_prefix": "who ", "passage_prefix": "the "},
            },
            "train": {"steps": 2, "batch_size": 4, "compile": "off", "threads": 1},
        }
    )
    return found.folder


def test_a_run_is_measured_on_its_held_out_pairs(run: Path) -> None:
    summary = json.loads((run / "eval" / "validation" / "metrics.json").read_text())
    assert (summary["kind"], summary["task"], summary["rows"]) == ("vectors", "search", 9)
    (shown,) = evaluations(run)
    assert "nDCG@10" in [figure.label for figure in shown["figures"]]
    assert shown["body"][0][0] == "first 4 numbers"


def expected_similarity(run: Path, pairs: list[tuple[str, str]], prompts: tuple[str, str]) -> np.ndarray:
    model = tv.load(run / "final", device="cpu")
    first, second = (
        model.embed([pair[side] for pair in pairs], prompt=prompts[side]).double().numpy() for side in (0, 1)
    )
    return (first * second).sum(axis=1)


def test_scored_pairs(run: Path, tmp_path: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    pairs = [(" ".join(WORDS[at:]), WORDS[-at - 1]) for at in range(12)]
    rows = [{"sentence1": a, "sentence2": b, "score": at / 2} for at, (a, b) in enumerate(pairs)]
    found = evaluate_folder(run, write_rows(tmp_path / "sts.jsonl", rows), device="cpu")
    values = expected_similarity(run, pairs, ("query", "query"))
    figures = found.summary["metrics"]
    assert figures["spearman"]["value"] == pytest.approx(stats.spearmanr(values, np.arange(12)).statistic)
    assert figures["pearson"]["value"] == pytest.approx(stats.pearsonr(values, np.arange(12)).statistic, abs=1e-5)
    assert figures["spearman"]["low"] < figures["spearman"]["value"] < figures["spearman"]["high"]
    assert list(found.summary["per_label"]) == ["first 4 numbers"]
    assert "spearman" in describe(found) and "first 4 numbers" in describe(found)
    assert (run / "eval" / "sts" / "predictions.jsonl").is_file()


def write_search(folder: Path, *, qrels: str = "qrels.jsonl", judged: str = "p1") -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "queries.jsonl", [{"_id": "q1", "text": "a great joy"}, {"_id": "q2", "text": "unasked"}])
    passages = [{"_id": f"p{at}", "title": word, "text": "bad story"} for at, word in enumerate(WORDS)]
    write_rows(folder / "corpus.jsonl", passages)
    if qrels == "qrels.jsonl":
        write_rows(folder / qrels, [{"query-id": "q1", "corpus-id": judged, "score": 1}])
    else:
        (folder / "qrels").mkdir()
        (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq1\t{judged}\t1\nq1\tp2\t0\n")
    return folder


@pytest.mark.parametrize("qrels", ["qrels.jsonl", "tsv"])
def test_a_folder_for_search(run: Path, tmp_path: Path, qrels: str) -> None:
    found = evaluate_folder(run / "final", write_search(tmp_path / "search", qrels=qrels), device="cpu")
    assert (found.summary["rows"], found.summary["passages"]) == (1, len(WORDS))
    model = tv.load(run / "final", device="cpu")
    passages = model.embed([f"{word} bad story" for word in WORDS], prompt="document")
    best = (model.embed("a great joy", prompt="query") @ passages.T).argsort(descending=True).tolist()
    rank = best.index(1)
    assert found.summary["metrics"]["mrr@10"]["value"] == pytest.approx(1 / (rank + 1) if rank < 10 else 0.0)
    search = vectors.read_search(tmp_path / "search")
    assert (search.names, search.relevant) == (["q1"], [{1: 1.0}])


def test_broken_folders_for_search(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        vectors.read_search(write_search(tmp_path / "a", judged="p99"))
    folder = write_search(tmp_path / "b", qrels="tsv")
    (folder / "qrels" / "test.tsv").write_text("q1\tp1\tmuch\n")
    with pytest.raises(DataError, match="not query-id"):
        vectors.read_search(folder)
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match="no qrels"):
        vectors.read_search(folder)
    (folder / "corpus.jsonl").write_text('{"_id": 1}\n')
    with pytest.raises(DataError, match="no _id or no text"):
        vectors.read_search(folder)
    (folder / "corpus.jsonl").write_text("[1\n")
    with pytest.raises(DataError, match="not a line of JSON"):
        vectors.read_search(folder)


def labelled(path: Path, count: int = 30) -> Path:
    rows = [{"text": " ".join(WORDS[at % 7 : at % 7 + 3]), "label": "ab"[at % 2]} for at in range(count)]
    return write_rows(path, rows)


def test_texts_with_labels_and_neighbours_from_elsewhere(run: Path, tmp_path: Path) -> None:
    data, other = labelled(tmp_path / "labels.jsonl"), labelled(tmp_path / "other.jsonl", 50)
    alone = evaluate_folder(run, data, device="cpu", dimensions=[8]).summary
    beside = evaluate_folder(run, data, device="cpu", against=other).summary
    assert alone["task"] == "labels" and list(alone["per_label"]) == ["first 8 numbers"]
    assert alone["metrics"]["same_label_auc"] == beside["metrics"]["same_label_auc"]
    assert alone["metrics"]["neighbour_accuracy"] != beside["metrics"]["neighbour_accuracy"]
    with pytest.raises(DataError, match="cannot be cut"):
        evaluate_folder(run, data, device="cpu", dimensions=[16])


def test_the_command_and_its_refusals(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    data = str(labelled(tmp_path / "labels.jsonl"))
    command = ["trivium", "eval", str(run), data, "--dims", "8", "--dims", "4", "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["per_label"]) == ["first 8 numbers", "first 4 numbers"]
    with pytest.raises(ModelError, match="only models that write"):
        evaluate_folder(run, Path(data), rows=3, device="cpu")
    checkpoint = max((run / "checkpoints").glob("*/model"))
    with pytest.raises(ModelError, match="--vectors"):
        evaluate_folder(checkpoint, Path(data), device="cpu")
    with pytest.raises(ModelError, match="belong to vectors"):
        evaluate_folder(checkpoint, Path(data), dimensions=[4], device="cpu")
    measured = evaluate_folder(checkpoint, Path(data), vectors=True, device="cpu").summary["metrics"]
    final = evaluate_folder(run, Path(data), device="cpu").summary["metrics"]
    assert measured["neighbour_accuracy"]["value"] >= 0 and final["neighbour_accuracy"]["value"] >= 0
    with pytest.raises(DataError, match="with one of several labels"):
        rows = [{"text": word, "label": "a"} for word in WORDS]
        evaluate_folder(run, write_rows(tmp_path / "one.jsonl", rows), device="cpu")
