"""How right the forecasts of memory and time are: real runs of many kinds, each in a process of its own.

    python benchmarks/forecasts.py [--only NAME ...] [--steps 16] [--folder FOLDER] [--out FILE]

Families, methods, adapters, a quantised base, batch shapes, activation checkpointing, optimisers, accumulation and a
moving average, in models of 1 to 30M parameters on the documentation of Python, on one thread. Each run is a whole
`tv.train`: it says what it will need after its first eight updates, and in the end what it needed
(`forecast.json` of every run folder). Compared are the peak of resident memory (VmHWM) of the whole process and the
seconds of all updates with the validations between them, without the last checkpoint. Printed is a line for each run;
the file holds all parts of the memory plan beside the facts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import ROOT
from record import save

WORKLOAD = {}

VOCABULARY = 2048


def clm(preset: str, **train: Any) -> dict[str, Any]:
    """Next tokens of documents."""
    return {"method": "clm", "model": {"preset": preset}, "length": train.pop("length", 256), "train": train}


def masked(preset: str, method: str | dict[str, Any] = "mlm", **train: Any) -> dict[str, Any]:
    """Masked tokens or missing spans of documents."""
    return {"method": method, "model": {"preset": preset}, "length": train.pop("length", 256), "train": train}


def tuned(base: str, *transforms: Any, method: Any = "sft", data: str = "chats", **train: Any) -> dict[str, Any]:
    """From a model folder, perhaps with adapters."""
    return {
        "method": method,
        "model": {"path": base},
        "transforms": list(transforms),
        "data": data,
        "length": train.pop("length", 256),
        "train": train,
    }


LORA = {"name": "lora", "rank": 8, "target": "all-linear"}
NF4, INT8 = {"name": "quantize", "to": "nf4"}, {"name": "quantize", "to": "int8"}

RUNS: dict[str, dict[str, Any]] = {
    "llama-1m": clm("llama-1m", batch_size=8),
    "llama-1m, rows of 1024": clm("llama-1m", batch_size=2, length=1024),
    "llama-3m": clm("llama-3m", batch_size=4),
    "llama-3m, checkpointed blocks": clm("llama-3m", batch_size=8, activation_checkpointing="block"),
    "llama-3m, checkpointed MLPs": clm("llama-3m", batch_size=8, activation_checkpointing="mlp"),
    "llama-3m, every second block": clm(
        "llama-3m", batch_size=8, activation_checkpointing="block", checkpoint_every_block=2
    ),
    "llama-3m, validation": clm("llama-3m", batch_size=4, validate_every=4, validation_batches=4),
    "llama-3m, 32 rows": clm("llama-3m", batch_size=32),
    "llama-10m, checkpointed, 16 rows": clm("llama-10m", batch_size=16, activation_checkpointing="block"),
    "llama-10m": clm("llama-10m", batch_size=4),
    "llama-10m, rows of 1024": clm("llama-10m", batch_size=1, length=1024),
    "llama-10m, 4 parts": clm("llama-10m", batch_size=4, micro_batch_size=1),
    "llama-10m, ema": clm("llama-10m", batch_size=2, ema={}),
    "llama-10m, muon": clm("llama-10m", batch_size=2, optimizer="muon"),
    "llama-10m, adafactor": clm("llama-10m", batch_size=2, optimizer="adafactor"),
    "llama-10m, 8 bits": clm("llama-10m", batch_size=2, optimizer="adamw8bit"),
    "llama-10m, sgd": clm("llama-10m", batch_size=2, optimizer={"name": "sgd", "momentum": 0.9}),
    "llama-30m": clm("llama-30m", batch_size=1),
    "llama-30m, lion": clm("llama-30m", batch_size=1, optimizer="lion"),
    "gpt2-10m": clm("gpt2-10m", batch_size=4),
    "qwen3-1m": clm("qwen3-1m", batch_size=16),
    "gemma3-1m": clm("gemma3-1m", batch_size=8),
    "mixtral-1m": clm("mixtral-1m", batch_size=8),
    "pythia-14m": clm("pythia-14m", batch_size=4),
    "bert-10m, mlm": masked("bert-10m", batch_size=4),
    "bert-1m, mlm": masked("bert-1m", batch_size=16),
    "bert-1m, mlm, 48 rows": masked("bert-1m", batch_size=48),
    "t5-10m, spans": masked("t5-10m", {"name": "denoise", "objective": "t5"}, batch_size=4),
    "sft": tuned("llama-10m", batch_size=4),
    "sft, lora": tuned("llama-10m", LORA, batch_size=4),
    "sft, lora, 30m": tuned("llama-30m", LORA, batch_size=2),
    "sft, lora on nf4, 30m": tuned("llama-30m", NF4, LORA, batch_size=2),
    "sft, lora on int8": tuned("llama-10m", INT8, LORA, batch_size=4),
    "sft, head only": tuned("llama-10m", {"name": "trainable", "patterns": ["head.*", "blocks.7.*"]}, batch_size=4),
    "dpo": tuned("llama-10m", method="dpo", data="preferences", batch_size=2),
    "dpo, lora": tuned("llama-10m", LORA, method="dpo", data="preferences", batch_size=2),
}


def prepare(folder: Path) -> None:
    """Documents, chats, preferences, a tokenizer and the models that are tuned."""
    from curriculum import prepare as documents

    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.train import train_bpe

    documents(folder)
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = train_bpe(texts, vocab_size=VOCABULARY, special=expanded(("mask", "sentinels")))
    tokenizer.save(folder / "tokenizer")
    cut = [text[start : start + 100 + 700 * (start % 5) // 4] for text in texts for start in range(0, len(text), 997)]
    cut = [text for text in cut if len(text) > 60][:1500]
    chats = [
        {
            "messages": [
                {"role": "user", "content": text[: len(text) // 4]},
                {"role": "assistant", "content": text[len(text) // 4 :]},
            ]
        }
        for text in cut
    ]
    pairs = [
        {"prompt": text[:40], "chosen": text[40:300], "rejected": text[300:] or "No."}
        for text in cut
        if len(text) > 330
    ]
    for name, rows in (("chats", chats), ("preferences", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name in ("llama-10m", "llama-30m"):
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        model = build_model(preset(name, {**ids, "max_positions": 1024}), seed=0)
        (folder / name).mkdir(exist_ok=True)
        save_model(folder / name, model.config, model.state_dict())
        tokenizer.save(folder / name)


def recipe(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """The recipe of one run."""
    run = RUNS[name]
    model = dict(run["model"])
    path = model.get("path")
    if path:
        model["path"] = str(folder / path)
    settings: dict[str, Any] = {
        "name": "".join(letter if letter.isalnum() else "-" for letter in name),
        "runs": str(folder / "runs"),
        "method": run["method"],
        "model": model,
        "transforms": run.get("transforms", []),
        "data": {
            "train": str(folder / f"{run.get('data', 'train')}.jsonl"),
            "sequence_length": run["length"],
            "truncation": "right",
        },
        "train": {"steps": steps, "checkpoint_every": steps, "compile": "off", "threads": 1, **run["train"]},
    }
    if not path:
        settings["tokenizer"] = str(folder / "tokenizer")
    if "validate_every" in run["train"]:
        settings["data"]["validation"] = str(folder / "validation.jsonl")
    return settings


def measure(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """One run in this process: what `forecast.json` says."""
    import trivium as tv

    run = tv.train(recipe(name, folder, steps))
    found: dict[str, Any] = json.loads((run.folder / "forecast.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Prints forecast, fact and error of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(measure(arguments.one, arguments.folder, arguments.steps)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "llama-30m" / "tokenizer.json").exists():
            prepare(folder)
        for name in arguments.only:
            rows.append(one(name, folder, arguments.steps))
            row = rows[-1]
            print(
                f"{name:32} memory {row['memory_forecast']:6.0f} MiB, was {row['memory_fact']:6.0f} "
                f"({row['memory_error']:+.1%})   time {row['seconds_forecast']:6.1f} s, was {row['seconds_fact']:6.1f} "
                f"({row['seconds_error']:+.1%})",
                flush=True,
            )
    for kind, limit in (("memory", 0.1), ("seconds", 0.2)):
        within = sum(abs(row[f"{kind}_error"]) <= limit for row in rows)
        worst = max(rows, key=lambda row: abs(row[f"{kind}_error"]))
        print(
            f"{kind}: {within} of {len(rows)} within {limit:.0%}, worst {worst[f'{kind}_error']:+.1%} ({worst['run']})"
        )
    settings = {"steps": arguments.steps}
    save(__file__, result=rows, settings=settings, out=arguments.out, note=arguments.note)


def one(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """One run in a process of its own, and how far off its forecast was."""
    import shutil

    from trivium.core.plan import CHECKPOINT_BYTES_PER_SECOND

    shutil.rmtree(recipe(name, folder, steps)["runs"], ignore_errors=True)
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder), "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    found = json.loads(lines[0][7:])
    forecast, fact = found["forecast"], found["fact"]
    seconds = forecast["seconds"] - forecast["checkpoint_bytes"] / CHECKPOINT_BYTES_PER_SECOND
    return {
        "run": name,
        "memory_forecast": forecast["peak_memory_bytes"] / 2**20,
        "memory_fact": fact["peak_memory_bytes"] / 2**20,
        "memory_error": forecast["peak_memory_bytes"] / fact["peak_memory_bytes"] - 1,
        "seconds_forecast": seconds,
        "seconds_fact": fact["seconds"],
        "seconds_error": seconds / fact["seconds"] - 1,
        "parts": forecast["memory"],
        "parameters": forecast["parameters"],
        "trainable": forecast["trainable_parameters"],
    }


if __name__ == "__main__":
    main()
