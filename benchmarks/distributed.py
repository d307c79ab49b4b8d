"""What several processes cost on one machine: DDP, FSDP2, tensor parallelism and a pipeline on two CPU
processes against one process.

    python benchmarks/distributed.py [--pairs 3] [--steps 10] [--preset llama-3m] [--out FILE]

Whole runs of `trivium train` with the same recipe (rows of 256 tokens, 8 in an update in micro-batches of 2), one core
for each process. One process does the same work with one thread: with perfect scaling two take half of its time.

    one        engine `single`, one thread
    threads    engine `single`, two threads
    ddp, fsdp2, tensor, pipeline    two processes over gloo, one thread each

`overhead` is 2 t / t1 - 1, with t1 the seconds of an update of one process: 0 is perfect, 1 no gain at all. It holds
what the processes say to each other, what they wait, the pipeline's bubble, what both processes of `tensor` compute
(embedding, norms, head), and that two cores share a cache. `--floor` measures what two processes that have nothing to
say cost each other (`apart`): the same run twice at once, on half of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import ROOT
from record import save
from texts import write_texts

WORKLOAD = {}

WARMUP = 3
SIDES = {
    "one": ("single", 1, 1),
    "threads": ("single", 1, 2),
    "ddp": ("ddp", 2, 1),
    "fsdp2": ("fsdp2", 2, 1),
    "tensor": ("tensor", 2, 1),
    "pipeline": ("pipeline", 2, 1),
}
"""Engine, processes, threads of each."""


def write(folder: Path, arguments: argparse.Namespace) -> None:
    """Data, tokenizer and a recipe."""
    write_texts(folder, words=40_000, vocabulary=2048, lengths=(500, 900))
    recipe = {
        "name": "run",
        "runs": "runs",
        "method": "clm",
        "model": {"preset": arguments.preset},
        "tokenizer": str(folder / "tokenizer"),
        "data": {"train": str(folder / "train.jsonl"), "sequence_length": 256},
        "train": {
            "steps": arguments.steps,
            "batch_size": 8,
            "micro_batch_size": 2,
            "compile": "off",
            "threads": 1,
            "checkpoint_every": arguments.steps,
        },
    }
    (folder / "run.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def start(folder: Path, engine: str, processes: int, threads: int, *changes: str) -> tuple[subprocess.Popen[str], Path]:
    """A run that has begun, and its folder."""
    runs = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command += ["trivium", "train", str(folder / "run.yaml"), f"runs={runs}", f"engine.name={engine}"]
    command += [f"train.threads={threads}", *changes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes), runs / "run"  # type: ignore[call-overload]


def seconds(started: tuple[subprocess.Popen[str], Path]) -> dict[str, float]:
    """Median seconds of an update after the warm-up, and the last loss."""
    process, run = started
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{run} failed:\n{errors[-3000:]}")
    timings = [json.loads(line)["seconds"] for line in (run / "timings.jsonl").read_text().splitlines()]
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": statistics.median(timings[WARMUP:]), "loss": losses[-1]}


def main() -> None:
    """Takes turns, prints seconds and overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--preset", default="llama-3m")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, arguments)
        for pair in range(arguments.pairs):
            for side in arguments.sides if pair % 2 == 0 else arguments.sides[::-1]:
                found[side].append(seconds(start(folder, *SIDES[side])))
                print(f"{side:9}", {key: round(value, 4) for key, value in found[side][-1].items()}, flush=True)
            if arguments.floor:
                both = [start(folder, "single", 1, 1, "train.batch_size=4") for _ in range(2)]
                slower = max((seconds(each) for each in both), key=lambda one: one["seconds"])
                found.setdefault("apart", []).append(slower)
                print("apart    ", slower, flush=True)
    overhead = {}
    if "one" in found:
        for side in found:
            if side == "one":
                continue
            each = [2 * a["seconds"] / b["seconds"] - 1 for a, b in zip(found[side], found["one"], strict=True)]
            overhead[side] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
            print(f"{side:9} overhead {overhead[side]['median']:.0%} ({min(each):.0%} to {max(each):.0%})")
    losses = {round(run["loss"], 3) for side in arguments.sides for run in found[side]}
    print(f"last losses: {sorted(losses)}")
    settings = {"steps": arguments.steps, "preset": arguments.preset}
    save(
        __file__,
        found,
        better={"seconds": "less"},
        result={"overhead": overhead},
        settings=settings,
        out=arguments.out,
        note=arguments.note,
    )


if __name__ == "__main__":
    main()
