"""Duplicates are found like datasketch finds them, groups are never cut in two, and the account closes."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from trivium.artifacts import faults
from trivium.artifacts.manifest import content_hash, verify
from trivium.artifacts.record import read_record
from trivium.data import prepare
from trivium.data.cleaning import clean
from trivium.data.dedup import PLACES, Signer, clusters, similarity
from trivium.data.prepare import TRAIN, VALIDATION, is_held_out, prepare_documents
from trivium.errors import DataError
from trivium.recipe import Source

WORDS = [f"word{n}" for n in range(400)]


def text(seed: int, count: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def altered(original: str, share: float, seed: int = 0) -> str:
    """The same text with some of its words replaced."""
    draw = random.Random(seed)
    return " ".join(f"new{draw.random()}" if draw.random() < share else word for word in original.split())


def jaccard(one: str, other: str) -> float:
    signer = Signer()
    a, b = set(signer.shingles(one).tolist()), set(signer.shingles(other).tolist())
    return len(a & b) / len(a | b)


# Cleaning


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("a\r\nb\rc\u2028d\x0be", "a\nb\nc\nd\ne"),
        ("cafe\u0301", "café"),
        ("a\ufeffb\x00c\x1bd\x7fe\x9cf", "abcdef"),
        ("a  \nb\t\n\n\n\n\n\nc\n\n", "a\nb\n\n\nc"),
        ("\n\n  indented\n\tkept", "  indented\n\tkept"),
        ("a\xa0b", "a b"),
        ("日本語 😀 ünï", "日本語 😀 ünï"),
        ("", ""),
        (" \n\t\r\n", ""),
    ],
)
def test_cleaning(raw, wanted):
    assert clean(raw) == wanted
    assert clean(wanted) == wanted


@pytest.mark.parametrize(
    "worst",
    ["a" + "\u0301\u0316" * 500_000, " " * 10**6, "\n" * 3_000_000, "\r" * 1_000_000, "é" * 2_000_000, "a" * 5_000_000],
    ids=["marks", "spaces", "lines", "returns", "letters", "one word"],
)  # fmt: skip
def test_cleaning_and_signing_are_linear(worst):
    start = time.process_time()
    Signer().signature(clean(worst))
    assert time.process_time() - start < 3


# Signatures


def test_the_estimate_is_that_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    signer = Signer()
    ours, theirs = [], []
    for seed in range(30):
        one = text(seed)
        other = altered(one, 0.005 * (seed % 10), seed)
        true = jaccard(one, other)
        ours.append(float(similarity(signer.signature(one), signer.signature(other))) - true)
        sketches = []
        for each in (one, other):
            sketch = datasketch.MinHash(num_perm=PLACES)
            words = each.split()
            sketch.update_batch([" ".join(words[at : at + 5]).encode() for at in range(len(words) - 4)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    assert abs(np.mean(ours)) < 0.02
    assert np.std(ours) < 1.5 * np.std(theirs) + 0.005
    assert max(map(abs, ours)) < 0.17


def test_case_and_punctuation_do_not_count_but_words_do():
    signer = Signer()
    plain = signer.signature("One two three four five six seven eight nine")
    assert similarity(plain, signer.signature("one, TWO three: four five -- six seven eight (nine)!")) == 1
    assert similarity(plain, signer.signature("nine eight seven six five four three two one")) < 0.2


def test_signatures_are_the_same_on_every_machine():
    found = Signer().signature("The quick brown fox jumps over the lazy dog")
    assert found[:4].tolist() == [3783493335, 3372128385, 3866395723, 3866395723]
    assert Signer().signature("").shape == (PLACES,)


def test_near_duplicates_are_found_and_others_are_not():
    signer = Signer()
    texts, origin = [], []
    for seed in range(150):
        original = text(seed)
        for number, share in enumerate((0, 0.01, 0.3)):
            texts.append(altered(original, share, seed))
            origin.append((seed, number))
    found = clusters(
        np.stack([signer.signature(each) for each in texts]),
        [bytes([0]) * 8 + bytes(str(n), "ascii") for n in range(len(texts))],
    )
    near = [
        found[3 * seed + 1] == 3 * seed for seed in range(150) if jaccard(texts[3 * seed], texts[3 * seed + 1]) > 0.85
    ]
    assert len(near) > 100
    assert np.mean(near) > 0.95
    far = [n for n, (_, number) in enumerate(origin) if number == 2]
    assert all(found[n] == n for n in far)
    assert all(origin[n][0] == origin[found[n]][0] for n in range(len(texts)))


def test_equal_texts_are_one_cluster_whatever_their_signatures():
    signatures = np.random.default_rng(0).integers(0, 1 << 32, (4, PLACES), dtype=np.uint32)
    assert clusters(signatures, [b"a", b"b", b"a", b"b"]).tolist() == [0, 1, 0, 1]
    assert clusters(np.zeros((0, PLACES), dtype=np.uint32), []).tolist() == []


def test_the_planted_duplicates_of_real_articles_are_found(shared_articles):
    folder, texts = shared_articles
    ids = [line.split(" ", 1)[0] for line in texts]
    signer = Signer()
    signatures = np.stack([signer.signature(line.split(" ", 1)[1]) for line in texts])
    found = clusters(signatures, [bytes(str(n), "ascii") for n in range(len(texts))])
    pairs = {frozenset((ids[n], ids[first])) for n, first in enumerate(found.tolist()) if n != first}
    truth = {frozenset(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()}
    assert pairs == truth


@pytest.fixture
def shared_articles():
    import gzip
    import os

    folder = Path(os.environ.get("TRIVIUM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "minhash_articles"
    if not folder.is_dir():
        pytest.skip("needs the shared data sets")
    return folder, gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()


# Preparing documents


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
    assert report["input"] == 302 == len(train) + len(held_out) + sum(report["dropped"].values()) + 1
    assert report["dropped"]["empty text"] == 1
    assert report["quarantined"] == {"the field 'text' holds no text but int": 1}
    assert report["dropped"]["exact duplicate"] > 5
    assert report["dropped"]["near duplicate"] > 5
    assert report["dropped"]["near duplicate of a held-out document"] > 2
    assert report["bytes"] == {"train": done.train.stat().st_size, "validation": done.validation.stat().st_size}
    verify(done.folder)
    assert "bad" not in done.train.read_text()
    assert "corpus.jsonl:302" in (done.folder / "quarantine.jsonl").read_text()

    groups = [{row["meta"]["group"] for row in rows} for rows in (train, held_out)]
    assert not groups[0] & groups[1]
    assert 4 <= len(groups[1]) <= 22
    shingles = [[set(Signer().shingles(row["text"]).tolist()) for row in rows] for rows in (train, held_out)]
    assert max(len(one & other) / len(one | other) for one in shingles[0] for other in shingles[1]) < 0.85

    duplicates = rows_of(done.folder / "duplicates.jsonl")
    kept = {row["id"] for row in (*train, *held_out)}
    assert Counter(row["reason"] for row in duplicates).total() == sum(report["dropped"].values()) - 1
    assert all(row["kept"] in kept and row["removed"] not in kept and row["similarity"] >= 0.6 for row in duplicates)


def test_it_is_the_same_every_time_and_does_nothing_twice(corpus, tmp_path, monkeypatch):
    first = prepared(corpus, tmp_path / "one")
    second = prepared(corpus, tmp_path / "two")
    assert content_hash(first.folder) == content_hash(second.folder)
    monkeypatch.setattr(prepare, "Signer", None)
    again = prepared(corpus, tmp_path / "one")
    assert again.report == first.report
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_each_setting_has_an_effect(corpus, tmp_path):
    plain = prepared(corpus, tmp_path / "plain")
    assert prepared(corpus, tmp_path / "seed", seed=1).report["groups"] != plain.report["groups"]
    assert prepared(corpus, tmp_path / "some", validation_fraction=0.5).report["groups"]["validation"] > 20
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


def test_a_group_is_held_out_by_its_name_alone():
    names = [f"package.module{n}" for n in range(4000)]
    held_out = {name for name in names if is_held_out(name, fraction=0.1, seed=0)}
    assert 0.08 < len(held_out) / len(names) < 0.12
    assert {name for name in names if is_held_out(name, fraction=0.05, seed=0)} < held_out
    assert {name for name in names if is_held_out(name, fraction=0.1, seed=1)} != held_out


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
    assert (
        done.report["dropped"].get("exact duplicate", 0)
        + done.report["dropped"].get("exact duplicate of a held-out document", 0)
        == 10
    )
    assert seen["cleaned"] == seen["comparing"] == 70
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
    monkeypatch.setattr(prepare, "_PART_BYTES", 4000)
    wanted = content_hash(prepared(corpus, tmp_path / "whole", validation_fraction=0.5).folder)
    signed = []
    real = Signer.signature
    monkeypatch.setattr(Signer, "signature", lambda self, text: signed.append(text) or real(self, text))
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
        signed.clear()
        assert content_hash(prepared(corpus, output, validation_fraction=0.5).folder) == wanted
        assert output.joinpath(TRAIN).exists()
        again.append(len(signed))
        number += 9
    assert len(again) > 10
    assert sorted(again, reverse=True) == again, "the later it was killed, the less is done again"
    assert again[-1] == 0
