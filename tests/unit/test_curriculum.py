"""A curriculum says which samples may be drawn when; what is drawn is a function of seed and position."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.artifacts.manifest import verify
from trivium.config import resolve
from trivium.data.curriculum.schedule import STAGES, Competence, competence, pool, ranked
from trivium.data.dataset import Dataset, open_dataset
from trivium.data.loader import Loader
from trivium.errors import ConfigError, DataError, TriviumError
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.recipe import CurriculumSettings, DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

LENGTH = 48
SMALL = {"num_layers": 1, "hidden_size": 32, "num_heads": 2}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "a", "cat", "sees", "it"]


def settings(**given: Any) -> CurriculumSettings:
    return CurriculumSettings(**{"scorer": "length", **given})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([" ".join(WORDS) * 30], vocab_size=300)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 documents of 1 to 20 words; the number is a column, in `meta` for every second document."""
    target = tmp_path_factory.mktemp("data") / "documents.jsonl"
    with target.open("w") as stream:
        for number in range(120):
            size = number * 7 % 20 + 1
            row: dict[str, Any] = {
                "id": f"d{number}",
                "text": " ".join(WORDS[at % 14] for at in range(number, number + size)),
            }
            row.update({"grade": number % 10} if number % 2 else {"meta": {"grade": number % 10}})
            stream.write(json.dumps(row) + "\n")
    return str(target)


def opened(
    path: Any, tokenizer: Tokenizer, curriculum: CurriculumSettings | None, cache: Path | None = None, **more: Any
) -> Dataset:
    section = DataSection(train=path, sequence_length=LENGTH, curriculum=curriculum, **more)
    return open_dataset(section.train, kind="documents", tokenizer=tokenizer, settings=section, cache=cache)


def loader(dataset: Dataset, curriculum: CurriculumSettings | None, *, updates: int = 60, **options: Any) -> Loader:
    given = {"rows": 6, "micro_rows": 2, "packing": "none", "seed": 3, **options}
    made = Loader(dataset, sequence_length=LENGTH, curriculum=curriculum, **given)
    made.plan(updates)
    return made


def ids(batches: Any) -> list[str]:
    return [sample for batch in batches for sample in batch.sample_ids]


# Pacing


@pytest.mark.parametrize("pacing", ["linear", "root", "step", "exponential"])
def test_competence_grows_from_start_to_one_at_until(pacing: str) -> None:
    run = Competence(settings(pacing=pacing, start=0.2, until=0.5), updates=1000)
    values = [run.values[run.stage(update)] for update in range(1000)]
    assert values[0] == pytest.approx(0.2)
    assert values == sorted(values)
    assert values[499] < 1 and values[500:] == [1.0] * 500
    assert len(run.begins) == (6 if pacing == "step" else STAGES + 1)


def test_the_root_is_the_formula_of_the_paper() -> None:
    for time in (0.0, 0.25, 0.5, 1.0):
        assert competence(settings(start=0.1), time) == pytest.approx(min(1, (time * (1 - 0.1**2) + 0.1**2) ** 0.5))


def test_the_pacings_differ() -> None:
    at_half = {
        name: competence(settings(start=0.1, **given), 0.5)
        for name, given in {
            "exponential": {"pacing": "exponential"},
            "step": {"pacing": "step", "steps": 3},
            "linear": {"pacing": "linear"},
            "root": {},
            "cube root": {"power": 3},
        }.items()
    }
    assert list(at_half.values()) == sorted(set(at_half.values())), at_half


def test_short_runs_and_full_starts_have_stages_too() -> None:
    for updates in (1, 2, 7):
        run = Competence(settings(until=1.0), updates=updates)
        assert [run.stage(update) for update in range(updates + 3)] == [*range(updates), *[updates] * 3]
    assert Competence(settings(start=1.0), updates=10).values == [1.0]


def test_who_joins_first() -> None:
    hardness = np.array([3.0, 1.0, 2.0, 1.0])
    easy, hard, random = (ranked(hardness, order=order, seed=0) for order in ("easy_first", "hard_first", "random"))
    assert set(easy[:2].tolist()) == {1, 3} and easy[2:].tolist() == [2, 0]
    assert hard[:2].tolist() == [0, 2]
    assert sorted(random.tolist()) == [0, 1, 2, 3]
    assert pool(easy, 0.75).tolist() == [1, 2, 3]
    assert pool(easy, 1e-9).size == 1


# What is drawn


@pytest.mark.parametrize("order", ["easy_first", "hard_first", "random"])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_only_samples_of_the_pool_are_drawn_and_evenly(
    path: str, tokenizer: Tokenizer, order: str, packing: str
) -> None:
    curriculum = settings(order=order, start=0.25, until=0.5)
    dataset = opened(path, tokenizer, curriculum)
    walk = loader(dataset, curriculum, packing=packing)
    names = [dataset.sample_id(number) for number in ranked(dataset.difficulty, order=order, seed="3/0")]
    for index in range(60):
        value = walk.measures(index)["competence"]
        drawn = walk.sample_ids(index)
        assert set(drawn) <= set(names[: int(np.ceil(value * len(names) - 1e-9))])
    means = [walk.measures(index)["difficulty"] for index in range(60)]
    early, late = np.mean(means[:10]), np.mean(means[30:])
    assert {"easy_first": early < 0.8 * late, "hard_first": early > 1.2 * late, "random": True}[order]
    once = Counter(name for index in range(30, 50) for name in walk.sample_ids(index))
    if packing == "none":
        assert set(once.values()) == {1}, "with all samples, an epoch has each of them once"


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_resuming_and_ranks_change_nothing(path: str, tokenizer: Tokenizer, packing: str) -> None:
    curriculum = settings(until=0.6)
    dataset = opened(path, tokenizer, curriculum)
    whole = loader(dataset, curriculum, packing=packing)
    log = [ids(whole.update(index)) for index in range(60)]
    for position in (0, 1, 17, 35, 36, 58):
        with loader(dataset, curriculum, packing=packing).prefetched(position, 3) as updates:
            assert [ids(batches) for batches in itertools.islice(updates, 60 - position)] == log[position:]
    for world in (2, 3, 5):
        ranks = [loader(dataset, curriculum, packing=packing, rank=rank, world=world) for rank in range(world)]
        for index in (0, 20, 59):
            assert Counter(itertools.chain(*(ids(rank.update(index)) for rank in ranks))) == Counter(log[index])
            assert {rank.measures(index)["difficulty"] for rank in ranks} == {whole.measures(index)["difficulty"]}
    assert loader(dataset, curriculum, packing=packing, seed=4).sample_ids(0) != whole.sample_ids(0)


def test_each_setting_changes_what_is_drawn(path: str, tokenizer: Tokenizer) -> None:
    variants = [
        {},
        {"order": "hard_first"},
        {"order": "random"},
        {"pacing": "linear"},
        {"start": 0.5},
        {"until": 0.9},
        {"power": 4},
    ]
    variants += [{"pacing": "step"}, {"pacing": "step", "steps": 2}, {"pacing": "exponential"}]
    variants += [{"scorer": "rarity"}, {"scorer": "compressibility"}, {"scorer": "column", "column": "grade"}]
    drawn = []
    for given in variants:
        curriculum = settings(**given)
        walk = loader(opened(path, tokenizer, curriculum), curriculum)
        drawn.append(tuple(name for index in range(60) for name in walk.sample_ids(index)))
    assert len(set(drawn)) == len(variants)


def test_a_mixture_keeps_its_shares_and_each_source_its_own_order(
    path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"id": f"o{n}", "text": "fox " * (n % 9 + 1)}) + "\n" for n in range(40)))
    curriculum = settings(start=0.3)
    dataset = opened([{"path": path, "weight": 2}, {"path": str(other)}], tokenizer, curriculum)
    walk = loader(dataset, curriculum)
    for index in range(60):
        assert Counter(name[0] for name in walk.sample_ids(index)) == {"d": 4, "o": 2}
    lengths = dict(zip(map(dataset.sample_id, range(len(dataset))), dataset.lengths.tolist(), strict=True))
    for source in "do":
        means = [np.mean([lengths[name] for name in walk.sample_ids(i) if name[0] == source]) for i in range(60)]
        assert np.mean(means[:6]) < 0.8 * np.mean(means[40:])
    assert [round(each["tokens"]) for each in walk.progress(60)] == [
        sum(lengths[name] for i in range(60) for name in walk.sample_ids(i) if name[0] == source) for source in "do"
    ]


def test_a_loader_without_its_length_says_so(path: str, tokenizer: Tokenizer) -> None:
    curriculum = settings()
    dataset = opened(path, tokenizer, curriculum)
    whole = Loader(dataset, rows=2, micro_rows=2, sequence_length=LENGTH, packing="none", seed=0, curriculum=curriculum)
    with pytest.raises(ValueError, match="plan"):
        whole.update(0)


# Scores


def test_what_the_scorers_measure(path: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        {"id": "common", "text": "the the the the the the"},
        {"id": "rare", "text": "zyx qwv kjp"},
        {"id": "again", "text": "the quick brown fox " * 4},
        {"id": "mixed", "text": "xk92 lq;w mznv pq0r ts8u 1vwx"},
    ]
    target = tmp_path / "rows.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows) + json.dumps({"id": "x", "text": "the " * 30}))
    found = {}
    for scorer in ("length", "rarity", "compressibility"):
        dataset = opened(str(target), tokenizer, settings(scorer=scorer))
        names = map(dataset.sample_id, range(len(dataset)))
        found[scorer] = dict(zip(names, dataset.difficulty.tolist(), strict=True))
    assert found["length"]["common"] == 7, "six words and the start token"
    assert found["rarity"]["common"] < found["rarity"]["again"] < found["rarity"]["rare"]
    assert found["compressibility"]["again"] < found["compressibility"]["mixed"]


def test_a_column_is_found_in_rows_and_in_meta(path: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = opened(path, tokenizer, settings(scorer="column", column="grade"))
    assert dataset.difficulty.tolist() == [
        int(dataset.sample_id(n).partition("#")[0][1:]) % 10 for n in range(len(dataset))
    ]
    with pytest.raises(DataError, match="no column 'grad'"):
        opened(path, tokenizer, settings(scorer="column", column="grad"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a b", "grade": "hard"}\n')
    with pytest.raises(DataError, match="holds no number"):
        opened(str(bad), tokenizer, settings(scorer="column", column="grade"))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "reference"
    folder.mkdir()
    config = preset("gpt2-1m", {"vocab_size": tokenizer.vocab_size, **SMALL})
    save_model(folder, config, build_model(config, seed=1).state_dict())
    tokenizer.save(folder)
    return str(folder)


def test_the_loss_is_that_of_the_model(path: str, tokenizer: Tokenizer, model: str) -> None:
    dataset = opened(path, tokenizer, settings(scorer="loss", model=model))
    reference = tv.load(model)
    for sample in (0, 17, 119):
        text = tokenizer.decode(dataset.sample(sample).sequences[0].ids)
        scored = [value for value in reference.score(text).logprobs if value is not None]
        ends = dataset.difficulty[sample] * dataset.lengths[sample] + sum(scored)
        assert 0 < ends < 20, "the end token is scored too, and nothing else"
    assert len(set(dataset.difficulty.tolist())) > 60


def test_a_model_that_cannot_say_is_refused(path: str, tokenizer: Tokenizer, model: str) -> None:
    with pytest.raises(ConfigError, match="no model in this folder"):
        opened(path, tokenizer, settings(scorer="loss", model="nowhere"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        opened(path, train_bpe(["abc abd"], vocab_size=280), settings(scorer="loss", model=model))


def test_scores_are_kept_with_their_past(path: str, tokenizer: Tokenizer, model: str, tmp_path: Path) -> None:
    curriculum = settings(scorer="loss", model=model)
    first = opened(path, tokenizer, curriculum, cache=tmp_path)
    (kept,) = tmp_path.glob("scores-*")
    verify(kept)
    past = render_text(read_lineage(kept))
    assert "reference model" in past and "documents.jsonl" in past
    stamp = (kept / "scores.bin").stat().st_mtime_ns
    again = opened(path, tokenizer, settings(scorer="loss", model=model, start=0.9, order="random"), cache=tmp_path)
    assert (kept / "scores.bin").stat().st_mtime_ns == stamp, "another pacing needs no new scores"
    assert again.difficulty.tolist() == first.difficulty.tolist()
    (kept / "scores.bin").write_bytes(b"damaged")
    assert opened(path, tokenizer, curriculum, cache=tmp_path).difficulty.tolist() == first.difficulty.tolist()
    opened(path, tokenizer, settings(), cache=tmp_path)
    assert len(list(tmp_path.glob("scores-*"))) == 2


# Recipes


RECIPE = {"name": "r", "method": "clm", "model": {"preset": "gpt2-1m"}, "tokenizer": "t", "train": {"steps": 4}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"curriculum": {"scorer": "loss"}}, "model and scorer: loss"),
        ({"curriculum": {"scorer": "rarity", "model": "m"}}, "model and scorer: loss"),
        ({"curriculum": {"scorer": "column"}}, "column and scorer: column"),
        ({"curriculum": {"scorer": "rarity"}, "shuffle": False}, "in the order of the files"),
        ({"curriculum": {"scorer": "rarity", "start": 0}}, "start"),
        ({"curriculum": {"scorer": "rarety"}}, "rarity"),
    ],
)
def test_contradictions_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(TriviumError, match=message) as caught:
        resolve({**RECIPE, "data": {"train": "pydocs", **data}})
    assert len(str(caught.value).splitlines()) <= 5


def test_a_run_writes_its_curve_and_report(path: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    recipe = {
        "name": "run",
        "runs": str(tmp_path / "runs"),
        "method": "clm",
        "model": {"preset": "gpt2-1m", "config": {"vocab_size": tokenizer.vocab_size, **SMALL}},
        "tokenizer": str(tmp_path / "tokenizer"),
        "data": {
            "train": path,
            "validation": path,
            "sequence_length": LENGTH,
            "curriculum": {"scorer": "rarity", "start": 0.3},
        },
        "train": {"steps": 6, "batch_size": 4, "threads": 1, "compile": "off"},
    }
    folder = tv.train(recipe).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train[0]["competence"] == pytest.approx(0.3) and train[-1]["competence"] == 1
    assert all(line["difficulty"] > 0 for line in train)
    data = json.loads((folder / "data.json").read_text())["train"]
    assert data["difficulty"]["least"] < data["difficulty"]["most"]
    assert data["updates"] == 6
    report = (folder / "report.html").read_text()
    assert "Competence" in report and "Difficulty" in report
