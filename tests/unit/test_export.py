"""Merging into the base and merging several: what comes out says what it should, and says what it changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.unit.adapter_world import TEXT, write_adapter, write_base
from tests.unit.labelled import write_rows
from trivium.artifacts.manifest import verify
from trivium.artifacts.record import read_record
from trivium.cli.main import run
from trivium.drivers.exporting import Checks, export_folder
from trivium.drivers.merging import merge_folders
from trivium.errors import ModelError
from trivium.models.adapter_folder import adapter_values, put_values
from trivium.models.folder import load_model
from trivium.models.merging import _dropped, combine
from trivium.models.transform import apply_transforms, merge_all
from trivium.transforms.lora import LoRA
from trivium.transforms.quantize import Quantize

IDS = torch.randint(3, 290, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    base = write_base(folder / "base")
    return {
        "base": base,
        "one": write_adapter(base, folder / "one"),
        "two": write_adapter(base, folder / "two", seed=2),
    }


def says(folder: Path, **settings: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_model(folder, **settings).eval()(IDS)
    return found


def state(folder: Path) -> dict[str, torch.Tensor]:
    model = load_model(folder)
    merge_all(model)
    return dict(model.state_dict())


# trivium export


def test_a_merged_adapter_is_a_plain_model_with_a_certificate(world: dict[str, Path], tmp_path: Path) -> None:
    words = tmp_path / "prompts.txt"
    words.write_text("\n".join(TEXT))
    out = tmp_path / "merged"
    assert run(["export", str(world["one"]), "--merge", "-o", str(out), "--prompts", str(words)]) == 0
    verify(out)
    torch.testing.assert_close(says(out), says(world["one"]), atol=1e-4, rtol=1e-4)
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["holds"] and certificate["same_ids"] and certificate["prompts"] == 3
    assert certificate["relative"] < 1e-4 and abs(certificate["kl"]) < 1e-6 and certificate["same_choice"] == 1
    record = read_record(out)
    assert record is not None and {parent.role for parent in record.parents} == {"adapter", "base"}
    assert record.config is not None and record.config["certificate"]["tokens"] == certificate["tokens"]
    assert tv.load(out).generate("the", max_new_tokens=3, temperature=0) == tv.load(world["one"]).generate(
        "the", max_new_tokens=3, temperature=0
    )


def test_a_change_is_refused_unless_it_is_accepted(world: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "small"
    with pytest.raises(ModelError, match="would not say") as caught:
        export_folder(world["one"], out, merge=True, dtype="bfloat16", checks=Checks(tolerance=1e-5))
    assert str(caught.value).count("\n") < 5 and not out.exists()
    found = export_folder(world["one"], out, merge=True, dtype="bfloat16", checks=Checks(tolerance=1e-5, accept=True))
    assert found.accepted and found.relative > 1e-5
    assert json.loads((out / "certificate.json").read_text())["accepted"] is True
    assert load_model(out).get_parameter("embed.weight").dtype == torch.bfloat16
    assert export_folder(world["base"], tmp_path / "half", dtype="bfloat16", checks=Checks(tolerance=1.0)).holds


def test_the_score_of_the_task_is_compared(world: dict[str, Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", [{"source": text, "target": text[:5]} for text in TEXT])
    found = export_folder(world["one"], tmp_path / "out", merge=True, checks=Checks(data=rows, count=2))
    assert found.scores["before"] == found.scores["after"] and found.scores["before"]


def test_a_quantised_base_is_merged_as_it_was_trained_on(world: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(
        world["base"], tmp_path / "four", Quantize(Quantize.Config(to="nf4")), LoRA(LoRA.Config(rank=4))
    )
    plain = write_adapter(world["base"], tmp_path / "plain")
    assert (says(adapter) - says(plain)).abs().max() > 1e-2
    assert json.loads((adapter / "adapters.json").read_text())["prepared"] == [
        {"name": "quantize", "to": "nf4", "exclude": []}
    ]
    found = export_folder(adapter, tmp_path / "merged", merge=True)
    assert found.holds
    torch.testing.assert_close(says(tmp_path / "merged"), says(adapter), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("which", "settings", "message"),
    [
        ("one", {}, "add --merge|holds an adapter"),
        ("base", {"merge": True}, "no adapter"),
        ("base", {}, "nothing would change"),
        ("base", {"dtype": "float8"}, "unknown type"),
    ],
)
def test_exports_that_make_no_sense_are_refused(
    world: dict[str, Path], tmp_path: Path, which: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        export_folder(world[which], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_the_base_may_have_been_moved(world: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(world["base"], moved)
    adapter = write_adapter(moved, tmp_path / "adapter")
    shutil.move(moved, tmp_path / "again")
    with pytest.raises(ModelError, match="base of the adapter is not there"):
        tv.load(adapter)
    model = tv.load(adapter, base=tmp_path / "again")
    assert model.generate("the", max_new_tokens=2, temperature=0) is not None
    assert run(["generate", str(adapter), "the", "--max-new-tokens", "2", "--base", str(tmp_path / "again")]) == 0


# trivium merge


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("rule", ["linear", "ties", "dare", "dare_ties"])
def test_the_maths_is_that_of_peft(rule: str, density: float) -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    stream = torch.Generator().manual_seed(0)
    changes = [torch.randn(20, 30, generator=stream) for _ in range(3)]
    weights = [0.5, 1.0, 2.0]
    ours = combine(changes, weights, rule, density=density, seed=3, name="x")  # type: ignore[arg-type]
    tensor = torch.tensor(weights)
    if rule == "linear":
        expected = utils.task_arithmetic(changes, tensor)
    elif rule == "ties":
        expected = utils.ties(changes, tensor, density)
    elif density == 1:
        expected = (utils.dare_ties if rule == "dare_ties" else utils.dare_linear)(changes, tensor, 1.0)
    else:  # what is dropped is drawn elsewhere: theirs on what is left of ours, made larger as they do it
        kept = [_dropped(change, density, 3, f"x.{number}") for number, change in enumerate(changes)]
        share = float((kept[0] != 0).float().mean())
        assert abs(share - density) < 0.05
        torch.testing.assert_close(kept[0][kept[0] != 0], changes[0][kept[0] != 0] / density)
        assert not torch.equal(kept[0], _dropped(changes[0], density, 4, "x.0"))
        expected = utils.ties(kept, tensor, 1.0) if rule == "dare_ties" else utils.task_arithmetic(kept, tensor)
    torch.testing.assert_close(ours, expected)


def test_adapters_are_merged_into_a_model_or_an_adapter(world: dict[str, Path], tmp_path: Path) -> None:
    sources = [world["one"], world["two"]]
    found = merge_folders(sources, tmp_path / "model", weights=[0.7, 0.3])
    assert found.kind == "model" and 0 < found.relative < 1 and 0.3 < found.conflicts < 0.7
    base, one, two = (state(world[name]) for name in ("base", "one", "two"))
    whole = state(tmp_path / "model")
    for name, tensor in whole.items():
        expected = base[name] + 0.7 * (one[name] - base[name]) + 0.3 * (two[name] - base[name])
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
    exact = merge_folders(sources, tmp_path / "adapter", weights=[0.7, 0.3], rank=8)
    assert exact.kind == "adapter" and exact.lost is not None and exact.lost < 1e-9
    torch.testing.assert_close(says(tmp_path / "adapter"), says(tmp_path / "model"), atol=1e-4, rtol=1e-4)
    less = merge_folders(sources, tmp_path / "less", weights=[0.7, 0.3], rank=2)
    assert less.lost is not None and less.lost > 0.1
    tv.load(tmp_path / "adapter")


def test_models_are_averaged_with_and_without_a_base(world: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_folder(world[name], tmp_path / name, merge=True)
    models = [tmp_path / "one", tmp_path / "two"]
    assert run(["merge", *map(str, models), "-o", str(tmp_path / "soup")]) == 0
    one, two, soup = (state(folder) for folder in (*models, tmp_path / "soup"))
    assert all(torch.allclose(soup[name], (one[name] + two[name]) / 2, atol=1e-6) for name in soup)
    command = ["merge", *map(str, models), "-o", str(tmp_path / "ties"), "--method", "ties", "--density", "0.4"]
    assert run(command) == 2  # no base
    assert run([*command, "--base", str(world["base"])]) == 0
    merge_folders([world["one"], world["two"]], tmp_path / "same", method="ties", density=0.4)
    torch.testing.assert_close(says(tmp_path / "ties"), says(tmp_path / "same"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(says(tmp_path / "ties"), says(tmp_path / "soup"), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tie"}, "did you mean ties"),
        ({"weights": [1.0]}, "one weight"),
        ({"density": 0.5}, "no effect"),
        ({"method": "ties", "density": 0.0}, "share"),
    ],
)
def test_merges_that_make_no_sense_are_refused(
    world: dict[str, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        merge_folders([world["one"], world["two"]], tmp_path / "out", **settings)


def test_adapters_of_different_bases_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    other = write_adapter(write_base(tmp_path / "other", seed=5), tmp_path / "adapter")
    with pytest.raises(ModelError, match="different bases"):
        merge_folders([world["one"], other], tmp_path / "out")


def test_models_of_different_shapes_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    other = write_base(tmp_path / "wide", intermediate_size=96)
    with pytest.raises(ModelError, match="different shapes"):
        merge_folders([world["base"], other], tmp_path / "out")
    four = write_adapter(world["base"], tmp_path / "four", Quantize(Quantize.Config()), LoRA(LoRA.Config()))
    with pytest.raises(ModelError, match="quantised base"):
        merge_folders([world["one"], four], tmp_path / "out")


@pytest.mark.parametrize(
    "settings", [{"init": "pissa"}, {"init": "olora", "dora": True}, {"tokens": [5]}, {"bias": "all"}]
)
def test_what_continues_a_run_is_all_in_the_folder(
    world: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """As `Checkpoints.restore` does: the same transforms on a fresh base, and then the values of the folder."""
    adapter = write_adapter(world["base"], tmp_path / "adapter", LoRA(LoRA.Config(rank=4, **settings)))
    fresh = load_model(world["base"]).eval()
    apply_transforms(fresh, [LoRA(LoRA.Config(rank=4, **settings))], seed=7)
    values = adapter_values(adapter, fresh)
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} <= set(values)
    put_values(fresh, values)
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS), says(adapter), atol=1e-4, rtol=1e-4)
