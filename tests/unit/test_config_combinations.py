"""Settings that contradict each other or this machine are refused before any work, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trivium import combinations
from trivium.cli.main import run
from trivium.combinations import refuse_wrong_combinations
from trivium.config import resolve
from trivium.errors import ConfigError

RECIPE = """\
name: run
method: clm
model: {preset: llama-1m}
tokenizer: tokenizer
data:
  train: data.txt
train:
  steps: 100
"""
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    installed = combinations._installed
    monkeypatch.setattr(combinations, "_installed", lambda name: name == "torchao" or installed(name))
    Path("recipe.yaml").write_text(RECIPE)
    Path("data.txt").write_text("text")
    for place, marker in (("tokenizer", "tokenizer.json"), ("models/final", "config.json")):
        Path(place).mkdir(parents=True)
        Path(place, marker).write_text("{}")
    return tmp_path


def refused(overrides: list[str], environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        refuse_wrong_combinations(resolve("recipe.yaml", overrides), environment or {})
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    return message


CASES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "data is not there": (["data.train=dta.txt"], {}, ["no such data", "did you mean data.txt?"]),
    "held-out data is not there": (["data.validation=[data.txt, v.txt]"], {}, ["no such data", "v.txt", "relative to"]),
    "name too long for any disk": (["data.train=" + "x" * 300], {}, ["no such data", "check the path"]),
    "no data at all": (["data.train=[]"], {}, ["data.train is empty"]),
    "model is not there": (["model={path: models/finale}"], {}, ["no such folder", "did you mean models/final?"]),
    "model of the hub": (["model={path: meta/llama}"], {}, ["no such folder", "hf download meta/llama"]),
    "folder above the model": (["model={path: models}"], {}, ["no config.json", "did you mean models/final?"]),
    "tokenizer is not there": (["tokenizer=tokeniser"], {}, ["no such folder", "did you mean tokenizer?"]),
    "tokenizer folder without one": (["tokenizer=models"], {}, ["tokenizer holds no tokenizer.json"]),
    "no tokenizer for new weights": (["tokenizer=null"], {}, ["needs tokenizer: FOLDER", "trivium tokenizer train"]),
    "teacher is not there": (["method={name: distill, teacher: models/big}"], {}, ["no such folder", "models/big"]),
    "runs is a file": (["runs=data.txt"], {}, ["runs must be a folder", "data.txt"]),
    "ddp alone": (["engine.name=ddp"], {}, ["torchrun", "recipe.yaml"]),
    "fsdp2 alone": (["engine.name=fsdp2"], {}, ["torchrun"]),
    "single in torchrun": ([], TORCHRUN, ["2 processes", "engine.name=ddp"]),
    "unknown device": (["engine.device=gpu"], {}, ["unknown device", "gpu", "cuda"]),
    "several passes in a pipeline": (["engine.name=pipeline", "method=freelb"], TORCHRUN, ["no pipeline", "fsdp2"]),
    "rollouts in a pipeline": (["engine.name=pipeline", "method=grpo"], TORCHRUN, ["no pipeline", "rollouts"]),
    "rollouts of sharded ranks": (["engine.name=fsdp2", "method=grpo"], TORCHRUN, ["generates text", "ddp"]),
    "heads that do not divide": (
        ["engine.name=tensor", "model.preset=llama-1m", "model.config.num_kv_heads=1"],
        TORCHRUN,
        ["num_kv_heads 1", "tensor", "fsdp2"],
    ),
    "divided terms of heads": (
        ["engine.name=tensor", "model.preset=falcon-1m", "model.config.positions=alibi", "model.config.num_kv_heads=4"],
        TORCHRUN,
        ["'alibi'", "fsdp2"],
    ),
    "tensor alone": (["engine.name=tensor"], {}, ["torchrun"]),
    "rollouts of divided ranks": (["engine.name=tensor", "method=grpo"], TORCHRUN, ["generates text", "ddp"]),
    "divided adapters": (
        ["engine.name=tensor", "model={path: models/final}", "transforms=[{name: lora}]"],
        TORCHRUN,
        ["does not divide those of lora", "fsdp2"],
    ),
    "divided and quantised": (
        ["engine.name=tensor", "model={path: models/final}", "transforms=[{name: quantize}, {name: lora}]"],
        TORCHRUN,
        ["does not divide those of lora", "engine.name"],
    ),
    "divided in fp16": (["engine.name=tensor", "train.precision=fp16"], TORCHRUN, ["loss scale", "precision=bf16"]),
    "divided and compiled": (["engine.name=tensor", "train.compile=on"], TORCHRUN, ["not compiled", "compile=auto"]),
    "divided beside the GPU": (
        ["engine.name=tensor", "train.offload=activations"],
        TORCHRUN,
        ["cannot be offloaded", "offload=none"],
    ),
    "divided in 8 bits": (["engine.name=tensor", "train.optimizer=adamw8bit"], TORCHRUN, ["cut into the shards"]),
    "prompts that do not divide": (
        ["engine.name=ddp", "method=grpo", "train.batch_size=7"],
        TORCHRUN,
        ["do not divide", "multiple of 2"],
    ),
    "part larger than the whole": (["train.micro_batch_size=9"], {}, ["larger than train.batch_size (8)", "9"]),
    "warm-up longer than the run": (["train.warmup_steps=101"], {}, ["larger than the run of 100 steps"]),
    "schedule of a schedule-free optimiser": (
        ["train.optimizer=schedule_free"],
        {},
        ["need a constant learning rate", "set train.schedule=constant"],
    ),
    "average of an average": (
        ["train.optimizer=schedule_free", "train.schedule=constant", "train.ema={}"],
        {},
        ["averages the weights already", "delete train.ema"],
    ),
    "clipping by value of nothing": (["train.clip=null", "train.clip_by=value"], {}, ["clip_by has no effect"]),
    "shards beside the GPU": (["engine.name=fsdp2", "train.offload=optimizer"], TORCHRUN, ["cannot be offloaded"]),
    "shards in 8 bits": (["engine.name=fsdp2", "train.optimizer=adamw8bit"], TORCHRUN, ["cut into the shards"]),
    "fp16 beside the GPU": (["train.precision=fp16", "train.offload=all"], {}, ["loss scale", "precision=bf16"]),
    "a pipeline in fp8": (
        ["engine.name=pipeline", "train.precision=fp8"],
        TORCHRUN,
        ["pipeline does not go with FP8", "precision=bf16"],
    ),
    "divided in fp8": (["engine.name=tensor", "train.precision=fp8"], TORCHRUN, ["does not go with FP8", "fsdp2"]),
    "half weights in fp8": (
        ["train.precision=fp8", "model.dtype=bfloat16"],
        {},
        ["weights in float32", "bfloat16", "delete this line"],
    ),
    "adapters in fp8": (
        ["train.precision=fp8", "model={path: models/final}", "transforms=[{name: lora}]"],
        {},
        ["lora changes", "lora", "precision=bf16"],
    ),
    "a quantised base in fp8": (
        ["train.precision=fp8", "model={path: models/final}", "transforms=[{name: quantize}, {name: lora}]"],
        {},
        ["quantize changes", "precision=bf16"],
    ),
    "kept elsewhere and computed again": (
        ["train.offload=activations", "train.activation_checkpointing=mlp"],
        {},
        ["need not be kept elsewhere"],
    ),
    "every second of none": (["train.checkpoint_every_block=2"], {}, ["checkpoint_every_block has no effect"]),
    "power of a cosine": (["train.schedule_power=2"], {}, ["schedule_power has no effect", "polynomial"]),
    "cycles of a cosine": (["train.schedule_cycles=3"], {}, ["schedule_cycles has no effect", "cosine_restarts"]),
    "decay of a cosine": (["train.decay_shape=sqrt"], {}, ["decay_shape has no effect", "wsd"]),
    "shape of no warm-up": (["train.warmup_steps=0", "train.warmup_shape=cosine"], {}, ["warmup_shape has no effect"]),
    "start of no warm-up": (["train.warmup_steps=0", "train.warmup_start_ratio=0.1"], {}, ["warmup_start_ratio"]),
    "rows longer than the positions": (
        ["model.preset=gpt2-1m", "data.sequence_length=100000"],
        {},
        ["learned positions", "100000", "set data.sequence_length="],
    ),
    "validation without data": (["train.validate_every=5"], {}, ["no effect", "data.validation", "delete this line"]),
    "samples without prompts": (["train.sample_tokens=5"], {}, ["no effect", "sample_prompts"]),
    "decay of another schedule": (["train.decay_fraction=0.5"], {}, ["no effect", "train.schedule=wsd"]),
    "end of a constant schedule": (["train.schedule=constant", "train.min_lr_ratio=0"], {}, ["no effect"]),
    "answers of no instructions": (["data.chat.train_on=last"], {}, ["no effect", "does not read instructions"]),
    "prompts of no instructions": (["data.chat.prompt_loss_weight=0.1"], {}, ["no effect", "method: sft"]),
    "system message of documents": (["data.chat.system=Hi"], {}, ["no effect", "reads no conversations"]),
    "schedule of no pipeline": (["engine.pipeline_schedule=gpipe"], {}, ["no effect", "engine.name=pipeline"]),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, folder: Path) -> None:
    overrides, environment, expected = CASES[name]
    message = refused(overrides, environment)
    for fragment in expected:
        assert fragment in message, message


@pytest.mark.parametrize(
    ("overrides", "environment"),
    [
        ([], {}),
        (["engine.name=ddp"], TORCHRUN),
        (["engine.name=pipeline", "engine.pipeline_schedule=gpipe"], TORCHRUN),
        (["model={path: models/final}", "tokenizer=tokenizer"], {}),
        (["train.schedule=wsd", "train.decay_fraction=0.5"], {}),
        (["data.validation=data.txt", "train.validate_every=5"], {}),
        (["train.decay_fraction=0.2"], {}),
        (["train.precision=fp8"], {}),
        (["train.precision=fp8", "engine.name=fsdp2"], TORCHRUN),
        (["engine.device=cuda:3"], {}),
    ],
)
def test_accepted(overrides: list[str], environment: dict[str, str], folder: Path) -> None:
    refuse_wrong_combinations(resolve("recipe.yaml", overrides), environment)


def test_the_complete_dump_is_accepted_too(folder: Path) -> None:
    """It spells out every default, which must not count as a setting without effect."""
    Path("config.yaml").write_text(resolve("recipe.yaml").to_yaml())
    refuse_wrong_combinations(resolve("config.yaml"), {})


@pytest.mark.parametrize(
    ("override", "package", "extra"),
    [
        ("train.tensorboard=true", "tensorboard", "tensorboard"),
        ("train.precision=fp8", "torchao", "fp8"),
        ("data.train=data.parquet", "pyarrow", "data"),
        ("data.train=data.txt.zst", "zstandard", "data"),
    ],
)
def test_missing_packages(
    override: str, package: str, extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data.parquet", "data.txt.zst"):
        Path(name).write_bytes(b"")
    monkeypatch.setattr(combinations, "_installed", lambda name: name != package)
    message = refused([override])
    assert package in message and f"trivium[{extra}]" in message


def test_the_file_and_line_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.txt").unlink()
    assert run(["train", "recipe.yaml"]) == 2
    assert "where: recipe.yaml:6" in capsys.readouterr().err


def test_refused_without_torch_and_quickly(folder: Path) -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from trivium.cli.main import run\n"
        "code = run(['train', 'recipe.yaml', sys.argv[1]])\n"
        "print(code, 'torch' in sys.modules, time.process_time() - start)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    for override in ("train.lrr=3", "data.train=nowhere.txt"):
        done = subprocess.run(
            [sys.executable, "-c", code, override],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
            check=True,
        )
        exit_code, torch_loaded, seconds = done.stdout.split()
        assert (exit_code, torch_loaded) == ("2", "False"), done.stderr
        assert float(seconds) < 1.0
