"""Sources share a run by weights, temperature, token budgets and limits; all of it exact under resume."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trivium as tv
from trivium.data.dataset import Dataset, Part, open_dataset
from trivium.data.loader import Loader
from trivium.data.mixture import Budgeted, Supply, planned_rows
from trivium.errors import ConfigError
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

LENGTH = 32


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=7).filter(any), st.integers(0, 700))
def test_a_budgeted_run_has_exactly_its_rows_without_gaps(rows: list[int], upto: int) -> None:
    run = Budgeted(rows)
    seen = Counter[int]()
    for row in range(run.period):
        source, number = run.locate(row)
        assert number == seen[source]
        seen[source] += 1
        for at, count in enumerate(rows):
            assert abs(seen[at] - (row + 1) * count / run.period) <= 1 + len(rows).bit_length(), "spread evenly"
    assert [seen[at] for at in range(len(rows))] == rows
    assert run.walked(upto) == [sum(run.locate(row)[0] == at for row in range(upto)) for at in range(len(rows))]


def test_a_budgeted_run_of_billions_of_rows_needs_no_table() -> None:
    run = Budgeted([10**12, 3 * 10**11, 7])
    assert run.locate(10**12)[0] in (0, 1)
    assert sum(run.walked(123_456_789_012)) == 123_456_789_012
    assert run.walked(run.period) == [10**12, 3 * 10**11, 7]


def supply(rows: int, *, weight: float = 1.0, tokens: int | None = None, max_epochs: float | None = None) -> Supply:
    return Supply(Part("a", weight, 0, rows, tokens, max_epochs), rows=rows, row_tokens=10.0)


@pytest.mark.parametrize(
    ("supplies", "rows"),
    [
        ([supply(10), supply(10, weight=3)], [25, 75]),
        ([supply(10, tokens=120), supply(10)], [12, 88]),
        ([supply(10, max_epochs=2), supply(10)], [20, 80]),
        ([supply(10, max_epochs=2), supply(30, max_epochs=1), supply(1)], [20, 30, 50]),
        ([supply(100, max_epochs=2, weight=9), supply(100, max_epochs=0.1), supply(9, tokens=200)], [72, 8, 20]),
        ([supply(10, tokens=400), supply(10, tokens=598)], [40, 60]),
        ([supply(10, max_epochs=5), supply(10, max_epochs=5)], [50, 50]),
    ],
)
def test_budgets_come_first_then_weights_under_limits(supplies: list[Supply], rows: list[int]) -> None:
    assert planned_rows(supplies, updates=10, update_rows=10) == rows


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            supply,
            st.integers(1, 50),
            weight=st.floats(0.1, 9),
            tokens=st.none() | st.integers(1, 900),
            max_epochs=st.none() | st.floats(0.1, 9),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 60),
)
def test_a_plan_fills_the_run_and_keeps_every_promise_or_is_refused(supplies: list[Supply], updates: int) -> None:
    try:
        rows = planned_rows(supplies, updates=updates, update_rows=4)
    except ConfigError as error:
        assert error.fix
        return
    assert sum(rows) == updates * 4
    for count, each in zip(rows, supplies, strict=True):
        assert count >= 0
        if each.budget is not None:
            assert 0 <= count - each.budget < 4, "only an update that budgets do not quite fill is filled up"
        else:
            assert count <= each.limit


@pytest.mark.parametrize(
    ("supplies", "message", "fix"),
    [
        ([supply(10, tokens=2000), supply(10)], "need 20 updates, the run has 10", "train.steps=20"),
        ([supply(10, tokens=300), supply(10, tokens=100)], "used up after 4 updates", "train.steps=4"),
        ([supply(10, max_epochs=1), supply(10, max_epochs=2)], "reach their max_epochs after 3", "train.steps=3"),
        ([supply(10, tokens=300, max_epochs=2), supply(9)], "needs 3.00 passes", "lower tokens to 200"),
    ],
)
def test_impossible_budgets_are_refused_with_the_fix(supplies: list[Supply], message: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        planned_rows(supplies, updates=10, update_rows=10)
    assert fix in str(caught.value) and len(str(caught.value).splitlines()) <= 5


# With data


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the lazy dog jumps over the fox " * 20], vocab_size=290)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three sources of 90, 30 and 10 documents."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 90), ("b", 30), ("c", 10)):
        rows = ({"id": f"{name}{n}", "text": "the lazy dog " * (n % 4 + 1) + f"jumps over {n}"} for n in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / f"{name}.jsonl") for name in "abc"]


def opened(train: Any, tokenizer: Tokenizer, **more: Any) -> Dataset:
    section = DataSection(train=train, sequence_length=LENGTH, **more)
    return open_dataset(section.train, kind="documents", tokenizer=tokenizer, settings=section)


def loader(dataset: Dataset, *, updates: int = 50, packing: str = "none", **options: Any) -> Loader:
    given = {"rows": 8, "micro_rows": 4, "seed": 1, **options}
    made = Loader(dataset, sequence_length=LENGTH, packing=packing, **given)
    made.plan(updates)
    return made


def drawn(walk: Loader, updates: int) -> Counter[str]:
    return Counter(name[0] for index in range(updates) for name in walk.sample_ids(index))


def test_temperature_goes_from_the_sizes_to_equal_shares(paths: list[str], tokenizer: Tokenizer) -> None:
    shares = {}
    for temperature in (1.0, 2.0, 1e6):
        dataset = opened(paths, tokenizer, mixture={"temperature": temperature})
        shares[temperature] = [each["share"] for each in loader(dataset).progress(0)]
        sizes = [int(dataset.lengths[part.first : part.last].sum()) for part in dataset.parts]
        powers = [size ** (1 / temperature) for size in sizes]
        assert shares[temperature] == pytest.approx([power / sum(powers) for power in powers], abs=1e-3)
    assert shares[1.0][0] > shares[2.0][0] > shares[1e6][0] == pytest.approx(1 / 3, abs=1e-3)
    weighted = [{"path": path, "weight": weight} for path, weight in zip(paths, (1, 1, 4), strict=True)]
    tilted = loader(opened(weighted, tokenizer, mixture={"temperature": 1e6})).progress(0)
    assert [each["share"] for each in tilted] == pytest.approx([1 / 6, 1 / 6, 4 / 6], abs=1e-3)


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_budgets_and_limits_are_kept_in_a_run(paths: list[str], tokenizer: Tokenizer, packing: str) -> None:
    a, b, c = paths
    dataset = opened([a, {"path": b, "tokens": 900}, {"path": c, "max_epochs": 1.5}], tokenizer)
    walk = loader(dataset, updates=20, packing=packing)
    assert walk.progress(20)[1]["tokens"] == pytest.approx(900, rel=0.05)
    assert walk.progress(20)[2]["epochs"] <= 1.5
    per_source = drawn(walk, 20)
    if packing == "none":
        assert sum(per_source.values()) == 160 and per_source["c"] <= 15
    lengths = dict(zip(map(dataset.sample_id, range(len(dataset))), dataset.lengths.tolist(), strict=True))
    for index in (0, 1, 7, 20):
        walked = Counter()
        for name in itertools.chain(*(walk.sample_ids(at) for at in range(index))):
            walked[name[0]] += lengths[name]
        assert [each["tokens"] for each in walk.progress(index)] == [walked[source] for source in "abc"]
    sizes = [int(dataset.lengths[part.first : part.last].sum()) for part in dataset.parts]
    assert [part.weight for part in dataset.parts] == pytest.approx([size / sizes[0] for size in sizes])


def test_resuming_and_ranks_change_nothing(paths: list[str], tokenizer: Tokenizer) -> None:
    a, b, c = paths
    dataset = opened([a, {"path": b, "max_epochs": 1}, {"path": c, "tokens": 500}], tokenizer)
    whole = loader(dataset)
    log = [[name for batch in whole.update(index) for name in batch.sample_ids] for index in range(50)]
    for position in (1, 24, 48):
        with loader(dataset).prefetched(position, 3) as updates:
            again = [
                [n for batch in batches for n in batch.sample_ids]
                for batches in itertools.islice(updates, 50 - position)
            ]
            assert again == log[position:]
    for world in (2, 3):
        ranks = [loader(dataset, rank=rank, world=world) for rank in range(world)]
        for index in (0, 31):
            shares = (name for rank in ranks for batch in rank.update(index) for name in batch.sample_ids)
            assert Counter(shares) == Counter(log[index])
    whole.update(57)  # the thread that prefetches goes beyond the end


def test_a_run_says_what_was_planned_and_walked(paths: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    small = {"vocab_size": tokenizer.vocab_size, "num_layers": 1, "hidden_size": 32, "num_heads": 2}
    recipe = {
        "name": "run",
        "runs": str(tmp_path / "runs"),
        "method": "clm",
        "model": {"preset": "gpt2-1m", "config": small},
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": {"train": [paths[0], {"path": paths[2], "max_epochs": 2}], "sequence_length": LENGTH},
        "train": {"steps": 6, "batch_size": 4, "threads": 1, "compile": "off"},
    }
    folder = tv.train(recipe).folder
    data = json.loads((folder / "data.json").read_text())["train"]
    assert [each["source"] for each in data["sources"]] == [paths[0], paths[2]]
    for each in data["sources"]:
        assert each["tokens"] == each["planned_tokens"] > 0
        assert each["epochs"] == each["planned_epochs"]
    assert data["sources"][1]["epochs"] <= 2
    report = (folder / "report.html").read_text()
    assert "Sources of the mixture" in report and "a.jsonl" in report
    impossible = {
        **recipe,
        "name": "x",
        "data": {"train": [{"path": paths[2], "max_epochs": 1}], "sequence_length": LENGTH},
    }
    with pytest.raises(ConfigError, match="max_epochs"):
        tv.train(impossible)
