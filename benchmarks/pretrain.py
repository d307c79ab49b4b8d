"""Pretraining a 10.5M llama-style model on the CPU: our whole trainer against the transformers Trainer.

    python benchmarks/pretrain.py --pairs 5 --steps 30 [--peer-python PATH] [--compile] [--out FILE]

Both sides train the same shape (width 256, 8 layers, 8 heads, MLP 688, vocabulary 8192) on the same rows of 512 tokens,
batch 8, fp32, AdamW, with logging at every step and a checkpoint in the run. Each measurement is a process of its own;
the sides take turns, and the figure is the ratio of medians. `tokens_per_second` counts the steps after warm-up;
`memory` is the peak resident size of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 8,
    "intermediate_size": 688,
    "max_positions": 512,
}
SEQUENCE, BATCH, WARMUP = 512, 8, 5


def make_data(folder: Path, steps: int) -> None:
    """One long document of pronounceable nonsense with the statistics of text, and a tokenizer of 8192 tokens."""
    import random

    from trivium.tokenizers.train import train_bpe

    rng = random.Random(0)
    parts = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in")]
    words = ["".join(rng.choices(parts, k=rng.choice([1, 2, 2, 3, 3, 4]))) for _ in range(20000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    needed = (steps + 2) * BATCH * SEQUENCE
    text = " ".join(rng.choices(words, weights, k=needed + 20000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_bpe([text[i : i + 10000] for i in range(0, 2_000_000, 10000)], vocab_size=8192).save(folder / "tokenizer")


def ours(folder: Path, steps: int, compiled: bool) -> dict[str, float]:
    """One run through `tv.train`."""
    import trivium as tv

    run = tv.train(
        {
            "name": f"ours-{time.time_ns()}",
            "runs": str(folder / "runs"),
            "method": "clm",
            "model": {"preset": "llama-10m", "config": SHAPE},
            "tokenizer": str(folder / "tokenizer"),
            "data": {"train": str(folder / "text.txt"), "sequence_length": SEQUENCE},
            "train": {
                "steps": steps,
                "batch_size": BATCH,
                "compile": "on" if compiled else "off",
                "checkpoint_every": steps,
            },
        }
    )
    seconds = [json.loads(line)["seconds"] for line in (run.folder / "timings.jsonl").open()]
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").open()]
    return {"seconds": sum(seconds[WARMUP:]), "steps": len(seconds) - WARMUP, "loss": losses[-1]}


def theirs(folder: Path, steps: int, compiled: bool) -> dict[str, float]:
    """One run through the transformers Trainer on blocks of the same tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    rows = torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE["vocab_size"],
            hidden_size=SHAPE["hidden_size"],
            num_hidden_layers=SHAPE["num_layers"],
            num_attention_heads=SHAPE["num_heads"],
            num_key_value_heads=SHAPE["num_kv_heads"],
            intermediate_size=SHAPE["intermediate_size"],
            max_position_embeddings=SHAPE["max_positions"],
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter())

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder / f"theirs-{time.time_ns()}"),
            per_device_train_batch_size=BATCH,
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
            torch_compile=compiled,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[Clock()],
    )
    result = trainer.train()
    steps_seconds = [b - a for a, b in itertools.pairwise(seconds)]
    return {
        "seconds": sum(steps_seconds[WARMUP - 1 :]),
        "steps": len(steps_seconds) - WARMUP + 1,
        "loss": result.training_loss,
    }


def measure(side: str, folder: Path, steps: int, compiled: bool) -> None:
    """Runs one side in this process and prints a line of JSON."""
    import resource

    result = (ours if side == "ours" else theirs)(folder, steps, compiled)
    result["tokens_per_second"] = result["steps"] * BATCH * SEQUENCE / result["seconds"]
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps(result))


def main() -> None:
    """Takes turns and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="both sides with torch.compile")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.folder, arguments.steps, arguments.compile)
        return
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name), arguments.steps)
        for pair in range(arguments.pairs):
            for side in ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours"):
                python = sys.executable if side == "ours" else arguments.peer_python
                command = [python, __file__, "--side", side, "--folder", name, "--steps", str(arguments.steps)]
                command += ["--compile"] if arguments.compile else []
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
                )
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
                runs[side].append(json.loads(lines[0][7:]))
                print(side, {key: round(value, 1) for key, value in runs[side][-1].items()}, flush=True)
    figures = {
        key: statistics.median(run[key] for run in runs["ours"]) / statistics.median(run[key] for run in runs["theirs"])
        for key in ("tokens_per_second", "memory")
    }
    pairs = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs["ours"], runs["theirs"], strict=True)]
    print(f"tokens/s, ours / theirs: {figures['tokens_per_second']:.2f} (pairs {min(pairs):.2f} to {max(pairs):.2f})")
    print(f"peak memory, ours / theirs: {figures['memory']:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"runs": runs, "ratios": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
