"""Rows of text with labels: how they are recognised, framed, counted and refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.labelled import bytelevel, opened, wordpiece, write_rows
from trivium.data.framing import framing_of, shares
from trivium.data.loader import Loader
from trivium.errors import DataError
from trivium.tokenizers.tokenizer import Tokenizer

GOOD = [{"text": "a good film", "label": "good"}, {"text": "a bad story", "label": "bad"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return wordpiece(tmp_path_factory.mktemp("wordpiece"))


def problem(error: pytest.ExceptionInfo[DataError]) -> str:
    assert len(str(error.value).splitlines()) <= 5
    return str(error.value)


# Frames


@pytest.mark.parametrize(
    ("frame", "single", "pair", "second"),
    [
        ("template", "CxS", "CxSyS", 1),
        ("bert", "CxS", "CxSyS", 1),
        ("none", "CxS", "CxSyS", 1),
        ("roberta", "CxS", "CxSSyS", 0),
    ],
)
def test_frame_is_the_tokenizers_own(tmp_path: Path, frame: str, single: str, pair: str, second: int) -> None:
    framing = framing_of(wordpiece(tmp_path, frame=frame))
    names = {2: "C", 3: "S", 10: "x", 11: "y"}
    one, two = framing.frame([10]), framing.frame([10], [11])
    assert "".join(names[token] for token in one.ids) == single
    assert "".join(names[token] for token in two.ids) == pair
    assert two.second == (two.ids.index(11) if second else len(two.ids))
    assert [two.ids[start] for start in two.starts] == [10, 11]
    assert framing.closing and framing.empty_answer(9) == 0


def test_frame_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = wordpiece(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    encoded = theirs("a good film", "a bad story", return_token_type_ids=True)
    framed = framing_of(tokenizer).frame(tokenizer.encode("a good film"), tokenizer.encode("a bad story"))
    assert framed.ids == encoded["input_ids"]
    assert [int(at >= framed.second) for at in range(len(framed.ids))] == encoded["token_type_ids"]


def test_without_a_frame_the_end_token_follows_each_text() -> None:
    tokenizer = bytelevel()
    framing = framing_of(tokenizer)
    assert framing.frame([5, 6]).ids[-1] == tokenizer.eos_id
    assert framing.frame([5], [6]).ids[-3:] == [tokenizer.eos_id, 6, tokenizer.eos_id]
    assert not framing.closing and framing.empty_answer(9) == 8


@pytest.mark.parametrize(("lengths", "room"), [([10, 3], 8), ([5, 5], 8), ([100], 7), ([2, 30, 4], 12), ([1, 1], 5)])
def test_the_longest_text_is_cut_first(lengths: list[int], room: int) -> None:
    keep = shares(lengths, room)
    assert sum(keep) == min(sum(lengths), room)
    assert all(kept <= length for kept, length in zip(keep, lengths, strict=True))
    cut = [kept for kept, length in zip(keep, lengths, strict=True) if kept < length]
    assert not cut or max(keep) - min(cut) <= 1


# What labels mean


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        (["b", "a", "b"], "single_label", ("a", "b")),
        ([10, 2, 2], "single_label", ("2", "10")),
        ([True, False, True], "single_label", ("false", "true")),
        ([["x", "y"], [], ["y"]], "multi_label", ("x", "y")),
        ([1.5, 2.0, 3], "regression", ("label",)),
        ([-1, 1, -1], "single_label", ("-1", "1")),
    ],
)
def test_problem_and_labels_come_from_the_data(
    tmp_path: Path, tokenizer: Tokenizer, values: list[Any], expected: str, names: tuple[str, ...]
) -> None:
    rows = [{"text": "a good film", "label": value} for value in values]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer)
    assert (dataset.problem, dataset.labels) == (expected, names)
    assert dataset.label_set.names == names


def test_csv_and_its_numbers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.csv").write_text("sentence,score\na good film,4.5\na bad story,1\n")
    (tmp_path / "b.csv").write_text("sentence,class\na good film,1\na bad story,0\n")
    (tmp_path / "c.csv").write_text('review,labels\na good film,"x;y"\na bad story,\n')
    numbers = opened(tmp_path / "a.csv", tokenizer)
    assert numbers.problem == "regression" and numbers.labels == ("score",)
    assert numbers.fields["label"].tolist() == [[4.5], [1.0]]
    assert opened(tmp_path / "b.csv", tokenizer).fields["label"].tolist() == [1.0, 0.0]
    several = opened(tmp_path / "c.csv", tokenizer, labels={"separator": ";"})
    assert several.problem == "multi_label" and several.fields["label"].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_parquet(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": ["a good film", "a bad story"], "label": [1, 0]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    dataset = opened(tmp_path / "rows.parquet", tokenizer, labels={"names": {"0": "bad", "1": "good"}})
    assert dataset.labels == ("bad", "good") and dataset.counts == {"bad": 1, "good": 1}


def test_columns_of_zero_and_one_with_gaps(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": "a good film", "S": 1, "H": 0},
        {"prompt": "a bad story", "S": 0, "H": 1},
        {"prompt": "x", "S": 1},
    ]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, labels={"label": ["S", "H"]})
    assert dataset.labels == ("S", "H") and dataset.problem == "multi_label"
    assert dataset.fields["label"][:2].tolist() == [[1, 0], [0, 1]]
    assert dataset.fields["label"][2, 0] == 1 and math.isnan(dataset.fields["label"][2, 1])


def test_problem_can_be_said(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "stars": 1}, {"text": "b", "stars": 5}]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, labels={"problem": "regression"})
    assert dataset.problem == "regression" and dataset.fields["label"].tolist() == [[1.0], [5.0]]


@pytest.mark.parametrize("pair", [("text_a", "text_b"), ("premise", "hypothesis"), ("question1", "question2")])
def test_two_texts_are_told_apart(tmp_path: Path, tokenizer: Tokenizer, pair: tuple[str, str]) -> None:
    rows = [{pair[0]: "a good film", pair[1]: "a bad story", "label": label} for label in "ab"]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer)
    second = int(dataset.fields["second"][0])
    ids = dataset.sample(0).sequences[0].ids
    assert tokenizer.decode(ids[second:]) == "a bad story" and 0 < second < len(ids)


def test_columns_can_be_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"a": "a good film", "b": "a story", "c": label, "text": "not this"} for label in "xy"]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    dataset = opened(path, tokenizer, labels={"text": "a", "text_pair": "b", "label": "c"}, keep_rows=True)
    assert dataset.rows is not None and dataset.rows[0] == {"text": "a good film", "text_pair": "a story"}


def test_account_and_batches(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*GOOD * 5, {"text": "a good film " * 30, "label": "good"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    dropped = opened(path, tokenizer, length=16, truncation="drop")
    assert dropped.account["input"] == 11 and dropped.account["kept"] == 10
    assert dropped.account["dropped"] == {"longer than a row": 1}
    cut = opened(path, tokenizer, length=16, truncation="right")
    assert cut.lengths[-1] == 16 and cut.sample(10).sequences[0].ids[-1] == 3
    assert cut.account["truncated_samples"] == 1
    loader = Loader(cut, rows=2, micro_rows=2, sequence_length=16, packing="best_fit", seed=0)
    seen: list[str] = []
    for batch in loader.evaluation():
        assert (batch.targets == -100).all()
        assert batch.fields["label"].shape == (batch.layout.sequences,)
        seen += batch.sample_ids
    assert sorted(seen) == sorted(cut.sample_id(at) for at in range(len(cut)))
    assert (
        cut.summary()["labels"] == {"bad": 5, "good": 6} and cut.summary()["trained_tokens"] == cut.summary()["tokens"]
    )


def test_padding_has_the_shape_of_several_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a good film", "labels": ["x"]}, {"text": "a bad story", "labels": ["y"]}]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer)
    loader = Loader(dataset, rows=2, micro_rows=2, sequence_length=32, packing="best_fit", seed=0, pad_rows=True)
    batch = loader.update(0)[0]
    assert batch.layout.sequences > 2 and batch.fields["label"].shape == (batch.layout.sequences, 2)
    assert len(batch.sample_ids) == 4


def test_fingerprint_knows_labels_and_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def fingerprint(rows: list[dict[str, str]]) -> str:
        return opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer).fingerprint()

    assert fingerprint(GOOD) == fingerprint(GOOD)
    assert fingerprint(GOOD) != fingerprint(GOOD[::-1])
    assert fingerprint(GOOD) != fingerprint([{**row, "label": row["label"] + "!"} for row in GOOD])


# What is refused


def refused(tmp_path: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]], **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, **settings)
    return problem(error)


def test_label_column_is_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = refused(tmp_path, tokenizer, [{"text": "a", "lable": "x"}])
    assert "no column for the label" in said and "rows.jsonl:1" in said and "data.labels.label=lable" in said
    said = refused(tmp_path, tokenizer, GOOD, labels={"label": "stars"})
    assert "no column 'stars'" in said and "columns: text, label" in said


def test_text_column_is_missing_or_empty(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert "data.labels.text" in refused(tmp_path, tokenizer, [{"txet": "a", "label": "x"}])
    assert "rows.jsonl:2" in refused(tmp_path, tokenizer, [GOOD[0], {"text": " ", "label": "x"}])
    assert "no text but a number" in refused(tmp_path, tokenizer, [{"text": 3, "label": "x"}])


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_label(tmp_path: Path, tokenizer: Tokenizer, empty: Any) -> None:
    said = refused(tmp_path, tokenizer, [*GOOD, {"text": "x", "label": empty}])
    assert "the label is empty" in said and "rows.jsonl:3" in said


def test_one_label_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert "the same label" in refused(tmp_path, tokenizer, [GOOD[0]] * 3)


def test_every_row_its_own_label(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "label": f"id-{at}"} for at in range(30)]
    assert "30 different labels in 30 rows" in refused(tmp_path, tokenizer, rows)


def test_label_that_training_has_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = opened(write_rows(tmp_path / "train.jsonl", GOOD), tokenizer)
    path = write_rows(tmp_path / "held.jsonl", [GOOD[0], {"text": "x", "label": "goood"}])
    with pytest.raises(DataError) as error:
        opened(path, tokenizer, like=train.label_set)
    said = problem(error)
    assert "does not occur in the training data" in said and "held.jsonl:2" in said and "did you mean good" in said


def test_held_out_data_may_lack_a_label(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = opened(write_rows(tmp_path / "train.jsonl", GOOD), tokenizer)
    held = opened(write_rows(tmp_path / "held.jsonl", GOOD[:1]), tokenizer, like=train.label_set)
    assert held.labels == train.labels and held.fields["label"].tolist() == [1.0]


def test_number_that_is_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": "many"}]
    assert "is no number" in refused(tmp_path, tokenizer, rows, labels={"problem": "regression"})


def test_cell_that_is_neither_zero_nor_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "x": 1, "y": 2}]
    said = refused(tmp_path, tokenizer, rows, labels={"label": ["x", "y"], "problem": "multi_label"})
    assert "neither 0 nor 1" in said


def test_label_that_never_applies(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "x": 1, "y": 0}, {"text": "b", "x": 0, "y": 0}]
    assert "never applies" in refused(tmp_path, tokenizer, rows, labels={"label": ["x", "y"]})


def test_text_longer_than_a_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*GOOD, {"text": "a good film " * 20, "label": "good"}]
    said = refused(tmp_path, tokenizer, rows, length=16)
    assert "a row has room for 14" in said and "rows.jsonl:3" in said and "data.sequence_length" in said


def test_quarantine_sets_rows_aside_and_counts_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [*GOOD, {"text": "x", "label": ""}, {"text": "", "label": "good"}]
    dataset = opened(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, on_error="quarantine")
    assert len(dataset) == 2 and dataset.account["input"] == 4
    assert sum(dataset.account["quarantined"].values()) == 2


def test_models_without_names_know_labels_by_number(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from trivium.data.labelled import LabelSet

    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    dataset = opened(path, tokenizer, like=LabelSet(("LABEL_0", "LABEL_1")))
    assert np.array_equal(dataset.fields["label"], [1.0, 0.0])
