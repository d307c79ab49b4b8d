"""Canaries stand where the key says, as often as asked, and a model that knows them by heart is found out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trivium.data.documents import Document
from trivium.data.safety.canaries import exposures, make_canaries
from trivium.data.steps.canaries import Canaries
from trivium.errors import ConfigError, DataError

KEYS = {"CANARY_KEY": "a key that nobody can guess 1", "OTHER_KEY": "another key that nobody knows"}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def inserted(tmp_path: Path, *, parts: int = 1, number: int = 200, **settings: Any) -> tuple[list[str], Path]:
    """The texts, and the list."""
    path = tmp_path / f"canaries-{parts}.jsonl"
    config = Canaries.Config(list=str(path), **{"key_env": "CANARY_KEY", "count": 2, "repeats": (1, 5), **settings})
    documents = [
        Document(f"d{at}", f"One {at}.\n\nTwo {at}.", "x", meta={"split": "train" if at % 10 else "test"})
        for at in range(number)
    ]
    size = -(-number // parts)
    pieces = [documents[at : at + size] for at in range(0, number, size)]
    sketches = []
    for at, piece in enumerate(pieces):
        file = tmp_path / f"{parts}.{at}"
        file.write_bytes(Canaries(config).sketch(piece)["places"])
        sketches.append({"places": file})
    decisions = json.loads(json.dumps(list(Canaries(config).decide(sketches, tmp_path))))
    step = Canaries(config)
    results = [one for piece, how in zip(pieces, decisions, strict=True) for one in step.apply_all(piece, how)]
    return [result.text for result in results if isinstance(result, Document)], path


def test_each_canary_stands_in_as_many_documents_as_asked(tmp_path: Path) -> None:
    texts, path = inserted(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["repeats"] for row in rows] == [1, 1, 5, 5]
    for row in rows:
        holders = [at for at, text in enumerate(texts) if row["text"] in text.split("\n\n")]
        assert len(holders) == row["repeats"] and {f"d{at}" for at in holders} == set(row["documents"])
        assert all(at % 10 for at in holders), "documents of another split get none"
    assert sum(len(text.split("\n\n")) == 3 for text in texts) == 12


def test_how_the_corpus_is_cut_changes_nothing(tmp_path: Path) -> None:
    one, first = inserted(tmp_path)
    many, second = inserted(tmp_path, parts=7)
    assert one == many and first.read_bytes() == second.read_bytes()


def test_every_option_changes_the_canaries(tmp_path: Path) -> None:
    usual = inserted(tmp_path)[0]
    for settings in (
        {"key_env": "OTHER_KEY"},
        {"digits": 5},
        {"template": "{name}: {secret}"},
        {"split": None},
        {"count": 3},
    ):
        assert inserted(tmp_path, **settings)[0] != usual, settings


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="secret key"):
        Canaries.Config(list="x")
    with pytest.raises(ValidationError, match="the template needs"):
        Canaries.Config(list="x", key_env="CANARY_KEY", template="x")
    with pytest.raises(ValidationError, match="at least one document"):
        Canaries.Config(list="x", key_env="CANARY_KEY", repeats=())
    with pytest.raises(ConfigError, match="too short"):
        Canaries(Canaries.Config(list="x", key_env="NO_SUCH_VARIABLE"))
    with pytest.raises(DataError, match="fewer documents"):
        inserted(tmp_path, number=10)


def test_exposure_tells_the_memorised_from_the_others(tmp_path: Path) -> None:
    _, path = inserted(tmp_path)
    known = {row["text"] for row in map(json.loads, path.read_text().splitlines()) if row["repeats"] == 5}
    found = list(
        exposures(path, lambda text: 0.0 if text in known else float(1 + sum(map(ord, text)) % 97), candidates=255)
    )
    assert [one["exposure"] == math.log2(256) for one in found] == [False, False, True, True]
    assert found[2]["rank"] == 1
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no canary"):
        list(exposures(tmp_path / "bad.jsonl", len))


def test_the_key_alone_gives_the_canaries() -> None:
    made = make_canaries(b"k" * 16, template="{name} {secret}", digits=9, count=30, repeats=(1,))
    assert len({canary.name for canary in made}) == 30 == len({canary.secret for canary in made})
    assert made == make_canaries(b"k" * 16, template="{name} {secret}", digits=9, count=30, repeats=(1,))
