"""Pairs of a source and a target: names of columns, what is trained, what is cut, what is refused."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader
from trivium.data.sides import text_frame
from trivium.errors import DataError
from trivium.methods.seq2seq import SequenceToSequence
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the quick brown fox jumps over the lazy dog. " * 20], vocab_size=300)


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(train, tokenizer, *, cache=None, **settings) -> Dataset:
    section = DataSection.model_validate({"train": train, "sequence_length": 32, **settings})
    return open_dataset(section.train, kind="pairs", tokenizer=tokenizer, settings=section, cache=cache)


def texts(dataset: Dataset, number: int = 0) -> list[str]:
    return [dataset.tokenizer.decode(list(one.ids), skip_special=False) for one in dataset.sample(number).sequences]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"source": "the fox", "target": "a dog"}, {}),
        ({"document": "the fox", "summary": "a dog", "id": 7}, {}),
        ({"article": "the fox", "highlights": "a dog"}, {}),
        ({"translation": {"en": "the fox", "de": "a dog"}}, {"source": "en", "target": "de"}),
        ({"translation": {"de": "a dog", "en": "the fox"}}, {"source": "en", "target": "de"}),
        ({"en": "the fox", "de": "a dog"}, {"source": "en", "target": "de"}),
        ({"question": "the fox", "target": "a dog"}, {"source": "question"}),
    ],
)
def test_columns_are_known_or_named(tokenizer, tmp_path, row, settings):
    dataset = opened(written(tmp_path / "a.jsonl", [row]), tokenizer, pairs=settings)
    assert texts(dataset) == ["the fox", "a dog<|eos|>"]
    source, target = dataset.sample(0).sequences
    assert not any(source.trained)
    assert all(target.trained)
    assert dataset.summary()["trained_tokens"] == len(target.ids)
    assert dataset.summary()["tokens"] == len(source.ids) + len(target.ids)


def test_csv_and_parquet_hold_pairs_too(tokenizer, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["source", "target"], ["the fox", "a dog"]])
    pq.write_table(pa.table({"source": ["the fox"], "target": ["a dog"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert texts(opened(str(tmp_path / name), tokenizer)) == ["the fox", "a dog<|eos|>"]


def test_a_prefix_stands_in_front_of_each_source(tokenizer, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"source": "the fox", "target": "a dog"}])
    plain = opened(path, tokenizer, cache=tmp_path / "cache")
    asked = opened(path, tokenizer, cache=tmp_path / "cache", pairs={"prefix": "over: "})
    assert texts(plain)[0] == "the fox"
    assert texts(asked) == ["over: the fox", "a dog<|eos|>"]


@pytest.mark.parametrize(
    ("row", "settings", "problem", "fix"),
    [
        ({"en": "a", "de": "b"}, {}, "no columns for a pair", "data.pairs.source=COLUMN"),
        ({"translation": {"en": "a", "de": "b"}}, {}, "no columns for a pair", "data.pairs.source=COLUMN"),
        ({"source": "a", "target": ""}, {}, "the column 'target' is empty", "remove the row"),
        ({"source": "a", "target": 3}, {}, "is no text but", "remove the row"),
        ({"source": "a", "target": "b"}, {"source": "sources"}, "no column 'sources'", "did you mean source"),
    ],
)
def test_what_is_wrong_is_named(tokenizer, tmp_path, row, settings, problem, fix):
    with pytest.raises(DataError, match=problem) as caught:
        opened(written(tmp_path / "a.jsonl", [row]), tokenizer, pairs=settings)
    assert fix in caught.value.fix
    assert "a.jsonl:1" in str(caught.value.where)


def test_long_pairs_follow_the_rule_of_truncation(tokenizer, tmp_path):
    long = "the lazy dog. " * 20
    path = written(tmp_path / "a.jsonl", [{"source": long, "target": "a dog"}, {"source": "a", "target": "b"}])
    with pytest.raises(DataError, match="a row holds 32"):
        opened(path, tokenizer)
    cut = opened(path, tokenizer, truncation="right")
    source, target = cut.sample(0).sequences
    assert len(source.ids) + len(target.ids) == 32
    assert texts(cut)[1] == "a dog<|eos|>", "the short side stays whole"
    assert cut.summary()["truncated_samples"] == 1
    assert cut.summary()["truncated_tokens"] == len(tokenizer.encode(long)) - len(source.ids)
    dropped = opened(path, tokenizer, truncation="drop")
    assert len(dropped) == 1
    assert dropped.summary()["dropped"] == {"longer than a row": 1}


def test_batches_teach_the_target(tokenizer, tmp_path):
    rows = [{"source": "the fox " * (n % 4 + 1), "target": "dog " * (n % 3 + 1)} for n in range(12)]
    dataset = opened(written(tmp_path / "a.jsonl", rows), tokenizer)
    method = SequenceToSequence(SequenceToSequence.Config())
    method.frame = text_frame(tokenizer)
    method.start = tokenizer.pad_id
    loader = Loader(
        dataset, rows=4, micro_rows=4, sequence_length=34, packing="best_fit", seed=0,
        example=method.example, margin=method.margin(tokenizer),
    )  # fmt: skip
    (batch,) = loader.update(0)
    numbers = {dataset.sample_id(number): number for number in range(len(dataset))}
    spans = zip(batch.sample_ids, batch.layout.spans(), batch.source.layout.spans(), strict=True)
    for sample, (start, end), (begin, stop) in spans:
        source, target = dataset.sample(numbers[sample]).sequences
        assert batch.source.ids[begin:stop].tolist() == [tokenizer.bos_id, *source.ids, tokenizer.eos_id]
        assert batch.input_ids[start:end].tolist() == [tokenizer.pad_id, *target.ids[:-1]]
        assert batch.targets[start:end].tolist() == list(target.ids)
    size = sum(len(tokenizer.decode(list(dataset.sample(n).sequences[1].ids)).encode()) for n in range(12))
    assert sum(int(batch.fields["target_bytes"].sum()) for batch in loader.evaluation()) == size
