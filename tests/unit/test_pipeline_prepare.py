"""Groups are never cut in two, duplicates never straddle a split, and the account closes."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from trivium.artifacts import faults
from trivium.artifacts.manifest import content_hash, verify
from trivium.artifacts.record import read_record
from trivium.data.dedup import Signer
from trivium.data.pipeline import run, work
from trivium.data.prepare import TRAIN, VALIDATION, prepare_documents
from trivium.errors import DataError
from trivium.recipe import Source

WORDS = [f"word{n}" for n in range(400)]


def text(seed: int, count: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def altered(original: str, share: float, seed: int = 0) -> str:
    """The same text with some of its words replaced."""
    draw = random.Random(seed)
    return " ".join(f"new{draw.random()}" if draw.random() < share else word for word in original.split())


def write(path: Path, rows) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


@pytest.fixture
def corpus(tmp_path) -> Source:
    """60 groups of 5, exact and near duplicates inside groups and across them, empty texts and a bad row."""
    rows = []
    for group in range(60):
        for number in range(5):
            body = text(100 * group + number)
            if number == 3 and group % 4 == 0:
                body = text(100 * group)
            if number == 4 and group >= 30:
                body = altered(text(100 * (group - 30) + 1), 0.005, group)
            rows.append({"id": f"{group}.{number}", "text": body, "meta": {"group": f"g{group}"}})
    rows += [{"id": "empty", "text": " \n"}, {"id": "bad", "text": 7}]
    return write(tmp_path / "corpus.jsonl", rows)


def prepared(source, output, **options):
    options = {"validation_fraction": 0.2, "on_error": "quarantine", **options}
    return prepare_documents(source, output, **options)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_account_closes_and_nothing_held_out_is_in_the_training_data(corpus, tmp_path):
    done = prepared(corpus, tmp_path / "out")
    train, held_out = rows_of(done.train), rows_of(done.validation)
    report = done.report
    assert report["kept"] == {"train": len(train), "validation": len(held_out)}
    left = sum(report["dropped"].values()) + sum(report["merged"].values())
    assert report["input"] == 302 == len(train) + len(held_out) + left + 1
    assert report["dropped"]["empty text"] == 1
    assert report["quarantined"] == {"the field 'text' holds no text but int": 1}
    assert report["merged"]["exact duplicate"] > 5
    assert report["merged"]["near duplicate"] > 5
    assert report["bytes"] == {"train": done.train.stat().st_size, "validation": done.validation.stat().st_size}
    verify(done.folder)
    assert "bad" not in {row["id"] for row in train}
    assert "corpus.jsonl:302" in (done.folder / "steps/00-read/decisions.jsonl").read_text()

    groups = [{row["meta"]["group"] for row in rows} for rows in (train, held_out)]
    assert not groups[0] & groups[1]
    assert 4 <= len(groups[1]) <= 22
    shingles = [[set(Signer().shingles(row["text"]).tolist()) for row in rows] for rows in (train, held_out)]
    assert max(len(one & other) / len(one | other) for one in shingles[0] for other in shingles[1]) < 0.85

    duplicates = rows_of(done.folder / "steps/02-minhash/decisions.jsonl")
    kept = {row["id"] for row in (*train, *held_out)}
    assert Counter(row["reason"] for row in duplicates) == report["merged"]
    assert all(row["into"] in kept and row["id"] not in kept and row["similarity"] >= 0.6 for row in duplicates)


def test_it_is_the_same_every_time_and_does_nothing_twice(corpus, tmp_path, monkeypatch):
    first = prepared(corpus, tmp_path / "one")
    second = prepared(corpus, tmp_path / "two")
    assert content_hash(first.folder) == content_hash(second.folder)
    monkeypatch.setattr(run, "_Run", None)
    again = prepared(corpus, tmp_path / "one")
    assert again.report == first.report
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def groups_of(done) -> dict[str, int]:
    return json.loads((done.folder / "steps/03-split/splits.json").read_text())["groups"]


def test_each_setting_has_an_effect(corpus, tmp_path):
    plain = prepared(corpus, tmp_path / "plain")
    assert groups_of(prepared(corpus, tmp_path / "seed", seed=1)) != groups_of(plain)
    assert groups_of(prepared(corpus, tmp_path / "some", validation_fraction=0.5))["validation"] > 20
    none = prepared(corpus, tmp_path / "none", validation_fraction=0)
    assert none.validation is None
    assert not (none.folder / VALIDATION).exists()
    short = prepared(corpus, tmp_path / "short", least_characters=1545)
    assert short.report["dropped"]["too short"] > 20
    with pytest.raises(DataError, match="holds no text"):
        prepared(corpus, tmp_path / "error", on_error="error")
    assert not (tmp_path / "error").exists()


def test_other_sources_or_settings_replace_what_is_there(corpus, tmp_path):
    first = prepared(corpus, tmp_path / "out").report
    assert prepared(corpus, tmp_path / "out", seed=1).report != first
    assert prepared(corpus, tmp_path / "out").report == first


def test_too_few_groups_to_hold_one_out(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": text(n)} for n in range(3)])
    with pytest.raises(DataError, match="no document is left for validation"):
        prepare_documents(source, tmp_path / "out", validation_fraction=0.001)
    assert not (tmp_path / "out").exists()


def test_several_sources_progress_and_lineage(tmp_path):
    sources = [
        write(tmp_path / f"{name}.jsonl", [{"text": text(n)} for n in numbers])
        for name, numbers in (("a", range(40)), ("b", range(30, 60)))
    ]
    seen = defaultdict(int)
    done = prepare_documents(sources, tmp_path / "out", on_progress=lambda stage, count: seen.update({stage: count}))
    assert done.report["merged"] == {"exact duplicate": 10}
    assert (seen["clean"], seen["minhash"], seen["split"]) == (70, 60, 60)
    parents = read_record(done.folder).parents
    assert [(Path(parent.path).name, parent.role) for parent in parents] == [
        ("a.jsonl", "documents"),
        ("b.jsonl", "documents"),
    ]


class Killed(BaseException):
    pass


def kill_at(monkeypatch, number: int) -> None:
    """Die at the call number `number` to the operating system."""
    calls = iter(range(number + 1))

    def hook(operation, path):
        if next(calls, None) is None:
            raise Killed

    monkeypatch.setattr(faults, "hook", hook)


def test_killed_at_any_moment_it_ends_with_the_same_files(tmp_path, monkeypatch):
    rows = [{"id": f"{n}", "text": text(n % 35, 50), "meta": {"group": f"g{n % 9}"}} for n in range(40)]
    corpus = write(tmp_path / "corpus.jsonl", rows)
    monkeypatch.setattr(run, "PART_BYTES", 4000)
    wanted = content_hash(prepared(corpus, tmp_path / "whole", validation_fraction=0.5).folder)
    cleaned = []
    real = work._Maker.part
    monkeypatch.setattr(work._Maker, "part", lambda self, *rest: cleaned.append(rest) or real(self, *rest))
    again: list[int] = []
    number = 0
    while True:
        output = tmp_path / f"out{number}"
        kill_at(monkeypatch, number)
        try:
            prepared(corpus, output, validation_fraction=0.5)
            break
        except Killed:
            pass
        monkeypatch.setattr(faults, "hook", None)
        cleaned.clear()
        assert content_hash(prepared(corpus, output, validation_fraction=0.5).folder) == wanted
        assert output.joinpath(TRAIN).exists()
        again.append(len(cleaned))
        number += 31
    assert len(again) > 10
    assert sorted(again, reverse=True) == again, "the later it was killed, the less is done again"
    assert again[-1] == 0
