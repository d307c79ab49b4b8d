"""`trivium plan memory`, `time` and `cost`: every recipe on every machine, and descriptions that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trivium.cli.main import run
from trivium.config import resolve
from trivium.core.machines import BUILT_IN, Range, load_machine, read_machine, usable_peak
from trivium.drivers.planning import Plan, plan_recipe
from trivium.errors import ConfigError
from trivium.models.build import preset

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MACHINE = {
    "name": "two",
    "kind": "cuda",
    "devices": 2,
    "memory_gib": 24,
    "peak_tflops": {"fp32": 30, "bf16": 120},
    "link_gb_per_second": 20,
    "price_per_hour": 2.5,
    "currency": "EUR",
}


def recipe(**changes: Any) -> dict[str, Any]:
    train = {"steps": 100, "batch_size": 16, **changes.pop("train", {})}
    return {
        "name": "x",
        "method": "clm",
        "model": {"preset": "llama-100m", "config": {}},
        "data": {"train": "nowhere", "sequence_length": 512},
        "train": train,
        **changes,
    }


def planned(machine: str = "h100-8", devices: int | None = None, **changes: Any) -> Plan:
    return plan_recipe(resolve(recipe(**changes)), load_machine(machine), devices=devices)


def ordered(found: Range) -> bool:
    return 0 < found.low <= found.typical <= found.high


@pytest.mark.parametrize("verb", ["memory", "time", "cost"])
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_can_be_planned_anywhere(file: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Models and data that are not there yet are named; a shape and a number of updates stand for them."""
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    changes = ["train.epochs=null", "train.steps=50"]
    if plain["model"].get("path"):
        changes += ["model.path=null", "model.preset=llama-3m"]
    command = ["plan", verb, str(file), *changes, "--machine", "h100", "--json"]
    assert run([*command, *(["--price", "3"] if verb == "cost" else [])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["steps"] == 50 and found["peak_memory_bytes"] > 600 << 20
    assert ordered(Range(**found["seconds"])) and (verb != "cost" or ordered(Range(**found["cost"])))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_machines_name_their_source(name: str) -> None:
    machine = load_machine(name)
    assert machine.source and machine.peak("fp32") > 1e11
    assert planned(name).fits


def test_text_says_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    clm = str(ROOT / "recipes" / "clm.yaml")
    assert run(["plan", "time", clm, "--machine", "laptop"]) == 0
    out = capsys.readouterr().out
    assert "1,000 updates" in out and "of the matrix peak" in out and " to " in out
    assert run(["plan", "memory", clm, "model.preset=llama-8b", "--machine", "a100-80g"]) == 0
    out = capsys.readouterr().out
    assert "more than 80 GiB of a100-80g" in out and "fix: " in out


def test_this_machine_is_measured(tmp_path: Path) -> None:
    machine = load_machine("here", folder=tmp_path, recipe=resolve(recipe(engine={"device": "cpu"})).recipe)
    assert machine.kind == "cpu" and machine.peak("fp32") > 1e9 and machine.price_per_hour == 0
    assert machine.disk_gib and machine.cores >= 1


def test_several_devices_share_the_work_and_the_memory() -> None:
    wide = {"model": {"preset": "llama-8b", "config": {}}, "train": {"precision": "bf16", "batch_size": 64}}
    one = planned("h100-8", **wide)
    ddp = planned("h100-8", engine={"name": "ddp"}, **wide)
    sharded = planned("h100-8", engine={"name": "fsdp2"}, **wide)
    assert (one.ranks, ddp.ranks, sharded.ranks) == (1, 8, 8)
    assert sharded.forecast.memory.weights == pytest.approx(ddp.forecast.memory.weights / 8, rel=0.01)
    assert sharded.forecast.memory.gathered > 0
    assert sharded.forecast.memory.peak < 0.5 * ddp.forecast.memory.peak
    assert one.update.typical / 8 <= ddp.update.typical < one.update.typical / 5
    assert ddp.update.high > one.update.high / 8  # what is sent is not hidden at worst
    assert planned("h100-8", 2, engine={"name": "ddp"}).ranks == 2


@pytest.mark.parametrize("machine", ["h100", "h200", "b200"])
def test_fp8_shortens_what_it_multiplies_only(machine: str) -> None:
    """Twice the peak; but attention, head and experts keep that of bf16."""
    for name, least, most in (("llama-8b", 1.6, 1.95), ("llama-1m", 1.05, 1.5), ("mixtral-1m", 1.0, 1.3)):
        config = {"model": {"preset": name, "config": {}}}
        resolved = [resolve(recipe(**config, train={"precision": precision})).recipe for precision in ("bf16", "fp8")]
        half, eight = (usable_peak(preset(name, {}), one, load_machine(machine)) for one in resolved)
        assert least < eight / half < most, name


def test_fp8_is_planned_by_its_own_peak() -> None:
    wide = {"model": {"preset": "llama-8b", "config": {}}}
    half, eight = (planned("h100", **wide, train={"precision": name, "batch_size": 64}) for name in ("bf16", "fp8"))
    assert 1.6 < half.update.typical / eight.update.typical < 1.95
    assert half.forecast.memory.peak == eight.forecast.memory.peak


def test_a_pipeline_holds_its_stage_and_waits_at_its_ends() -> None:
    wide = {"model": {"preset": "llama-8b", "config": {}}, "train": {"batch_size": 32, "micro_batch_size": 4}}
    one, staged = planned("h100-8", **wide), planned("h100-8", engine={"name": "pipeline"}, **wide)
    assert staged.forecast.memory.weights < 0.35 * one.forecast.memory.weights
    micro, stages = 8, 8
    assert staged.update.typical == pytest.approx(one.update.typical / stages * (micro + stages - 1) / micro, rel=0.05)


def test_small_models_are_bound_by_the_start_of_kernels() -> None:
    tiny = {"model": {"preset": "llama-1m", "config": {}}, "train": {"batch_size": 1}}
    plan = planned("h100", **tiny)
    assert plan.update.typical >= 4 * 2e-4
    assert plan.update.typical > 10 * plan.forecast.flops / 100 / (0.38 * 66.9e12)


def test_cost_is_time_times_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(MACHINE), encoding="utf-8")
    assert run(["plan", "cost", str(ROOT / "recipes" / "clm.yaml"), "--machine", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["currency"] == "EUR" and found["machine"]["name"] == "two"
    assert found["cost"]["typical"] == pytest.approx(found["seconds"]["typical"] * 2.5 / 3600)


def test_a_price_that_is_not_known_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "cost", str(ROOT / "recipes" / "clm.yaml"), "--machine", "h200"]) == 2
    assert "--price" in capsys.readouterr().err


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"memory_gb": 80}, "unknown key memory_gb"),
    ({"memory_gib": -1}, "memory_gib must be greater than 0"),
    ({"memory_gib": None}, "memory_gib has no value"),
    ({"kind": "tpu"}, "kind is not one of the allowed values"),
    ({"peak_tflops": {}}, "at least one precision"),
    ({"peak_tflops": {"fp4": 1}}, "peak_tflops"),
    ({"peak_tflops": {"fp32": 0}}, "greater than 0"),
    ({"link_gb_per_second": None}, "link_gb_per_second"),
    ({"utilisation": [0.5, 0.4, 0.3]}, "low, typical, high"),
    ({"utilisation": [0.5]}, "utilisation"),
    ({"devices": "many"}, "devices must be a whole number"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_descriptions_are_refused_with_file_and_key(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    plain = {key: value for key, value in {**MACHINE, **change}.items() if value is not None or key == "memory_gib"}
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        read_machine(file)
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) <= 5


def test_machines_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no machine of this name") as caught:
        load_machine("h100_8")
    assert "did you mean h100-8?" in str(caught.value.fix)
    with pytest.raises(ConfigError, match="no such file"):
        load_machine(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="key: value"):
        load_machine(str(tmp_path / "list.yaml"))


def test_what_the_recipe_and_the_machine_do_not_fit_together_in() -> None:
    with pytest.raises(ConfigError, match="no matrix peak for bf16"):
        planned("laptop", train={"precision": "bf16"})
    with pytest.raises(ConfigError, match="no matrix peak for fp8"):
        planned("a100-80g", train={"precision": "fp8"})
    with pytest.raises(ConfigError, match="has 8 devices"):
        planned("h100-8", 9, engine={"name": "ddp"})
    with pytest.raises(ConfigError, match="'single' uses one device"):
        planned("h100-8", 2)
    with pytest.raises(ConfigError, match="shape of the model is not known"):
        planned(model={"path": "not/there"})
    with pytest.raises(ConfigError, match="the data cannot be read"):
        planned(train={"steps": None, "epochs": 2})


def test_a_run_of_given_tokens_has_their_updates() -> None:
    assert planned(train={"steps": None, "tokens": 16 * 512 * 7}).forecast.steps == 7


def test_epochs_are_counted_on_the_data(tmp_path: Path) -> None:
    from trivium.tokenizers.train import train_bpe

    (tmp_path / "tok").mkdir()
    train_bpe(["some words and more words"], vocab_size=300).save(tmp_path / "tok")
    rows = [json.dumps({"text": "words and words " * 20}) for _ in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    plan = planned(
        tokenizer=str(tmp_path / "tok"),
        runs=str(tmp_path / "runs"),
        data={"train": str(tmp_path / "data.jsonl"), "sequence_length": 64, "packing": "best_fit"},
        train={"steps": None, "epochs": 2, "batch_size": 4},
    )
    assert 10 < plan.forecast.steps < 1000
