"""Whole training runs and decoding on a GPU beside transformers, each measurement in a process of its own."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

WARMUP = 4
NEW = 128
DENSE_BF16 = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12, "4090": 165.2e12, "B200": 2250e12}
"""Peaks by a part of the device's name, of the makers' data sheets."""
TRAINING = ("ours", "ours_compiled", "fp8_compiled", "eager", "compiled")
"""Ours in FP8 is called otherwise, so that it is compared with ours in bf16 and never with the peers."""
OURS = ("ours", "fp8")
TUNING = ("ours", "padded", "grouped", "trl_packing")


@dataclass(frozen=True)
class Device:
    """peak, copy: measured FLOP/s of a bf16 matrix product and bytes/s of reading; sheet: the maker's peak, or 0."""

    name: str
    peak: float
    sheet: float
    copy: float

    @property
    def words(self) -> str:
        """One line for people."""
        sheet = f"{self.sheet / 1e12:.0f} TFLOP/s on the data sheet" if self.sheet else "peak not known"
        return f"{self.name}: {sheet}, {self.peak / 1e12:.1f} measured, reads {self.copy / 1e9:.0f} GB/s"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What is trained and decoded."""

    folder: Path
    device: str
    preset: str
    sequence: int
    batch: int
    micro: int
    steps: int
    pairs: int
    checkpointing: str
    small: bool

    @property
    def warmup(self) -> int:
        """Updates that are not counted."""
        return 1 if self.small else WARMUP

    @property
    def precision(self) -> str:
        """bf16, on a CPU too: it is the path that is tried."""
        return "bf16"


def describe_device(device: str) -> Device:
    """Name, peaks and bandwidth; seconds on a GPU, less on a CPU."""
    import torch

    from trivium.core.progress import matrix_peak

    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    size = 1 << (30 if cuda else 24)
    held = torch.ones(size, dtype=torch.uint8, device=device)
    found = []
    for _ in range(5):
        begin = time.perf_counter()
        held.view(torch.int64).sum()
        if cuda:
            torch.cuda.synchronize(device)
        found.append(size / (time.perf_counter() - begin))
    sheet = next((peak for part, peak in DENSE_BF16.items() if part in name), 0.0)
    return Device(name, matrix_peak(device, "bfloat16" if cuda else "float32"), sheet, max(found))


def compare_training(
    setting: Setting, device: Device, runs: dict[str, Any], better: dict[str, Any], failed: list[str], *, mixed: bool
) -> None:
    """Takes turns; adds to `runs` and `better` under `training` or `tuning`."""
    name, sides = ("tuning", TUNING) if mixed else ("training", sides_of_training(setting.device))
    prepare(setting, mixed=mixed)
    found: dict[str, list[dict[str, float]]] = {}
    for pair in range(setting.pairs):
        for side in sides if pair % 2 == 0 else sides[::-1]:
            result = in_process(setting, "training", side, mixed=mixed)
            if "failed" in result:
                print(f"{name} {side}: not measured, {result['failed']}", flush=True)
                if side.startswith(OURS):
                    failed.append(f"{name} {side}")
                continue
            result["utilisation"] = result.pop("flops_per_second") / (device.sheet or device.peak)
            found.setdefault(side, []).append(result)
            print(f"{name} {side:14}", {key: round(value, 4) for key, value in result.items()}, flush=True)
    ordered = {side: found[side] for side in sides if side in found}
    if "ours" in ordered:
        runs[name] = ordered
        better[name] = {"tokens_per_second": "more", "memory": "less", "utilisation": "more"}


def sides_of_training(device: str) -> tuple[str, ...]:
    """All of them, without those in FP8 where there is none."""
    import torch
    from checks import without_float8

    reason = without_float8(torch.device(device))
    if not reason:
        return TRAINING
    print(f"left out: training in FP8, {reason}", flush=True)
    return tuple(side for side in TRAINING if not side.startswith("fp8"))


def time_float8(setting: Setting) -> list[dict[str, Any]]:
    """Milliseconds of one compiled linear layer, forwards and backwards, in bf16 and FP8: from which width it pays."""
    import torch
    from checks import without_float8
    from torch import nn

    from trivium.core.float8 import to_float8
    from trivium.models.build import build_model, preset

    device = torch.device(setting.device)
    if reason := without_float8(device):
        print(f"left out: layers in FP8, {reason}", flush=True)
        return []
    found = []
    for width in (64,) if setting.small else (1024, 2048, 4096, 8192):
        for tokens in (64,) if setting.small else (4096, 16384):
            shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_layers": 1, "vocab_size": 64}
            row: dict[str, Any] = {"width": width, "inner": 4 * width, "tokens": tokens}
            for side in ("bf16", "fp8"):
                model = build_model(preset("llama-1m", {**shape, "num_heads": 1, "num_kv_heads": 1}), seed=0)
                model.to(device)
                if side == "fp8":
                    to_float8(model, device)
                layer = model.blocks[0].mlp.up
                assert isinstance(layer, nn.Linear)
                if not setting.small:
                    torch.compiler.reset()  # torch compiles the same code for a few shapes only, then leaves it eager
                    layer.compile()
                row[side] = layer_milliseconds(layer, tokens, device)
            found.append({**row, "faster": row["bf16"] / row["fp8"]})
            print("layer", {key: round(value, 3) for key, value in found[-1].items()}, flush=True)
    return found


def layer_milliseconds(layer: Any, tokens: int, device: Any) -> float:
    """The best of a few, after what is compiled and measured first."""
    import torch

    x = torch.randn(tokens, layer.in_features, device=device, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(tokens, layer.out_features, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            y = layer(x)
        y.backward(upstream)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
        layer.weight.grad = x.grad = None
    return 1e3 * min(seconds[3:])


def prepare(setting: Setting, *, mixed: bool) -> None:
    """Texts and tokenizer; long texts for full rows, otherwise of mixed lengths."""
    from texts import write_texts

    needed = (setting.steps + 2) * setting.batch * setting.sequence
    long = setting.sequence
    write_texts(
        setting.folder,
        words=needed // 2 + 20_000,
        vocabulary=600 if setting.small else 8192,
        lengths=(max(4, long // 40), max(8, long // 4)) if mixed else (4 * long, 8 * long),
    )


def in_process(setting: Setting, what: str, side: str, *, mixed: bool = False) -> dict[str, Any]:
    """One measurement; {"failed": why} if it did not work, so that the others are still made."""
    command = [
        sys.executable,
        str(HERE / "speed.py"),
        what,
        side,
        json.dumps({**asdict(setting), "mixed": mixed}, default=str),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    result: dict[str, Any] = json.loads(lines[-1][7:])
    return result


def shape(setting: Setting) -> Any:
    """The model's shape; the vocabulary stays the preset's, as a large model has it."""
    from trivium.models.build import preset

    longest = max(setting.sequence, 512)
    return preset(setting.preset, {"max_positions": longest} if setting.small else {})


def our_training(setting: Setting, side: str, *, mixed: bool) -> dict[str, float]:
    """A whole run of `tv.train`."""
    import trivium as tv

    run = tv.train(
        {
            "name": f"ours-{time.time_ns()}",
            "runs": str(setting.folder / "runs"),
            "method": "clm",
            "model": {"preset": setting.preset, "config": {"max_positions": shape(setting).max_positions}},
            "tokenizer": str(setting.folder / "tokenizer"),
            "data": {"train": str(setting.folder / "train.jsonl"), "sequence_length": setting.sequence},
            "engine": {"device": setting.device},
            "train": {
                "steps": setting.steps,
                "batch_size": setting.batch,
                "micro_batch_size": setting.micro,
                "precision": "fp8" if side.startswith("fp8") else setting.precision,
                "compile": "on" if side.endswith("compiled") else "off",
                "activation_checkpointing": setting.checkpointing,
                "checkpoint_every": setting.steps,
            },
        }
    )
    timings = [json.loads(line) for line in (run.folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line["tokens"] for line in lines if line["kind"] == "train"]
    counted = slice(setting.warmup, None)
    seconds = sum(line["seconds"] for line in timings[counted])
    return {"seconds": seconds, "tokens": trained[-1] - trained[setting.warmup - 1], "loss": lines[-1].get("loss", 0.0)}


def their_training(setting: Setting, side: str, *, mixed: bool) -> dict[str, float]:
    """A run of the transformers Trainer, or TRL's for packing, at its best settings for this work."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(hf_folder(setting), attn_implementation="sdpa", dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(setting.folder / "tokenizer" / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in (setting.folder / "train.jsonl").read_text().splitlines()]
    encoded = [encoding.ids[: setting.sequence] for encoding in tokenizer.encode_batch(texts)] if mixed else []
    if not mixed:
        flat = list(itertools.chain.from_iterable(e.ids for e in tokenizer.encode_batch(texts)))
        encoded = [flat[at : at + setting.sequence] for at in range(0, len(flat) - setting.sequence, setting.sequence)]
    mean = sum(map(len, encoded)) / len(encoded)
    rows = setting.micro if not mixed else max(1, round(setting.micro * setting.sequence / mean))
    parts = max(1, setting.batch // setting.micro)
    seconds: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if setting.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds.append(time.perf_counter())

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        tokens.append(sum(len(sample["input_ids"]) for sample in samples))
        ids = torch.zeros(len(samples), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, sample in enumerate(samples):
            values = torch.tensor(sample["input_ids"])
            ids[row, : len(values)] = labels[row, : len(values)] = values
            mask[row, : len(values)] = 1
        found = {"input_ids": ids, "labels": labels}
        return found if bool(mask.all()) else {**found, "attention_mask": mask}

    settings: dict[str, Any] = {
        "output_dir": str(setting.folder / f"theirs-{time.time_ns()}"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": parts,
        "max_steps": setting.steps,
        "use_cpu": not setting.device.startswith("cuda"),
        "bf16": True,
        "optim": "adamw_torch_fused",
        "learning_rate": 3e-4,
        "logging_steps": 1,
        "save_steps": setting.steps,
        "report_to": [],
        "disable_tqdm": True,
        "torch_compile": side == "compiled",
        "gradient_checkpointing": setting.checkpointing == "block",
    }
    dataset: Any = [{"input_ids": ids} for ids in encoded]
    if side == "trl_packing":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        special = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
        settings |= {"packing": True, "max_length": setting.sequence, "per_device_train_batch_size": setting.micro}
        trainer = SFTTrainer(
            model,
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list([{"text": text} for text in texts]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
            callbacks=[Clock()],
        )
        inner = trainer.data_collator

        def counted(samples: list[Any]) -> Any:
            tokens.append(sum(len(sample["input_ids"]) for sample in samples))
            return inner(samples)

        trainer.data_collator = counted
    else:
        sampling = "group_by_length" if side == "grouped" else "random"
        arguments = TrainingArguments(remove_unused_columns=False, train_sampling_strategy=sampling, **settings)
        trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=collate, callbacks=[Clock()])
    result = trainer.train()
    first = setting.warmup
    return {
        "seconds": seconds[-1] - seconds[first - 1],
        "tokens": sum(tokens[first * parts : setting.steps * parts]),
        "loss": result.training_loss,
    }


def hf_folder(setting: Setting) -> Path:
    """The random model that all sides have, as a model folder."""
    from trivium.models.build import build_model
    from trivium.models.folder import save_model

    folder = setting.folder / "model"
    if not (folder / "config.json").exists():
        folder.mkdir(exist_ok=True)
        made = build_model(shape(setting), seed=0)
        save_model(folder, made.config, made.state_dict())
    return folder


def compare_decoding(
    setting: Setting, device: Device, runs: dict[str, Any], better: dict[str, Any], failed: list[str]
) -> dict[str, Any]:
    """Greedy tokens a second, in turns; also how many times the floor of the memory bandwidth each needs."""
    hf_folder(setting)
    told: dict[str, Any] = {}
    for rows in (1, 16):
        found: dict[str, list[dict[str, float]]] = {}
        for pair in range(setting.pairs):
            sides = ("ours", "dynamic", "static")
            for side in sides if pair % 2 == 0 else sides[::-1]:
                result = in_process(setting, f"decoding-{rows}", side)
                if "failed" in result:
                    print(f"decoding {side}: not measured, {result['failed']}", flush=True)
                    failed += [f"decoding {side}, {rows} rows"] if side == "ours" else []
                    continue
                if "way" in result:
                    told[f"decoding-{rows}-way"] = way = result.pop("way")
                    print(f"decoding {rows} {side:8} runs {way}", flush=True)
                result["times_the_floor"] = result["seconds"] / (NEW * result["weight_bytes"] / device.copy)
                found.setdefault(side, []).append(result)
                print(f"decoding {rows} {side:8}", {k: round(v, 4) for k, v in result.items()}, flush=True)
        if "ours" in found:
            name = f"decoding-{rows}"
            ordered = {side: found[side] for side in ("ours", "dynamic", "static") if side in found}
            runs[name], better[name] = ordered, {"tokens_per_second": "more", "memory": "less"}
            told[name] = {
                side: statistics.median(run["times_the_floor"] for run in each) for side, each in ordered.items()
            }
    return told


def decode(setting: Setting, side: str, rows: int) -> dict[str, Any]:
    """64 tokens in, NEW out, in bf16; the second call counts. way: how our steps ran, of both calls."""
    import torch

    new = 8 if setting.small else NEW
    folder, source = hf_folder(setting), torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 600, (rows, 64), generator=source)
    device, dtype = torch.device(setting.device), torch.bfloat16
    if side == "ours":
        from trivium.inference.engine import generate_ids
        from trivium.inference.request import Sampling
        from trivium.models.folder import load_model

        model: Any = load_model(folder, dtype=dtype, device=device).eval()

        def run() -> int:
            greedy = Sampling(temperature=0)
            done = generate_ids(model, prompts.tolist(), max_new_tokens=new, sampling=greedy, eos_ids=())
            return sum(len(completion.ids) for completion in done)
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        given = prompts.to(device)

        def run() -> int:
            out = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static" if side == "static" else None,
            )
            return int(out.shape[1] - given.shape[1]) * rows

    def timed() -> tuple[float, int]:
        begin = time.perf_counter()
        count = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin, count

    with torch.inference_mode():
        timed()
        seconds, tokens = timed()
    way = {}
    if side == "ours":
        from trivium.models.graphs import decoding_words

        way["way"] = decoding_words(model)
    return {
        **way,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "memory": peak(setting.device),
    }


def peak(device: str) -> int:
    """Bytes of the most memory that was in use."""
    import torch
    from record import peak_memory

    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_memory()


def main() -> None:
    """One measurement in this process; prints a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("side")
    parser.add_argument("setting")
    arguments = parser.parse_args()
    values = json.loads(arguments.setting)
    mixed = values.pop("mixed")
    setting = Setting(**{**values, "folder": Path(values["folder"])})
    if arguments.what.startswith("decoding"):
        result = decode(setting, arguments.side, int(arguments.what.split("-")[1]))
    else:
        from trivium.core.plan import flops_per_token

        train = our_training if arguments.side.startswith(OURS) else their_training
        result = train(setting, arguments.side, mixed=mixed)
        result["tokens_per_second"] = result["tokens"] / result["seconds"]
        result["memory"] = peak(setting.device)
        length = setting.sequence / 8 if mixed else setting.sequence
        work = flops_per_token(shape(setting), sequence_tokens=length)
        result["flops_per_second"] = work * result["tokens_per_second"]
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
