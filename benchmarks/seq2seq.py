"""Training a 9M T5 to translate on the CPU: our whole trainer against the transformers Seq2SeqTrainer.

    python benchmarks/seq2seq.py --pairs 3 --steps 20 [--peers padded grouped] [--peer-python PATH] [--out FILE]

Both sides train the same shape (t5-10m: width 256, 4 + 4 layers, 4 heads, vocabulary 8192; tied, no dropout) on the
29 000 English-German pairs of Multi30k, about 4096 real tokens of sources and targets in an update, fp32, AdamW, with
logging at every step and a checkpoint in the run. Ours packs pairs without letting them see each other. The Trainer
takes DataCollatorForSeq2Seq in two settings:

    padded    batches of pairs in random order
    grouped   the same, with batches of sources of similar length (its own sampler for that)

Each measurement is a process of its own; the sides take turns, and the figure is the ratio of medians of real tokens
(no padding) per second, counted over the steps after warm-up.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from books import DATA, ROOT

PEERS = ("padded", "grouped")
SEQUENCE, ROWS, WARMUP = 512, 8, 4
TOKENS = SEQUENCE * ROWS
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def write_pairs(folder: Path) -> None:
    """`train.jsonl` and `tokenizer` in `folder`."""
    from trivium.tokenizers.train import train_bpe

    if not (DATA / "multi30k" / "train.en.gz").is_file():
        raise SystemExit(f"no pairs in {DATA / 'multi30k'}: set TRIVIUM_DATA to the folder that holds multi30k/")
    sides = [
        gzip.decompress((DATA / "multi30k" / f"train.{language}.gz").read_bytes()).decode().splitlines()
        for language in ("en", "de")
    ]
    lines = [
        json.dumps({"source": source.strip(), "target": target.strip()}, ensure_ascii=False)
        for source, target in zip(*sides, strict=True)
        if source.strip() and target.strip()
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_bpe(itertools.chain(*sides), vocab_size=8192).save(folder / "tokenizer")


def recipe(folder: Path, steps: int) -> dict[str, Any]:
    """Our side as `trivium train` would read it."""
    return {
        "name": f"ours-{time.time_ns()}",
        "runs": str(folder / "runs"),
        "method": "seq2seq",
        "model": {"preset": "t5-10m"},
        "tokenizer": str(folder / "tokenizer"),
        "data": {"train": str(folder / "train.jsonl"), "sequence_length": SEQUENCE},
        "train": {
            "steps": steps,
            "batch_size": ROWS,
            "compile": "off",
            "checkpoint_every": steps,
            "threads": THREADS,
        },
    }


def ours(folder: Path, steps: int) -> dict[str, float]:
    """One run through `tv.train`; its tokens are counted afterwards, from the same loader."""
    import trivium as tv
    from trivium.config import resolve
    from trivium.drivers.session import open_session

    settings = recipe(folder, steps)
    run = tv.train(settings)
    lines = [json.loads(line) for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    losses = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    session = open_session(resolve(settings))
    real = [
        sum(batch.tokens + batch.source.layout.tokens for batch in session.loader.update(step) if batch.source)
        for step in range(steps)
    ]
    session.close()
    return {"seconds": sum(seconds[WARMUP:]), "tokens": sum(real[WARMUP:]), "loss": losses[-1]["loss"]}


def theirs(folder: Path, steps: int, setting: str) -> dict[str, float]:
    """One run through the transformers Seq2SeqTrainer."""
    import torch
    from transformers import (
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
        TrainerCallback,
    )

    torch.set_num_threads(THREADS)
    special = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), **special)
    pairs = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    ends = [tokenizer.eos_token_id]
    rows = [
        {
            "input_ids": tokenizer(pair["source"])["input_ids"] + ends,
            "labels": tokenizer(pair["target"], add_special_tokens=False)["input_ids"] + ends,
        }
        for pair in pairs
    ]
    mean = sum(len(row["input_ids"]) + len(row["labels"]) for row in rows) / len(rows)
    batch = max(1, round(TOKENS / mean))
    # Just the run: the sampler sorts by length inside of some batches, so a part of them would not stand for all.
    rows = random.Random(0).sample(rows, steps * batch)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=8192,
            d_model=256,
            d_kv=64,
            d_ff=1024,
            num_layers=4,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    real: list[int] = []
    seconds: list[float] = []

    def counted(samples: list[dict[str, Any]]) -> Any:
        real.append(sum(len(sample["input_ids"]) + len(sample["labels"]) for sample in samples))
        return collator(samples)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter())

    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            output_dir=str(folder / f"theirs-{time.time_ns()}"),
            per_device_train_batch_size=batch,
            max_steps=steps,
            use_cpu=True,
            optim="adamw_torch_fused",
            lr_scheduler_type="cosine",
            learning_rate=3e-4,
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=1,
            save_steps=steps,
            report_to=[],
            disable_tqdm=True,
            train_sampling_strategy="group_by_length" if setting == "grouped" else "random",
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=counted,
        callbacks=[Clock()],
    )
    result = trainer.train()
    taken = [b - a for a, b in itertools.pairwise(seconds)]  # step 1, 2, ...
    first = WARMUP - 1
    # The loader fetches a batch ahead, so there may be one more count than steps.
    return {"seconds": sum(taken[first:]), "tokens": sum(real[first + 1 : steps]), "loss": result.training_loss}


def measure(side: str, folder: Path, steps: int) -> None:
    """Runs one side in this process and prints a line of JSON."""
    import resource

    result = ours(folder, steps) if side == "ours" else theirs(folder, steps, side)
    result["tokens_per_second"] = result["tokens"] / result["seconds"]
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps(result))


def run_side(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement in a process of its own."""
    python = sys.executable if side == "ours" else arguments.peer_python
    command = [python, __file__, "--side", side, "--folder", str(folder), "--steps", str(arguments.steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(lines[0][7:])
    print(f"{side:8}", {key: round(value, 2) for key, value in result.items()}, flush=True)
    return result


def main() -> None:
    """Takes turns and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=["ours", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the data is made, or was made before")
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.folder, arguments.steps)
        return
    sides = ["ours", *arguments.peers]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not (folder / "tokenizer").exists():
            write_pairs(folder)
        for pair in range(arguments.pairs):
            for side in sides if pair % 2 == 0 else reversed(sides):
                runs[side].append(run_side(side, folder, arguments))
    ratios = {}
    for peer in arguments.peers:
        ratios[peer] = {
            key: statistics.median(run[key] for run in runs["ours"]) / statistics.median(run[key] for run in runs[peer])
            for key in ("tokens_per_second", "memory")
        }
        each = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs["ours"], runs[peer], strict=True)]
        print(
            f"ours / {peer}: {ratios[peer]['tokens_per_second']:.2f} real tokens/s "
            f"(pairs {min(each):.2f} to {max(each):.2f}), {ratios[peer]['memory']:.2f} peak memory"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"runs": runs, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
