"""How long until the validation loss that the transformers Trainer reaches? The same shape, tokenizer and documents.

    python benchmarks/time_to_quality.py --work runs/time_to_quality [--preset llama-1m] [--tokens 6000000] [--seeds 3]

Theirs: AdamW (fused, beta2 0.95, decay 0.1, clipping at 1), cosine to a tenth with 2 % warm-up, blocks of 256 tokens
over the ends of documents, 16 blocks in an update, at each of four learning rates; the best one is the target.
Ours: whole runs of `tv.train` at the settings of `OURS`, each with its schedule over its own length; the length grows
in steps of a twentieth of theirs until the loss is reached. Both losses are means over the same 512 blocks of held-out
documents of pydocs, cut as theirs are. The figure is our seconds of training (with logs and checkpoints) over theirs,
for each seed. Finished runs are kept in the folder, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curriculum import prepare
from record import save
from sides import THREADS, set_their_threads

if TYPE_CHECKING:
    import torch

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate"],
    "arguments": ["--work", "runs/benchmarks/time_to_quality"],
}

VOCABULARY, BLOCK, ROWS, HELD = 4096, 256, 16, 512
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
OURS: dict[str, dict[str, Any]] = {
    "muon": {"lr": 6e-3, "optimizer": {"name": "muon"}, "schedule": "linear"},
    "adamw": {"lr": 4e-3, "optimizer": {"name": "adamw"}},
}
"""Settings of `train` that are tried; the first is the recipe that is compared."""


def blocks(folder: Path, split: str) -> torch.Tensor:
    """[N, BLOCK] tokens of a split in the order of a fixed shuffle, each document followed by its end."""
    import random

    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = tokenizer.token_to_id(settings["eos_token"])
    texts = [json.loads(line)["text"] for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]
    random.Random(0).shuffle(texts)
    ids = [token for one in tokenizer.encode_batch(texts, add_special_tokens=False) for token in (*one.ids, end)]
    return torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)


def shape(preset: str) -> dict[str, Any]:
    """Fields of the model on our side."""
    return {"preset": preset, "config": {"vocab_size": VOCABULARY, "max_positions": BLOCK}}


def theirs(folder: Path, preset: str, lr: float, steps: int) -> dict[str, float]:
    """One run of the Trainer: seconds, and the loss on held-out blocks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    set_their_threads()
    raw = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**raw, attn_implementation="sdpa"))
    rows = [{"input_ids": row, "labels": row} for row in blocks(folder, "train")]
    held = [{"input_ids": row, "labels": row} for row in blocks(folder, "validation")[:HELD]]
    target = folder / f"theirs-{preset}-{lr:g}-{steps}"
    arguments = TrainingArguments(
        output_dir=str(target),
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=ROWS,
        max_steps=steps,
        use_cpu=True,
        optim="adamw_torch_fused",
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, steps // 50),
        learning_rate=lr,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=10,
        save_steps=steps,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=held)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "loss": trainer.evaluate()["eval_loss"], "parameters": float(model.num_parameters())}


def ours(folder: Path, preset: str, side: str, seed: int, steps: int) -> dict[str, float]:
    """One run of ours: seconds, and the loss on the same blocks."""
    import torch

    import trivium as tv

    began = time.perf_counter()
    run = tv.train(
        {
            "name": f"{side}-{preset}-{seed}-{steps}",
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": "clm",
            "model": shape(preset),
            "tokenizer": str(folder / "tokenizer"),
            "data": {"train": str(folder / "train.jsonl"), "sequence_length": BLOCK},
            "train": {
                "steps": steps,
                "batch_size": ROWS,
                "checkpoint_every": steps,
                "threads": THREADS,
                **OURS[side],
            },
        }
    )
    seconds = time.perf_counter() - began
    module = tv.load(run.folder / "final").module.eval()
    held, total = blocks(folder, "validation")[:HELD], 0.0
    with torch.no_grad():
        for some in held.split(ROWS):
            logits = module(some)[:, :-1].flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits, some[:, 1:].flatten(), reduction="sum"))
    return {"seconds": seconds, "loss": total / (held.shape[0] * (BLOCK - 1))}


def once(arguments: argparse.Namespace, python: str, *command: Any) -> dict[str, float]:
    """One run in a process of its own, kept in a file."""
    words = [str(word) for word in command]
    file = arguments.work / "results" / ("-".join([arguments.preset, *words]) + ".json")
    if not file.exists():
        call = [python, __file__, "--work", str(arguments.work), "--preset", arguments.preset, "--one", *words]
        done = subprocess.run(call, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.exit(f"{words} failed:\n{done.stderr[-3000:]}")
        file.parent.mkdir(exist_ok=True)
        file.write_text(lines[-1][7:], encoding="utf-8")
        print(" ".join(words), lines[-1][7:], flush=True)
    found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Their four runs, then ours of growing length for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--preset", default="llama-1m")
    parser.add_argument("--tokens", type=int, default=6_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["muon"], choices=list(OURS))
    parser.add_argument("--first", type=float, default=0.4, help="share of their updates that ours begins with")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, *rest = arguments.one
        run = theirs if side == "theirs" else ours
        values = (float(rest[0]), int(rest[1])) if side == "theirs" else (side, int(rest[0]), int(rest[1]))
        print("RESULT " + json.dumps(run(arguments.work, arguments.preset, *values)))  # type: ignore[arg-type]
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.work, every=1, held_out=20, vocabulary=VOCABULARY)
    write_shape(arguments)
    steps = arguments.tokens // (BLOCK * ROWS)
    peer = {lr: once(arguments, arguments.peer_python, "theirs", lr, steps) for lr in RATES}
    best = min(peer, key=lambda lr: peer[lr]["loss"])
    found: dict[str, Any] = {"theirs": peer, "best": best, "ours": {}}
    for side in arguments.sides:
        reached = [until(arguments, side, seed, steps, peer[best]["loss"]) for seed in range(arguments.seeds)]
        shares = [one["seconds"] / peer[best]["seconds"] for one in reached]
        found["ours"][side] = reached
        print(f"{side}: {statistics.median(shares):.2f} of their time ({min(shares):.2f} to {max(shares):.2f})")
    save(__file__, result=found, settings={"preset": arguments.preset, "tokens": arguments.tokens})


def write_shape(arguments: argparse.Namespace) -> None:
    """Our shape as their configuration, for an environment without our package."""
    from trivium.models.build import family, preset
    from trivium.models.huggingface import write_config

    config = preset(arguments.preset, shape(arguments.preset)["config"])
    raw = write_config(family(config.family), config)
    kept = {key: value for key, value in raw.items() if key not in ("architectures", "model_type", "trivium")}
    (arguments.work / "shape.json").write_text(json.dumps(kept), encoding="utf-8")


def until(arguments: argparse.Namespace, side: str, seed: int, steps: int, target: float) -> dict[str, float]:
    """The shortest run of ours, in twentieths of theirs, that reaches the target."""
    share = arguments.first
    while True:
        count = round(steps * share)
        found = once(arguments, sys.executable, side, seed, count)
        if found["loss"] <= target or share >= 2:
            return {**found, "steps": count, "share": share}
        share += 0.05


if __name__ == "__main__":
    main()
