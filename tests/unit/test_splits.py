"""What belongs together is held out together, and stays where it is when data is added."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.unit.corpus_steps import run
from trivium.data.documents import Document
from trivium.data.pipeline import resolve_pipeline
from trivium.data.step import Dropped
from trivium.data.steps.minhash import MinHash
from trivium.data.steps.split import Split
from trivium.errors import ConfigError, DataError


def document(name: str, **meta) -> Document:
    return Document(name, f"text of {name}", "f", meta=meta)


def split(documents, folder, *, seed=0, part=50, **settings):
    results = run(Split(Split.Config(**settings), seed=seed), documents, folder, part=part)
    return [f"dropped: {one.reason}" if isinstance(one, Dropped) else one.meta["split"] for one in results]


@pytest.fixture
def books() -> list[Document]:
    draw = random.Random(0)
    given = [document(f"b{n}.{k}", group=f"b{n}", author=f"a{n % 90}") for n in range(400) for k in range(1 + n % 3)]
    draw.shuffle(given)
    return given


def test_groups_are_never_cut_and_shares_are_about_right(books, tmp_path):
    found = split(books, tmp_path, validation=0.1, test=0.2, further={"calibration": 0.1})
    of_group = defaultdict(set)
    for each, name in zip(books, found, strict=True):
        of_group[each.group].add(name)
    assert all(len(names) == 1 for names in of_group.values())
    counts = Counter(name for names in of_group.values() for name in names)
    assert 55 < counts["test"] < 105
    assert 25 < counts["validation"] < 60
    assert 25 < counts["calibration"] < 60
    account = json.loads((tmp_path / "report" / "splits.json").read_text())
    assert account == {"documents": dict(sorted(Counter(found).items())), "groups": dict(sorted(counts.items()))}


def test_the_same_for_any_parts_and_other_for_another_seed(books, tmp_path):
    found = split(books, tmp_path, test=0.3)
    assert split(books, tmp_path, test=0.3, part=7) == found
    assert split(books, tmp_path, test=0.3, seed=1) != found


def test_adding_data_moves_nothing(books, tmp_path):
    before = {each.id: name for each, name in zip(books, split(books, tmp_path, test=0.3), strict=True)}
    more = [document(f"c{n}", group=f"c{n}") for n in range(300)]
    more += [document(f"extra{n}", group=f"b{n}") for n in range(50)]
    more += [document(f"child{n}", parent=f"b{n}.0") for n in range(100, 150)]
    every = [*more, *books]
    after = {each.id: name for each, name in zip(every, split(every, tmp_path, test=0.3), strict=True)}
    assert all(after[name] == before[name] for name in before)
    assert all(after[f"child{n}"] == before[f"b{n}.0"] for n in range(100, 150))
    assert all(after[f"extra{n}"] == before[f"b{n}.0"] for n in range(50))


def test_a_larger_share_keeps_what_was_held_out(books, tmp_path):
    small, large = (split(books, tmp_path, validation=0, test=share) for share in (0.1, 0.2))
    assert all(two == "test" for one, two in zip(small, large, strict=True) if one == "test")
    assert large.count("test") > small.count("test")


def test_any_field_and_several(books, tmp_path):
    for fields in ("author", ["author", "group"]):
        found = split(books, tmp_path, by=fields, test=0.3)
        authors = defaultdict(set)
        for each, name in zip(books, found, strict=True):
            authors[each.meta["author"]].add(name)
        assert all(len(names) == 1 for names in authors.values())
        assert len(set(found)) == 3
    together = [document("x", author=["a", "b"]), document("y", author=["b", "c"]), document("z", author="c")]
    for seed in range(20):
        assert len(set(split(together, tmp_path, by="author", test=0.4, seed=seed))) == 1
    with pytest.raises(DataError, match="is no name"):
        split([document("x", author={"name": "a"})], tmp_path, by="author")


def test_families_and_clusters_stay_together(tmp_path):
    given = [
        document("p", group="g"), document("c1", parent="p"), document("c2", parent="c1", group="other"),
        document("d1", group="h", cluster="d1"), document("d2", group="i", cluster="d1"),
    ]  # fmt: skip
    names = [split(given, tmp_path, test=0.5, seed=seed) for seed in range(30)]
    assert all(len(set(each[:3])) == 1 and len(set(each[3:])) == 1 for each in names)
    assert len({(each[0], each[3]) for each in names}) >= 4


def test_near_duplicates_that_minhash_marked_are_held_out_together(tmp_path):
    texts = [" ".join(random.Random(n).choices([f"w{k}" for k in range(999)], k=150)) for n in range(40)]
    given = [Document(f"{n}", text, "f", meta={"group": f"{n}"}) for n, text in enumerate(texts)]
    given += [Document(f"{n} again", f"{text} end", "f", meta={"group": f"x{n}"}) for n, text in enumerate(texts)]
    marked = run(MinHash(MinHash.Config(action="mark")), given, tmp_path)
    assert len(marked) == 80
    found = split(marked, tmp_path, test=0.5)
    assert found[:40] == found[40:]
    assert 5 < found[:40].count("test") < 35


def test_everything_after_a_date_is_held_out(tmp_path):
    given = [
        document("old", date="2020-05-01"), document("new", date="2024-03-01T10:00:00Z"), document("none"),
        document("between", date="2023"), document("family old", date="2019-01", group="f"),
        document("family new", date="2024-05-05", group="f"),
    ]  # fmt: skip
    settings = {"by": ["group", "date"], "validation_from": "2023-01-01", "test_from": "2024-01-01"}
    found = split(given, tmp_path, **settings)
    assert found == ["train", "test", "dropped: no date", "validation", "test", "test"]
    assert split(given, tmp_path, **settings, undated="train")[2] == "train"
    with pytest.raises(DataError, match="not in ISO 8601"):
        split([document("x", date="May 5th")], tmp_path, **settings)


def test_splits_that_data_came_with_stay(tmp_path):
    given = [
        document("a", split="test", group="g"), document("b", split="train", group="g"), document("c", group="g"),
        document("d", split="train", group="h"), document("e", group="h"),
    ]  # fmt: skip
    assert split(given, tmp_path, test=0.9) == [
        "test", "dropped: belongs to a held-out document", "test", "train", "train",
    ]  # fmt: skip
    assert len(set(split(given, tmp_path, test=0.9, given="ignore")[:3])) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "date"}, "needs a date"),
        ({"test_from": "2024"}, "counts with by: date"),
        ({"by": "date", "test_from": "soon"}, "not a date"),
        ({"test": 0.6, "validation": 0.5}, "more is held out than there is"),
        ({"further": {"train": 0.5}}, "a name of its own"),
        ({"further": {"validation": 0.5}}, "a name of its own"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Split.Config(**settings)


def test_settings_that_cannot_be_are_shown_in_their_file(tmp_path):
    file = tmp_path / "pipeline.yaml"
    for step in (
        "split, by: date",
        "split, test: 0.6, validation: 0.5",
        "split, further: {train: 0.1}",
        "exact, field: x",
    ):
        file.write_text(f"output: out\nsources: [pydocs]\nsteps:\n- clean\n- {{name: {step}}}\n")
        with pytest.raises(ConfigError) as error:
            resolve_pipeline(file)
        assert f"where: {file}:5" in str(error.value)


def test_nothing_at_all(tmp_path):
    assert split([], tmp_path) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"by": "date", "test_from": "2024-01-01", "validation": 0.2},
        {"by": "date", "test_from": "2024-01-01", "further": {"dev": 0.1}},
        {"by": "group", "undated": "train"},
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect"):
        Split.Config.model_validate(settings)
