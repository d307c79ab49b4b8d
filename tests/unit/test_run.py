"""Whole runs through `tv.train`: what they leave, how they continue, stop, and refuse."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.artifacts.manifest import verify
from trivium.config import resolve
from trivium.core.callbacks import Metrics
from trivium.drivers.run_folder import RunFolder, set_aside
from trivium.errors import ConfigError, Interrupted, TrainingDiverged, TriviumError

pytestmark = pytest.mark.timeout(300)
Changed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data, tokenizer and recipe of a tiny run."""
    recipe = make_world(tmp_path_factory.mktemp("run"), "clm")
    recipe["train"].update(steps=6, checkpoint_every=2, validate_every=3, sample_every=3, threads=1)
    return recipe


@pytest.fixture
def changed(world: dict[str, Any], request: pytest.FixtureRequest) -> Changed:
    """The recipe under the name of the test, with changes to `train` and to the top level."""

    def make(top: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
        name = request.node.name.replace("[", "-").replace("]", "")
        return {**world, "name": name, **(top or {}), "train": {**world["train"], **train}}

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal after an update."""
    original = Metrics.update_end

    def update_end(self: Metrics, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.progression.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Metrics, "update_end", update_end)


def test_leaves_everything_the_design_names(changed: Changed) -> None:
    run = tv.train(changed())
    for name in (
        "config.yaml",
        "environment.json",
        "status.json",
        "forecast.json",
        "data.json",
        "report.html",
        "latest",
    ):
        assert (run.folder / name).stat().st_size > 0, name
    assert [line["step"] for line in lines(run.folder / "metrics.jsonl") if line["kind"] == "train"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    validations = [line for line in lines(run.folder / "metrics.jsonl") if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [3, 6]
    assert all(line["bits_per_byte"] > 0 for line in validations)
    assert sorted(path.name for path in (run.folder / "samples").iterdir()) == [
        f"step-{step:08d}.json" for step in (0, 3, 6)
    ]
    assert json.loads((run.folder / "status.json").read_text())["state"] == "finished"
    assert set(json.loads((run.folder / "forecast.json").read_text())) == {"forecast", "fact"}
    assert run.final is not None
    verify(run.final)
    text = render_text(read_lineage(run.final))
    assert "tokenizer" in text and "training data" in text


def test_the_final_folder_is_the_trained_model_for_other_tools(changed: Changed) -> None:
    transformers = pytest.importorskip("transformers")
    run = tv.train(changed())
    assert run.final is not None
    ours, theirs = tv.load(run.final), transformers.AutoModelForCausalLM.from_pretrained(run.final)
    ids = torch.randint(3, 400, (2, 17))
    with torch.no_grad():
        assert float((ours.module(ids) - theirs.eval()(ids).logits).abs().max()) < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.final)
    assert theirs.generation_config.eos_token_id in (ours.tokenizer.eos_id, list(ours.tokenizer.stop_ids))
    assert theirs.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    prompt = tokenizer("abc def", return_tensors="pt")
    expected = theirs.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert ours.generate("abc def", max_new_tokens=12, temperature=0) == tokenizer.decode(
        expected, skip_special_tokens=True
    )


def test_a_finished_run_is_not_trained_again(changed: Changed, capsys: pytest.CaptureFixture[str]) -> None:
    before = tv.train(changed())
    state = fingerprint(before.folder)
    assert tv.train(changed()) == before
    assert fingerprint(before.folder) == state
    assert "is finished" in capsys.readouterr().err


def test_fresh_sets_the_earlier_run_aside(changed: Changed) -> None:
    first = tv.train(changed())
    state = fingerprint(first.folder)
    again = tv.train(changed(), fresh=True)
    aside = again.folder.with_name(f"{again.folder.name}.1")
    assert fingerprint(aside) == state == fingerprint(again.folder)


def test_fresh_never_moves_a_run_that_is_still_going(changed: Changed) -> None:
    folder = RunFolder(resolve(changed()))
    with folder.locked(), pytest.raises(ConfigError, match="another process is training"):
        tv.train(changed(), fresh=True)
    assert [path.name for path in folder.path.parent.glob(f"{folder.path.name}*")] == [folder.path.name]


def test_a_folder_that_was_set_aside_while_it_was_taken_is_taken_anew(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(resolve(changed()))
    real, calls = fcntl.flock, []

    def after_a_rename(descriptor: int, operation: int) -> None:
        if not calls:
            calls.append(set_aside(folder.path))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_rename)
    with folder.locked():
        assert folder.path.is_dir() and calls[0].is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_ends_bit_identical(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calm = fingerprint(tv.train({**changed(), "name": f"calm-{number}"}).folder)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, number)
        with pytest.raises(Interrupted, match=r"stopped by SIG.* after update 3 of 6") as caught:
            tv.train(changed())
    assert len(str(caught.value).splitlines()) <= 5 and caught.value.exit_code == 5
    run = tv.train(changed())
    assert fingerprint(run.folder) == calm


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = fingerprint(tv.train({**changed(), "name": "calm-damage"}).folder)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            tv.train(changed())
    folder = Path(changed()["runs"]) / changed()["name"]
    weights = folder / "checkpoints" / "step-00000005" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    run = tv.train(changed())
    assert fingerprint(run.folder) == calm
    assert (folder / "checkpoints" / "damaged-step-00000005").is_dir()
    assert "model.safetensors" in capsys.readouterr().err


def test_continuing_with_other_settings_is_refused(changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted):
            tv.train(changed())
    with pytest.raises(ConfigError, match=r"another train\.lr") as caught:
        tv.train(changed(lr=1.0))
    assert "--fresh" in str(caught.value) and len(str(caught.value).splitlines()) <= 5
    assert tv.train(changed(log_every=2)).final is not None, "how it is logged may change"


def test_continuing_where_numbers_are_rounded_otherwise_is_said(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for end in (2, 4):
        with monkeypatch.context() as patch:
            interrupt_at(patch, end)
            with pytest.raises(Interrupted):
                tv.train(changed())
        assert "rounded otherwise" not in capsys.readouterr().err
    record = Path(changed()["runs"]) / changed()["name"] / "environment.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "torch": {**found["torch"], "kernels": "another"}}))
    tv.train(changed())
    said = capsys.readouterr().err
    assert "numbers are rounded otherwise: torch kernels: another, now " in said


def test_divergence_stops_and_leaves_the_last_good_checkpoint(changed: Changed) -> None:
    with pytest.raises(TrainingDiverged, match="not finite in 3 updates in a row") as caught:
        tv.train(changed(lr=1e30, clip=None, max_nonfinite=2, steps=20, warmup_steps=0))
    assert len(str(caught.value).splitlines()) <= 5
    folder = Path(changed()["runs"]) / changed()["name"]
    assert json.loads((folder / "status.json").read_text())["state"] == "diverged"
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_and_keeps_full_weights(changed: Changed, precision: str, world: dict[str, Any]) -> None:
    run = tv.train(changed(precision=precision))
    full = tv.train({**changed(), "name": f"full-for-{precision}"})
    ours, reference = (
        [line["loss"] for line in lines(each.folder / "metrics.jsonl") if line["kind"] == "train"]
        for each in (run, full)
    )
    assert ours != reference and ours == pytest.approx(reference, rel=0.02)
    assert run.final is not None
    assert next(tv.load(run.final).module.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("option", "changes_result"),
    [
        ({"micro_batch_size": 1}, False),
        ({"activation_checkpointing": "block"}, False),
        ({"lr": 1e-3}, True),
        ({"schedule": "linear"}, True),
        ({"clip": 0.01}, True),
        ({"optimizer": {"name": "adamw", "weight_decay": 20.0}}, True),
        ({"optimizer": {"name": "adamw", "fused": False}}, False),
        ({"warmup_steps": 4}, True),
        ({"batch_size": 6}, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_change_what_they_say(changed: Changed, option: dict[str, Any], changes_result: bool) -> None:
    plain = {"model": {"preset": "gpt2-1m", "config": {"vocab_size": 400, "num_layers": 2, "dropout": 0.0}}}
    base = tv.train({**changed(plain), "name": "options-base"})
    run = tv.train(changed(plain, **option))
    assert base.final is not None and run.final is not None
    ours, reference = (dict(tv.load(each.final).module.state_dict()) for each in (run, base))
    close = all(torch.allclose(ours[name], reference[name], rtol=1e-3, atol=2e-5) for name in reference)
    assert close != changes_result


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_decides(changed: Changed, seed: int) -> None:
    first = fingerprint(tv.train(changed({"seed": seed})).folder)
    second = fingerprint(tv.train({**changed({"seed": seed}), "name": f"again-{seed}"}).folder)
    other = fingerprint(tv.train({**changed({"seed": seed + 10}), "name": f"other-{seed}"}).folder)
    assert first == second and first["final"] != other["final"]


def test_preflight_finds_rows_without_an_answer_end(world: dict[str, Any], tmp_path: Path) -> None:
    recipe = make_world(tmp_path, "sft")
    tv.train({**recipe, "train": {**recipe["train"], "lr": 1e-2}}, preflight=True)
    assert not (tmp_path / "runs" / recipe["name"]).exists(), "a rehearsal leaves no run"


def test_a_run_that_cannot_fit_is_refused_with_a_setting_that_does(
    changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trivium.core import plan

    monkeypatch.setattr(plan, "_free_memory", lambda: 200 << 20)
    with pytest.raises(TriviumError, match="needs about") as caught:
        tv.train(changed({"model": {"preset": "llama-100m", "config": {"vocab_size": 400}}}))
    assert len(str(caught.value).splitlines()) <= 5


def test_a_full_disk_costs_a_checkpoint_not_the_run(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trivium.artifacts.checkpoints import CheckpointStore
    from trivium.artifacts.writer import DiskFull

    save, full = CheckpointStore.save, [2, 4]

    def failing(self: CheckpointStore, step: int, *rest: Any, **named: Any) -> Path:
        if step in full:
            raise DiskFull("cannot be written: no space", where=self.folder, fix="free some space")
        return save(self, step, *rest, **named)

    monkeypatch.setattr(CheckpointStore, "save", failing)
    run = tv.train(changed())
    assert run.final is not None and [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000006"]
    assert "update 2 was not saved, training goes on" in capsys.readouterr().err
    full.append(6)
    with pytest.raises(DiskFull):
        tv.train({**changed(), "name": "full-at-the-end"})


def test_tensorboard_gets_the_metrics(changed: Changed) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tv.train(changed(tensorboard=True))
    events = event_accumulator.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    logged = [line["loss"] for line in lines(run.folder / "metrics.jsonl") if line["kind"] == "train"]
    mirrored = [event.tensor_proto.float_val[0] for event in events.Tensors("train/loss")]
    assert mirrored == pytest.approx(logged)


def test_a_mirror_that_fails_never_stops_a_run(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = pytest.importorskip("tensorboard.summary").Writer
    monkeypatch.setattr(writer, "add_scalar", lambda *_, **__: 1 / 0)
    assert tv.train(changed(tensorboard=True)).final is not None
    assert capsys.readouterr().err.count("no longer written") == 1
