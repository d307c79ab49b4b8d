"""A sealed set holds no text, leaks into training data of any kind are found and shown, and clean data passes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.crash.kills import make_world
from trivium.artifacts.lineage import read_lineage
from trivium.artifacts.manifest import verify
from trivium.config import resolve
from trivium.data import sealing
from trivium.data.dataset import open_dataset
from trivium.data.sealing import check, guarded, load_sealed, seal, sealed_folders
from trivium.errors import ArtifactDamaged, DataError
from trivium.recipe import Recipe, Source

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "lo", "mi", "sa")]


def text(seed: Any, count: int = 60) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=count))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def test_file(tmp_path) -> Path:
    rows = [{"id": n, "question": text(f"q{n}", 40), "answer": text(f"a{n}", 10), "label": "yes"} for n in range(50)]
    return write(tmp_path / "test.jsonl", rows)


@pytest.fixture
def sealed(test_file, tmp_path):
    return seal([test_file], tmp_path / "sealed" / "quiz", licence="MIT", date="2024-01-01")


def excerpt_of(number: int, words: int = 20) -> str:
    return " ".join(text(f"q{number}", 40).split()[7 : 7 + words])


# Sealing


def test_a_sealed_set_is_an_artifact_of_hashes_without_text(sealed, test_file):
    verify(sealed.folder)
    assert sealed.name == "quiz"
    assert sealed.facts["licence"] == "MIT"
    assert sealed.facts["rows"] == 50
    assert sealed.facts["runs"] == 50 * (28 + 1)
    assert sealed.facts["passages_too_short"] == 50
    assert sealed.facts["widths"] == [10, 13]
    content = b"".join(path.read_bytes() for path in sealed.folder.iterdir())
    assert not any(word.encode() in content for word in text("q0", 40).split() if len(word) > 4)
    assert read_lineage(sealed.folder)
    again = seal([test_file], sealed.folder.parent / "again", licence="MIT", date="2024-01-01")
    assert again.index.hashes.tolist() == sealed.index.hashes.tolist()
    loaded = load_sealed(sealed.folder)
    assert loaded.hash == sealed.hash
    assert loaded.index.names == sealed.index.names


def test_what_all_rows_share_is_no_evidence(tmp_path):
    prompt = "Read the following text and choose the one best answer from the four options that are given below"
    rows = write(tmp_path / "test.jsonl", [{"prompt": f"{prompt}: {text(n, 20)}"} for n in range(30)])
    made = seal([rows], tmp_path / "sealed" / "x")
    assert 6 < made.facts["runs_too_common"] < 6 + 30 * 7
    clean = write(tmp_path / "train.jsonl", [{"prompt": f"{prompt}: {text(f'other {n}', 20)}"} for n in range(30)])
    assert not check([Source(path=str(clean))], [made]).leaking


def test_documents_can_be_sealed(tmp_path):
    (tmp_path / "book.txt").write_text(text("book", 500))
    made = seal([tmp_path / "book.txt"], tmp_path / "sealed" / "book")
    train = write(tmp_path / "train.jsonl", [{"text": text(0)}, {"text": f"{text(1)} {text('book', 500)[1000:1200]}"}])
    assert check([Source(path=str(train))], [made], kind="documents").leaking == ["train.jsonl:2"]


def test_files_that_cannot_be_sealed(tmp_path):
    short = write(tmp_path / "short.jsonl", [{"text": "yes"}, {"text": "no"}])
    with pytest.raises(DataError, match="nothing in these files can be recognised"):
        seal([short], tmp_path / "sealed" / "x")
    with pytest.raises(DataError, match="no such file"):
        seal([tmp_path / "none.jsonl"], tmp_path / "sealed" / "x")
    with pytest.raises(DataError, match="no sealed test set"):
        load_sealed(tmp_path)
    assert not (tmp_path / "sealed").exists()


def test_a_damaged_set_is_noticed(sealed):
    file = sealed.folder / "hashes.bin"
    file.write_bytes(file.read_bytes()[:-8] + b"12345678")
    with pytest.raises(ArtifactDamaged):
        load_sealed(sealed.folder)


def test_the_command(test_file, tmp_path):
    from trivium.cli.data import app

    done = CliRunner().invoke(app, ["seal", str(test_file), "--output", str(tmp_path / "s" / "quiz"), "--json"])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["rows"] == 50
    assert result["hash"] == load_sealed(tmp_path / "s" / "quiz").hash


# Checking

LEAKED = excerpt_of(3)
SHAPES: dict[str, list[Any]] = {
    "documents": [{"text": text(n)} for n in range(5)] + [{"text": f"{text(6)} {LEAKED.upper()}, {text(7)}"}],
    "instructions": [{"messages": [{"role": "user", "content": text(n, 9)}, {"role": "assistant", "content": answer}]}
                     for n, answer in enumerate([*map(text, range(5)), f"{text(6, 9)} {LEAKED}"])],
    "preferences": [{"prompt": text(n, 9), "chosen": text(n, 8), "rejected": answer}
                    for n, answer in enumerate([*map(text, range(5)), f"{text(6, 9)} {LEAKED}"])],
    "prompts": [{"prompt": prompt, "answer": "7"} for prompt in [*map(text, range(5)), f"{text(6, 9)} {LEAKED}"]],
    "labels": [{"sentence": sentence, "label": n % 2}
               for n, sentence in enumerate([*map(text, range(5)), f"{text(6, 9)} {LEAKED}"])],
    "tokens": [{"tokens": sentence.split(), "tags": ["X", *["O"] * (len(sentence.split()) - 1)]}
               for sentence in [*map(text, range(5)), f"{text(6, 9)} {LEAKED}"]],
    "questions": [{"id": f"{n}", "question": text(n, 9), "context": context,
                   "answers": {"text": [context.split()[0]], "answer_start": [0]}}
                  for n, context in enumerate([*map(text, range(5)), f"{text(6, 9)} {LEAKED}"])],
    "pairs": [{"source": text(n), "target": target} for n, target in enumerate([*map(text, range(5)), LEAKED])],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from trivium.tokenizers.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("world")
    make_world(folder, "mlm")
    return Tokenizer.load(folder / "tokenizer")


def opened(kind: str, tmp_path: Path, tokenizer, rows=None, **data: Any):
    train = write(tmp_path / "train.jsonl", SHAPES[kind] if rows is None else rows)
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "runs": str(tmp_path / "runs"),
            "method": "clm",
            "model": {"preset": "gpt2-1m"},
            "data": {"train": str(train), "sequence_length": 1024, **data},
            "train": {"steps": 1},
        }
    )
    dataset = open_dataset(recipe.data.train, kind=kind, tokenizer=tokenizer, settings=recipe.data)
    return dataset, guarded(dataset, recipe, tokenizer)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_leak_in_any_kind_of_data_stops_the_run_and_is_shown(kind, tmp_path, tokenizer, sealed):
    with pytest.raises(DataError, match="1 of 6 training rows hold text of a sealed test set") as caught:
        opened(kind, tmp_path, tokenizer)
    assert "train.jsonl:6 (" in caught.value.where
    assert "of test.jsonl:4 of the sealed set quiz" in caught.value.where
    assert caught.value.value.casefold() == LEAKED
    assert len(caught.value.render().splitlines()) <= 5


@pytest.mark.parametrize("kind", SHAPES)
def test_leaks_can_be_left_out_or_reported(kind, tmp_path, tokenizer, sealed):
    whole, left = opened(kind, tmp_path, tokenizer, sealed_action="drop")
    assert len(left) == len(whole) - 1 == 5
    for number in range(5):
        assert left.sample(number).sequences == whole.sample(number).sequences
        assert left.sample_id(number) == whole.sample_id(number)
    assert left.account["dropped"]["text of a sealed set"] == 1
    assert left.lengths.tolist() == whole.lengths.tolist()[:5]
    assert left.fingerprint() != whole.fingerprint()
    assert left.parts[-1].last == 5
    _, told = opened(kind, tmp_path, tokenizer, sealed_action="report")
    assert len(told) == 6
    found = told.summary()["sealed"]
    assert found["rows_with_sealed_text"] == 1
    assert found["sets"] == {"quiz": sealed.hash}
    assert found["examples"][0]["sealed_row"] == "test.jsonl:4"
    assert "1 of 6 training rows" in found["message"]
    assert opened(kind, tmp_path, tokenizer, sealed_limit=0.2)[1].account["sealed"]["rows"] == 6


def test_clean_data_passes_and_nothing_is_said_without_sealed_sets(tmp_path, tokenizer, sealed):
    rows = [{"text": text(f"clean {n}")} for n in range(20)]
    _, passed = opened("documents", tmp_path, tokenizer, rows)
    assert "0 of 20 training rows" in sealing.said_of_sealed(passed)[0]
    (tmp_path / "elsewhere").mkdir()
    whole, passed = opened("documents", tmp_path / "elsewhere", tokenizer, rows)
    assert passed is whole
    assert sealing.said_of_sealed(passed) == []


def test_pieces_of_a_long_document_and_sources_of_a_mixture(tmp_path, tokenizer, sealed):
    rows = [{"id": "long", "text": f"{text(0, 900)} {LEAKED}"}, {"text": text(1)}]
    whole, left = opened("documents", tmp_path, tokenizer, rows, sealed_action="drop")
    assert len(whole) > 3
    assert len(left) == 1
    with pytest.raises(DataError, match="sealed"):
        opened("documents", tmp_path, tokenizer, rows)


def test_which_sets_count(tmp_path, sealed, test_file):
    other = seal([test_file], tmp_path / "far" / "away", date="2024-01-01")
    data = {"train": "x"}
    base = {"name": "x", "method": "clm", "model": {"preset": "gpt2-1m"}, "train": {"steps": 1}}
    (tmp_path / "sealed" / "no set").mkdir()
    recipe = Recipe.model_validate({**base, "runs": str(tmp_path / "runs"), "data": data})
    assert sealed_folders(recipe) == [sealed.folder]
    named = {**base, "runs": str(tmp_path / "far" / "runs"), "data": {**data, "sealed": [str(other.folder)]}}
    assert sealed_folders(Recipe.model_validate(named)) == [other.folder]
    both = {**base, "runs": str(tmp_path / "runs"), "data": {**data, "sealed": [str(other.folder), str(sealed.folder)]}}
    assert sealed_folders(Recipe.model_validate(both)) == [other.folder, sealed.folder]


def test_results_can_name_the_sealed_set_they_were_measured_on(sealed, test_file, tmp_path):
    found = sealing.seal_of(test_file, runs=tmp_path / "runs")
    assert found == {"name": "quiz", "hash": sealed.hash}
    assert sealing.seal_of(write(tmp_path / "other.jsonl", [{"text": "x"}]), runs=tmp_path / "runs") is None
    assert sealing.seal_of(test_file, runs=tmp_path / "far" / "runs") is None


def test_a_hundred_planted_leaks_are_found_and_nothing_else(tmp_path):
    """Excerpts of 15 to 60 words, in other case and punctuation, inside 3000 documents."""
    draw = random.Random(0)
    tests = [text(f"test {n}", draw.randint(20, 150)) for n in range(300)]
    rows = [text(f"train {n}", draw.randint(30, 300)).split() for n in range(3000)]
    planted = set(draw.sample(range(3000), 100))
    for number in planted:
        words = draw.choice(tests).split()
        size = min(len(words), draw.randint(15, 60))
        start, at = draw.randint(0, len(words) - size), draw.randint(0, len(rows[number]))
        rows[number][at:at] = [draw.choice((word, word.upper(), f"“{word}”,")) for word in words[start : start + size]]
    made = seal([write(tmp_path / "test.jsonl", [{"text": each} for each in tests])], tmp_path / "sealed" / "x")
    train = write(tmp_path / "train.jsonl", [{"text": " ".join(each)} for each in rows])
    start = time.process_time()
    checked = check([Source(path=str(train))], [made], kind="documents", cache=tmp_path / "cache")
    seconds = time.process_time() - start
    found = {int(name.split(":")[1]) - 1 for name in checked.leaking}
    assert len(found & planted) >= 99
    assert found <= planted
    assert seconds < 5


def test_what_was_checked_is_not_checked_again(tmp_path, sealed, monkeypatch):
    train = write(tmp_path / "train.jsonl", SHAPES["documents"])
    cache = tmp_path / "cache"
    first = check([Source(path=str(train))], [sealed], kind="documents", cache=cache)
    monkeypatch.setattr(sealing, "Finder", None)
    assert check([Source(path=str(train))], [sealed], kind="documents", cache=cache) == first
    train.write_text(train.read_text() + "\n")
    with pytest.raises(TypeError):
        check([Source(path=str(train))], [sealed], kind="documents", cache=cache)


def test_token_shards_are_checked_as_text(tmp_path, tokenizer, sealed):
    from trivium.data.shards import tokenise_on_disk

    train = write(tmp_path / "train.jsonl", SHAPES["documents"])
    tokenise_on_disk(Source(path=str(train)), tokenizer, on_error="error", cache=tmp_path / "cache")
    (shards,) = (tmp_path / "cache").glob("tokens-*")
    checked = check([Source(path=str(shards))], [sealed], kind="documents", tokenizer=tokenizer)
    assert checked.rows == 6
    assert checked.leaking == ["train.jsonl:6"]


@pytest.mark.parametrize("method", ["clm", "sft", "dpo", "grpo"])
def test_training_commands_refuse(method, tmp_path):
    from trivium.drivers.session import open_session

    recipe = make_world(tmp_path, method)
    recipe["train"]["threads"] = 1
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    longest = max(rows, key=len)
    seal([write(tmp_path / "held.jsonl", [json.loads(longest)])], tmp_path / "sealed" / "held", shortest=2)
    with pytest.raises(DataError, match="hold text of a sealed test set"):
        open_session(resolve(recipe))
    session = open_session(resolve(recipe, ["data.sealed_action=drop"]))
    session.close()
    assert any("they are left out" in note for note in session.notes)
