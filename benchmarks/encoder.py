"""Training a 10M BERT on masked tokens on the CPU: our whole trainer against the transformers Trainer.

    python benchmarks/encoder.py --pairs 3 --steps 20 [--peers padded grouped blocks] [--peer-python PATH] [--out FILE]

Both sides train the same shape (width 256, 10 layers, 8 heads, vocabulary 8192; tied, no dropout) on the paragraphs of
old books, 6 to 512 tokens each, about 4096 tokens in an update, 15 % of them predicted, fp32, AdamW, with logging at
every step and a checkpoint in the run. Ours packs paragraphs without letting them see each other. The Trainer takes
its own collator for masked tokens in three settings:

    padded    a batch of paragraphs, padded to the longest
    grouped   the same, with batches of paragraphs of similar length
    blocks    all paragraphs one after the other, cut into blocks of 512 tokens: no padding, but texts are mixed

Each measurement is a process of its own; the sides take turns, and the figure is the ratio of medians of real tokens
(no padding) per second, counted over the steps after warm-up.
"""

from __future__ import annotations

import argparse
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

from books import ROOT, write_books

PEERS = ("padded", "grouped", "blocks")
SEQUENCE, ROWS, WARMUP = 512, 8, 4
TOKENS = SEQUENCE * ROWS
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def recipe(folder: Path, steps: int) -> dict[str, Any]:
    """Our side as `trivium train` would read it."""
    return {
        "name": f"ours-{time.time_ns()}",
        "runs": str(folder / "runs"),
        "method": "mlm",
        "model": {"preset": "bert-10m"},
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
    real = [sum(batch.tokens for batch in session.loader.update(step)) for step in range(steps)]
    session.close()
    return {"seconds": sum(seconds[WARMUP:]), "tokens": sum(real[WARMUP:]), "loss": losses[-1]["loss"]}


def theirs(folder: Path, steps: int, setting: str) -> dict[str, float]:
    """One run through the transformers Trainer."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer_pt_utils import get_length_grouped_indices

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    special = {"pad_token": "<|pad|>", "mask_token": "[MASK]", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), **special)
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    ends = [tokenizer.eos_token_id]
    documents = [tokenizer(text)["input_ids"][: SEQUENCE - 1] + ends for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    batch = max(1, round(TOKENS / mean))
    rows = documents
    if setting == "grouped":
        # Any batches of a whole epoch of its sampler, which sorts 50 at a time and begins with the longest.
        order = get_length_grouped_indices([len(document) for document in documents], batch)
        starts = random.Random(0).sample(range(0, len(order) - batch + 1, batch), steps)
        rows = [documents[number] for start in starts for number in order[start : start + batch]]
    if setting == "blocks":
        flat = list(itertools.chain.from_iterable(documents))
        rows = [flat[at : at + SEQUENCE] for at in range(0, len(flat) - SEQUENCE + 1, SEQUENCE)]
        batch = ROWS
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=8192,
            hidden_size=256,
            num_hidden_layers=10,
            num_attention_heads=8,
            intermediate_size=1024,
            max_position_embeddings=SEQUENCE,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15)
    real: list[int] = []
    seconds: list[float] = []

    def counted(samples: list[dict[str, Any]]) -> Any:
        real.append(sum(len(sample["input_ids"]) for sample in samples))
        return collator(samples)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter())

    trainer = Trainer(
        model,
        TrainingArguments(
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
            train_sampling_strategy="sequential" if setting == "grouped" else "random",
            remove_unused_columns=False,
        ),
        train_dataset=[{"input_ids": row} for row in rows],
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
            write_books(folder)
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
