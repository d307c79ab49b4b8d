"""Data sets: each token a target once, nothing cut or dropped in silence, and the same from memory and disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trivium.artifacts import faults
from trivium.artifacts.manifest import content_hash
from trivium.artifacts.record import read_record
from trivium.data import shards, tokenise
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader
from trivium.errors import ArtifactDamaged, DataError
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

SENTENCE = "the quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([SENTENCE * 20], vocab_size=300)


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(train, tokenizer, *, kind="documents", cache=None, sequence_length=16, **settings) -> Dataset:
    section = DataSection(train=train, sequence_length=sequence_length, **settings)
    return open_dataset(section.train, kind=kind, tokenizer=tokenizer, settings=section, cache=cache)


@pytest.fixture
def corpus(tmp_path) -> str:
    rows = [{"id": f"d{n}", "text": f"{n} " + SENTENCE * (n % 9)} for n in range(40)]
    return write(tmp_path / "corpus.jsonl", [*rows, {"text": "  "}])


def question(n: int, answer: str = "the dog") -> dict[str, str]:
    return {"prompt": f"question {n}:", "completion": f" {answer} {n}"}


# Documents


def test_every_token_of_a_document_is_a_target_exactly_once(corpus, tokenizer):
    dataset = opened(corpus, tokenizer)
    targets: dict[str, list[int]] = {}
    for number in range(len(dataset)):
        sample = dataset.sample(number)
        (sequence,) = sample.sequences
        assert 2 <= len(sequence.ids) <= 17
        assert sequence.trained == [False] + [True] * (len(sequence.ids) - 1)
        name, _, piece = sample.id.partition("#")
        before = targets.setdefault(name, list(sequence.ids[:1]))
        assert sequence.ids[0] == before[-1], "pieces overlap by one token"
        assert int(piece or 0) == (len(before) - 1) // 16
        before.extend(sequence.ids[1:])
    rows = [json.loads(line) for line in Path(corpus).read_text().splitlines()][:40]
    assert targets == {row["id"]: tokenizer.encode_document(row["text"]) for row in rows}


def test_the_summary_accounts_for_everything(corpus, tokenizer):
    dataset = opened(corpus, tokenizer, sequence_length=64)
    found = dataset.summary()
    rows = [json.loads(line) for line in Path(corpus).read_text().splitlines()][:40]
    tokens = [len(tokenizer.encode_document(row["text"])) - 1 for row in rows]
    assert found["input"] == 41
    assert found["kept"] == found["documents"] == 40
    assert found["dropped"] == {"empty text": 1}
    assert found["quarantined"] == {}
    assert found["formats"] == {"jsonl": 1}
    assert found["tokens"] == found["trained_tokens"] == sum(tokens)
    assert found["bytes"] == sum(len(row["text"].encode()) for row in rows)
    assert found["cut_documents"] == sum(count > 64 for count in tokens)
    assert sum(found["length_histogram"].values()) == found["samples"] == len(dataset)
    assert found["first_row"]["id"] == "d0"
    assert found["first_row"]["sequences"][0]["text"].startswith("<|bos|>0 ")
    assert json.loads(json.dumps(found)) == found


def test_lengths_of_a_histogram_are_in_their_buckets(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"text": "\u2603" * count} for count in range(1, 30)])
    dataset = opened(path, tokenizer, sequence_length=256)
    expected = Counter(
        "1" if length == 1 else f"{1 << (length.bit_length() - 1)}-{(2 << (length.bit_length() - 1)) - 1}"
        for length in dataset.lengths.tolist()
    )
    found = dataset.summary()["length_histogram"]
    assert {name: count for name, count in found.items() if count} == expected


def test_the_fingerprint_follows_what_a_model_sees(corpus, tokenizer, tmp_path):
    first = opened(corpus, tokenizer).fingerprint()
    assert opened(corpus, tokenizer).fingerprint() == first
    assert opened(corpus, tokenizer, sequence_length=17).fingerprint() != first
    assert opened(corpus, train_bpe([SENTENCE * 20], vocab_size=290)).fingerprint() != first
    changed = write(tmp_path / "other.jsonl", [{"text": "something else"}])
    assert opened(changed, tokenizer).fingerprint() != first


def test_malformed_rows_stop_or_are_set_aside(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"text": "good"}, {"text": 1}, {"body": "x"}, {"text": "also good"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        opened(path, tokenizer)
    found = opened(path, tokenizer, on_error="quarantine").summary()
    assert found["input"] == 4 == found["kept"] + sum(found["quarantined"].values())


def test_nothing_to_train_on_is_an_error(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"text": " "}, {"text": ""}])
    with pytest.raises(DataError) as caught:
        opened(path, tokenizer)
    assert "empty text: 2" in str(caught.value)
    empty = write(tmp_path / "b.jsonl", [{"text": 1}])
    full = write(tmp_path / "c.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"nothing is left[\s\S]*b\.jsonl"):
        opened([{"path": full, "weight": 2}, {"path": empty}], tokenizer, on_error="quarantine")


# On the disk


def test_from_the_disk_it_is_the_same_as_from_memory(corpus, tokenizer, tmp_path):
    memory = opened(corpus, tokenizer)
    cache = tmp_path / "cache"
    for disk in (opened(corpus, tokenizer, cache=cache), opened(corpus, tokenizer, cache=cache)):
        assert disk.fingerprint() == memory.fingerprint()
        assert disk.summary() == memory.summary()
        assert [disk.sample(n) for n in range(len(disk))] == [memory.sample(n) for n in range(len(memory))]
        assert disk.table.tokens[0].dtype == np.dtype("<u2")
    assert len(list(cache.iterdir())) == 1


def test_documents_are_tokenised_once_for_each_content_and_tokenizer(corpus, tokenizer, tmp_path, monkeypatch):
    calls = []
    real = tokenise._encode
    monkeypatch.setattr(tokenise, "_encode", lambda *given: calls.append(1) or real(*given))
    cache = tmp_path / "cache"
    opened(corpus, tokenizer, cache=cache)
    first = len(calls)
    assert first
    opened(corpus, tokenizer, cache=cache, sequence_length=64)
    assert len(calls) == first
    opened(corpus, train_bpe([SENTENCE * 20], vocab_size=290), cache=cache)
    assert len(calls) == 2 * first
    monkeypatch.setattr(shards, "code_fingerprint", lambda: "newer code")
    opened(corpus, tokenizer, cache=cache)
    assert len(calls) == 3 * first
    Path(corpus).write_text('{"text": "another corpus"}\n')
    assert opened(corpus, tokenizer, cache=cache).summary()["documents"] == 1


def test_the_shards_know_what_they_were_made_of(corpus, tokenizer, tmp_path):
    (tmp_path / "tok").mkdir()
    tokenizer.save(tmp_path / "tok")
    loaded = Tokenizer.load(tmp_path / "tok")
    opened(corpus, loaded, cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    record = read_record(folder)
    assert record.kind == "tokens"
    assert [(parent.role, parent.hash) for parent in record.parents] == [
        ("documents", content_hash(Path(corpus))),
        ("tokenizer", content_hash(tmp_path / "tok")),
    ]


def test_a_folder_of_shards_is_a_source(corpus, tokenizer, tmp_path):
    memory = opened(corpus, tokenizer)
    opened(corpus, tokenizer, cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert opened(str(folder), tokenizer).fingerprint() == memory.fingerprint()
    with pytest.raises(DataError, match="another tokenizer"):
        opened(str(folder), train_bpe([SENTENCE * 20], vocab_size=290))
    damaged = next(folder.glob("*.bin"))
    damaged.write_bytes(b"\xff" + damaged.read_bytes()[1:])
    with pytest.raises(ArtifactDamaged, match=damaged.name):
        opened(str(folder), tokenizer)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_shards_in_the_cache_are_made_again(corpus, tokenizer, tmp_path, damage):
    first = opened(corpus, tokenizer, cache=tmp_path / "cache").fingerprint()
    (folder,) = (tmp_path / "cache").iterdir()
    for name in ("bin", "index", "ids"):
        path = next(folder.glob(f"*.{name}"))
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(b"\xff" + path.read_bytes()[1:] if damage == "flip" else path.read_bytes()[:-3])
        assert opened(corpus, tokenizer, cache=tmp_path / "cache").fingerprint() == first


class Killed(BaseException):
    pass


def test_killed_while_tokenising_it_ends_with_the_same_shards(tmp_path, tokenizer, monkeypatch):
    corpus = write(tmp_path / "corpus.jsonl", [{"text": SENTENCE * 3} for _ in range(12)])
    monkeypatch.setattr(shards.tokenise_on_disk, "__kwdefaults__", {"shard_bytes": 400})
    encoded: list[str] = []
    real = tokenise._encode
    monkeypatch.setattr(tokenise, "_encode", lambda given, texts: encoded.extend(texts) or real(given, texts))

    def artifact(cache: Path) -> str:
        dataset = opened(corpus, tokenizer, cache=cache)
        assert len(dataset.table.tokens) == 4
        (folder,) = (path for path in cache.iterdir())
        return content_hash(folder)

    wanted = artifact(tmp_path / "whole")
    again: list[int] = []
    for number in range(0, 10_000, 7):
        cache = tmp_path / f"cache{number}"
        calls = iter(range(number + 1))

        def hook(operation, path, calls=calls):
            if next(calls, None) is None:
                raise Killed

        monkeypatch.setattr(faults, "hook", hook)
        try:
            assert artifact(cache) == wanted
            break
        except Killed:
            monkeypatch.setattr(faults, "hook", None)
        encoded.clear()
        assert artifact(cache) == wanted
        again.append(len(encoded))
    assert len(again) > 10
    assert sorted(again, reverse=True) == again, "the later it was killed, the less is done again"
    assert (again[0], again[-1]) == (12, 0)


# Instructions, preferences and prompts


def test_only_the_answer_is_trained(tmp_path, tokenizer):
    dataset = opened(write(tmp_path / "a.jsonl", [question(1)]), tokenizer, kind="instructions", sequence_length=64)
    (sequence,) = dataset.sample(0).sequences
    trained = [token for token, flag in zip(sequence.ids, sequence.trained, strict=True) if flag]
    assert tokenizer.decode(trained, skip_special=False) == " the dog 1<|eos|>"
    found = dataset.summary()
    assert found["trained_tokens"] == len(trained)
    assert found["tokens"] == len(sequence.ids) - 1


def long_and_short(tmp_path) -> str:
    rows = [question(n, "dog " * (20 if n % 4 == 0 else 1)) for n in range(12)]
    return write(tmp_path / "a.jsonl", rows)


def test_a_sample_longer_than_a_row_is_an_error_by_default(tmp_path, tokenizer):
    with pytest.raises(DataError) as caught:
        opened(long_and_short(tmp_path), tokenizer, kind="instructions", sequence_length=32)
    message = str(caught.value)
    assert "a.jsonl:1" in message
    assert "a row holds 32" in message
    assert "sequence_length to" in message


def test_longer_samples_are_dropped_or_cut_and_counted(tmp_path, tokenizer):
    path = long_and_short(tmp_path)
    whole = opened(path, tokenizer, kind="instructions", sequence_length=512).summary()
    dropped = opened(path, tokenizer, kind="instructions", sequence_length=32, truncation="drop").summary()
    assert dropped["dropped"] == {"longer than a row": 3}
    assert dropped["samples"] == 9 == dropped["input"] - 3
    cut = opened(path, tokenizer, kind="instructions", sequence_length=32, truncation="right").summary()
    assert cut["truncated_samples"] == 3
    assert cut["truncated_tokens"] == whole["tokens"] - cut["tokens"] > 0
    assert cut["samples"] == 12


def test_truncation_that_removes_all_answers_is_refused(tmp_path, tokenizer):
    rows = [{"prompt": "the dog jumps over " * 20, "completion": " yes"} for _ in range(3)] + [
        question(n) for n in range(7)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        opened(path, tokenizer, kind="instructions", sequence_length=24, truncation="right")
    assert "3 of 10 samples have no trained token (30.0%)" in str(caught.value)
    assert "after truncation: 3" in str(caught.value)
    accepted = opened(
        path, tokenizer, kind="instructions", sequence_length=24, truncation="right", max_untrained=0.3
    ).summary()
    assert accepted["dropped"] == {"no trained token is left after truncation": 3}
    assert accepted["input"] == 10


def test_rows_without_a_trained_token_are_counted(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]
    rows = [question(n) for n in range(9)] + [{"messages": messages}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="1 of 10 samples have no trained token"):
        opened(path, tokenizer, kind="instructions", sequence_length=64)
    found = opened(path, tokenizer, kind="instructions", sequence_length=64, max_untrained=0.1).summary()
    assert found["dropped"] == {"no trained token": 1}


def test_bad_rows_of_instructions_stop_or_are_set_aside(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [question(0), {"neither": 1}, question(2)])
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        opened(path, tokenizer, kind="instructions", sequence_length=64)
    found = opened(path, tokenizer, kind="instructions", sequence_length=64, on_error="quarantine").summary()
    assert sum(found["quarantined"].values()) == 1
    assert found["input"] == 3


def test_a_pair_is_cut_so_that_both_answers_keep_their_part(tmp_path, tokenizer):
    rows = [
        {"prompt": "q:", "chosen": " dog" * 40, "rejected": " fox" * 40},
        {"prompt": "q:", "chosen": " dog" * 40, "rejected": " no"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    dataset = opened(path, tokenizer, kind="preferences", sequence_length=40, truncation="right")
    even, uneven = ([len(s.ids) - 1 for s in dataset.sample(n).sequences] for n in range(2))
    assert even == [20, 20]
    assert sum(uneven) == 40
    assert uneven[1] < 12
    assert dataset.lengths.tolist() == [40, 40]
    assert all(any(s.trained) for n in range(2) for s in dataset.sample(n).sequences)


def test_a_pair_of_which_one_answer_is_cut_away_has_nothing_to_learn(tmp_path, tokenizer):
    rows = [{"prompt": "q:", "chosen": " dog", "rejected": " fox"}] * 9
    rows.append({"prompt": "the dog " * 30, "chosen": " dog", "rejected": " fox"})
    path = write(tmp_path / "a.jsonl", rows)
    found = opened(path, tokenizer, kind="preferences", truncation="right", sequence_length=40, max_untrained=0.1)
    assert found.summary()["dropped"] == {"no trained token is left after truncation": 1}


@pytest.mark.parametrize("kind", ["instructions", "preferences", "prompts"])
def test_rows_from_the_cache_are_the_same(tmp_path, tokenizer, kind, monkeypatch):
    rows = {
        "instructions": [question(n) for n in range(20)],
        "preferences": [{"prompt": "q", "chosen": f"a{n}", "rejected": "b", "margin": n / 3} for n in range(20)],
        "prompts": [{"prompt": f"q{n}", "answer": n} for n in range(20)],
    }[kind]
    paths = [write(tmp_path / f"{n}.jsonl", [*part, {"x": 1}]) for n, part in enumerate((rows[:7], rows[7:]))]
    train = [{"path": path, "weight": n + 1} for n, path in enumerate(paths)]
    memory = opened(train, tokenizer, kind=kind, sequence_length=64, on_error="quarantine")
    for _ in range(2):
        options = {"kind": kind, "sequence_length": 64, "on_error": "quarantine"}
        disk = opened(train, tokenizer, cache=tmp_path / "cache", **options)
        assert disk.fingerprint() == memory.fingerprint()
        assert disk.summary() == memory.summary()
        assert disk.parts == memory.parts
        assert [disk.sample(n) for n in range(20)] == [memory.sample(n) for n in range(20)]
        if kind != "prompts":  # from now on nothing is encoded
            monkeypatch.setattr(f"trivium.data.{kind}.encode_row", None)


def test_the_cache_of_rows_follows_content_and_settings(tmp_path, tokenizer):
    cache = tmp_path / "cache"
    path = write(tmp_path / "a.jsonl", [question(n) for n in range(20)])

    def fingerprint(**options) -> str:
        return opened(
            path, tokenizer, kind="instructions", cache=cache, **{"sequence_length": 64, **options}
        ).fingerprint()

    first = fingerprint()
    (folder,) = cache.iterdir()
    damaged = folder / "tokens.bin"
    damaged.write_bytes(b"\xff" + damaged.read_bytes()[1:])
    assert fingerprint() == first
    assert fingerprint(sequence_length=128) == first
    assert len(list(cache.iterdir())) == 2
    assert fingerprint(sequence_length=15, truncation="right") != first
    write(Path(path), [question(n) for n in range(21)])
    assert fingerprint() != first


def test_prompts_keep_their_row(tmp_path, tokenizer):
    rows = [{"prompt": "the dog", "answer": "1"}, {"prompt": [{"role": "user", "content": "hi"}], "answer": "2"}]
    dataset = opened(write(tmp_path / "a.jsonl", rows), tokenizer, kind="prompts", sequence_length=64)
    assert [dataset.sample(n).row["answer"] for n in range(2)] == ["1", "2"]
    assert dataset.sample(1).sequences[0].ids == tokenizer.encode_prompt(rows[1]["prompt"])
    assert dataset.summary()["trained_tokens"] == 0
    with pytest.raises(DataError, match="no prompt"):
        opened(write(tmp_path / "b.jsonl", [{"text": "x"}]), tokenizer, kind="prompts", sequence_length=64)


def test_an_empty_loader_is_refused_and_a_wrong_rank_too(corpus, tokenizer):
    dataset = opened(corpus, tokenizer)
    with pytest.raises(ValueError, match="rank 2"):
        Loader(dataset, rows=2, micro_rows=1, sequence_length=16, packing="none", seed=0, rank=2, world=2)
