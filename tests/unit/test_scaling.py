"""`trivium plan scaling` end to end, at a size for tests: stopped, continued, asked again; and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_run import interrupt_at
from trivium.cli.main import run
from trivium.config import resolve
from trivium.core.plan import matrix_parameters
from trivium.data.sealing import seal
from trivium.drivers.scaling import Data, remarks, scaling
from trivium.errors import ConfigError, DataError, Interrupted
from trivium.models.build import preset

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Text with some structure, a tokenizer and a recipe."""
    from trivium.tokenizers.train import train_bpe

    folder = tmp_path_factory.mktemp("scaling")
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh", k=rng.randrange(2, 6))) for _ in range(60)]
    follows = {word: rng.choices(words, k=4) for word in words}

    def text(size: int) -> str:
        found = [rng.choice(words)]
        while len(found) < size:
            found.append(rng.choice(follows[found[-1]]))
        return " ".join(found)

    train_bpe([text(3000)], vocab_size=300).save(folder_made(folder / "tokenizer"))
    for split, count in (("train", 1500), ("validation", 30)):
        rows = [json.dumps({"text": text(rng.randrange(10, 60))}) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {
        "name": "small",
        "runs": str(folder / "runs"),
        "method": "clm",
        "model": {"preset": "llama-1m", "config": {"vocab_size": 300}},
        "tokenizer": str(folder / "tokenizer"),
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "sequence_length": 32,
        },
        "train": {"tokens": 100_000, "batch_size": 8, "lr": 3e-3, "threads": 1},
    }


def folder_made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_ladder_is_run_stopped_continued_checked_and_reported(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trivium.core.ladder.LEAST_UPDATES", 20)
    monkeypatch.setattr("trivium.core.ladder.GOOD_UPDATES", 20)
    asked: dict[str, Any] = {"flops": 3.5e10, "target_flops": 1e12}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 15)
        scaling(world, **asked)
    folder = Path(world["runs"]) / "small-scaling"
    assert json.loads((folder / "level1-w016" / "status.json").read_text())["state"] == "interrupted"
    result = scaling(world, **asked)
    runs = [*result["runs"], result["held_out"]]
    assert len(runs) == 13
    for row in runs:
        shape = preset("llama-1m", {"vocab_size": 300, **row["shape"]})
        assert row["parameters"] == matrix_parameters(shape)
        assert row["flops"] == pytest.approx(6 * row["parameters"] * row["tokens"])
        assert 0 < row["loss"] < 6
    assert runs[-1]["flops"] > 2 * max(row["flops"] for row in runs[:-1])
    forecast = result["held_out"]["forecast"]
    assert forecast["low"] <= forecast["value"] <= forecast["high"]
    check_proposals(result, folder)
    page = (folder / "scaling.html").read_text(encoding="utf-8")
    for words in ("held-out", f"{result['held_out']['loss']:.4f}", "Lowest loss over compute", "<svg"):
        assert words in page
    assert "<script" not in page and "http://" not in page
    # A finished ladder is not run again, and says the same.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    assert scaling(world, **asked) == result
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    with pytest.raises(ConfigError, match=r"started with another train\.lr"):
        scaling({**world, "train": {**world["train"], "lr": 1e-3}}, **asked)


def check_proposals(result: dict[str, Any], folder: Path) -> None:
    for row in result["proposals"]:
        assert 6 * row["parameters"] * row["tokens"] == pytest.approx(row["flops"], rel=1e-6)
        low, value, high = (row["best_parameters"][name] for name in ("low", "value", "high"))
        assert low <= value <= high
    chosen = next(row for row in result["proposals"] if row["flops"] == 1e12)
    proposal = resolve(folder / "proposal.yaml").recipe
    assert proposal.train.tokens == round(chosen["tokens"]) and proposal.train.batch_size == chosen["batch_size"]
    shape = preset(proposal.model.preset or "", proposal.model.config)
    assert matrix_parameters(shape) == chosen["parameters"]


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "exactly one of --budget-minutes and --flops"),
    ({}, {"flops": 1e13, "budget_minutes": 3}, "exactly one of"),
    ({}, {"flops": -1}, "must be a number greater than 0"),
    ({}, {"budget_minutes": float("nan")}, "must be a number greater than 0"),
    ({}, {"flops": 1e13, "target_flops": 0}, "--target-flops must be"),
    ({"model": {"path": "somewhere"}}, {"flops": 1e13}, "goes on from one model"),
    ({"method": {"name": "grpo", "reward": "brevity"}}, {"flops": 1e13}, "no loss on held-out data"),
    ({"engine": {"name": "ddp"}}, {"flops": 1e13}, "run in one process"),
    ({}, {"flops": 1e9}, "too small for a ladder"),
    ({}, {"flops": 1e14}, "would read the"),
]


@pytest.mark.parametrize(("changes", "asked", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_refuses_what_cannot_be_a_ladder(
    world: dict[str, Any], changes: dict[str, Any], asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        scaling({**world, **changes, "runs": str(tmp_path)}, **asked)
    assert len(str(caught.value).splitlines()) <= 5 and caught.value.fix


def test_refuses_a_recipe_without_validation_data(world: dict[str, Any], tmp_path: Path) -> None:
    data = {name: value for name, value in world["data"].items() if name != "validation"}
    with pytest.raises(ConfigError, match=r"no data\.validation"):
        scaling({**world, "data": data, "runs": str(tmp_path)}, flops=1e13)


def test_sealed_sets_beside_the_users_runs_count(world: dict[str, Any], tmp_path: Path) -> None:
    """The runs of a ladder lie in a folder of their own, beside which there is none."""
    rows = Path(world["data"]["train"]).read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:50]) + "\n")
    seal([tmp_path / "rows.jsonl"], tmp_path / "sealed" / "quiz")
    with pytest.raises(DataError, match="sealed test set"):
        scaling({**world, "runs": str(tmp_path / "runs")}, flops=1e13)


def test_too_few_minutes_are_refused_with_how_many_suffice(world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too small for a ladder") as caught:
        scaling({**world, "runs": str(tmp_path)}, budget_minutes=0.001)
    assert "--budget-minutes" in str(caught.value.fix)


def test_the_command_refuses_in_five_lines(world: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(world["runs"]).parent / "recipe.yaml"
    recipe.write_text(json.dumps(world), encoding="utf-8")
    assert run(["plan", "scaling", str(recipe)]) == 2
    assert "exactly one of" in capsys.readouterr().err


def test_time_of_a_run_counts_opening_tokens_and_validation() -> None:
    from trivium.core.ladder import Rung, Shape

    data = Data(1000, 300, 32.0, opening=2.0, seconds_fixed=1e-3, seconds_each=1e-8)
    rung = Rung("x", 0, Shape({}, 100_000), 10, 1, 1e-3, 5000.0)
    assert data.seconds(rung) == pytest.approx(2.0 + 5100 * 2e-3)


def test_a_law_that_sees_nothing_is_remarked_upon() -> None:
    from trivium.core.scaling_law import Fit, Law

    law = Law(E=1.0, A=1e-9, B=100.0, alpha=0.5, beta=0.3)
    measured = [{"parameters": 1e5, "tokens": 1e6, "loss": 3.0}]
    said = remarks(Fit(law, (law,), (0.1,) * 6), measured)
    assert len(said) == 2 and "size" in said[1]
