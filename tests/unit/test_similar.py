"""Rows of texts that belong together: what is recognised, what is refused, and labels drawn equally often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.labelled import opened, wordpiece, write_rows
from trivium.combinations import refuse_wrong_combinations
from trivium.config import resolve
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.intake import Intake
from trivium.data.loader import Loader
from trivium.data.splits.passages import passages
from trivium.errors import ConfigError, DataError
from trivium.recipe import DataSection, Source
from trivium.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return wordpiece(tmp_path_factory.mktemp("tokenizer"))


def similar(path: Path, tokenizer: Tokenizer, cache: Path | None = None, **settings: Any) -> Dataset:
    section = DataSection.model_validate({"train": str(path), "sequence_length": 64, **settings})
    return open_dataset(section.train, kind="similar", tokenizer=tokenizer, settings=section, cache=cache)


def texts(dataset: Dataset, number: int = 0) -> list[str]:
    tokenizer = dataset.tokenizer
    return [tokenizer.decode(list(sequence.ids)) for sequence in dataset.sample(number).sequences]


@pytest.mark.parametrize(
    ("row", "expected", "score"),
    [
        ({"anchor": "good film", "positive": "great film"}, ["good film", "great film"], None),
        (
            {"query": "film", "pos": ["good", "bad"], "neg": ["story", "point"]},
            ["film", "good", "story", "point"],
            None,
        ),
        ({"question": "who", "answer": "ada", "negative_1": "a", "negative_2": ""}, ["who", "ada", "a"], None),
        ({"sentence1": "a film", "sentence2": "a story", "score": "0.5"}, ["a film", "a story"], 0.5),
        ({"text_a": "a film", "text_b": "a story", "label": 1}, ["a film", "a story"], 1.0),
        ({"anchor": "a", "positive": "the", "label": "x"}, ["a", "the"], None),
        ({"text": "a film", "label": "x"}, ["a film"], None),
    ],
)
def test_rows_are_recognised(tmp_path: Path, tokenizer: Tokenizer, row: Any, expected: list[str], score: Any) -> None:
    dataset = similar(write_rows(tmp_path / "a.jsonl", [row]), tokenizer)
    assert texts(dataset) == expected
    assert dataset.fields["texts"].tolist() == [len(expected)]
    assert ("score" in dataset.fields) == (score is not None)
    if score is not None:
        assert dataset.fields["score"].tolist() == [score]
    first = dataset.sample(0).sequences[0].ids
    assert (first[0], first[-1]) == (tokenizer.bos_id, tokenizer.eos_id), "each text stands in its frame"


def test_columns_scores_and_prefixes_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"a": "film", "b": "story", "c": "bad", "d": 4}
    path = write_rows(tmp_path / "a.jsonl", [row])
    named = {"anchor": "a", "positive": "b", "query_prefix": "who ", "passage_prefix": "the "}
    assert texts(similar(path, tokenizer, similar={**named, "negative": "c"})) == ["who film", "the story", "the bad"]
    scored = similar(path, tokenizer, similar={**named, "score": "d", "score_max": 5})
    assert texts(scored) == ["who film", "who story"], "without passages both texts are queries"
    assert scored.fields["score"].tolist() == [pytest.approx(0.8)]


def test_a_line_of_plain_text_is_a_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a good film\n\n  a bad story \n")
    dataset = similar(path, tokenizer)
    assert [texts(dataset, number) for number in range(len(dataset))] == [["a good film"], ["a bad story"]]
    assert dataset.sample_id(1).endswith("#3")
    found = list(passages(Source(path=str(path)), kind="similar", intake=Intake()))
    assert "good film" in found[0][1][0], "sealed sets are looked for in it"


def test_what_is_too_long(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = " ".join(["film"] * 40)
    path = write_rows(tmp_path / "a.jsonl", [{"anchor": "a", "positive": long, "negative": long}])
    with pytest.raises(DataError, match="a row holds 64"):
        similar(path, tokenizer)
    cut = similar(path, tokenizer, truncation="right")
    lengths = [len(sequence.ids) for sequence in cut.sample(0).sequences]
    assert lengths == [3, 30, 31] or lengths == [3, 31, 30], "the longest are cut first"
    assert all(sequence.ids[-1] == tokenizer.eos_id for sequence in cut.sample(0).sequences)
    assert cut.account["formats"]["rows whose texts were cut"] == 1
    short = {"text_length": 12}
    each = similar(path, tokenizer, truncation="right", similar=short)
    assert [len(sequence.ids) for sequence in each.sample(0).sequences] == [3, 12, 12]
    with pytest.raises(DataError, match="text_length is 12"):
        similar(path, tokenizer, sequence_length=128, similar=short)
    with pytest.raises(DataError, match="nothing is left") as caught:
        similar(path, tokenizer, sequence_length=128, similar=short, truncation="drop")
    assert "text longer" in str(caught.value.value)


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({"anchor": " ", "positive": "a"}, {}, "is empty"),
        ({"anchor": "a", "positive": 3}, {}, "holds no text"),
        ({"query": "a", "pos": []}, {}, "is empty"),
        ({"x": "a"}, {}, "no columns of texts"),
        ({"anchor": "a", "positive": "b"}, {"anchor": "anchr"}, "no column 'anchr'"),
        ({"anchor": "a", "positive": "b"}, {"negative": "c"}, "no column 'c'"),
        ({"sentence1": "a", "sentence2": "b", "score": "much"}, {}, "is no number"),
        ({"sentence1": "a", "sentence2": "b"}, {"score": "s"}, "no column 's'"),
    ],
)
def test_malformed_rows(tmp_path: Path, tokenizer: Tokenizer, row: Any, settings: Any, said: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match=said) as caught:
        similar(path, tokenizer, similar=settings)
    assert "a.jsonl:1" in str(caught.value.where)


def test_samples_are_cached_by_their_settings(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"anchor": "film", "positive": "story"}])
    assert texts(similar(path, tokenizer, tmp_path / "cache")) == ["film", "story"]
    again = similar(path, tokenizer, tmp_path / "cache", similar={"query_prefix": "bad "})
    assert texts(again) == ["bad film", "story"]


# Labels drawn equally often


def labelled(folder: Path) -> Path:
    rows = [{"text": f"film {'story ' * (at % 3)}", "label": "ab"[at % 5 == 0]} for at in range(40)]
    return write_rows(folder / "labels.jsonl", rows)


def test_every_label_is_drawn_equally_often(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = opened(labelled(tmp_path), tokenizer)
    dataset = opened(labelled(tmp_path), tokenizer, labels={"balanced": True})
    assert dataset.counts == {"a": 32, "b": 8} and [part.name for part in dataset.parts] == ["a", "b"]
    before = {plain.sample_id(at): (plain.fields["label"][at], plain.table.ids(at).tolist()) for at in range(40)}
    after = {dataset.sample_id(at): (dataset.fields["label"][at], dataset.table.ids(at).tolist()) for at in range(40)}
    assert before == after, "the same samples with the same labels"
    loader = Loader(dataset, rows=8, micro_rows=8, sequence_length=64, packing="none", seed=0)
    for update in range(6):
        (batch,) = loader.update(update)
        assert Counter(batch.fields["label"].tolist()) == {0.0: 4, 1.0: 4}
    assert np.isin(loader.sample_ids(0), list(before)).all()


@pytest.mark.parametrize("change", [{"train": [{"path": "", "weight": 2.0}]}, {"labels": {"problem": "regression"}}])
def test_only_single_labels_are_balanced(tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any]) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "film", "label": at} for at in range(6)])
    settings = {**change, "labels": {"balanced": True, **change.get("labels", {})}}
    settings["train"] = [{"path": str(path), **({"weight": 2.0} if "train" in change else {})}]
    section = DataSection.model_validate({"sequence_length": 64, **settings})
    with pytest.raises(ConfigError, match="drawn by their labels"):
        open_dataset(section.train, kind="labels", tokenizer=tokenizer, settings=section)


def test_positions_are_those_of_a_text_and_not_of_a_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokens")
    recipe = {
        "name": "a",
        "method": "embedding",
        "model": {"preset": "bert-1m"},
        "tokenizer": str(tmp_path / "tokens"),
        "data": {"train": str(write_rows(tmp_path / "a.jsonl", [{"text": "a"}])), "sequence_length": 600},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match="256 learned positions"):
        refuse_wrong_combinations(resolve(recipe))
    refuse_wrong_combinations(resolve(recipe, ["data.similar.text_length=200"]))
