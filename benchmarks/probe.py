"""A linear probe: a head on cached features against the same head on a frozen body that runs in every epoch.

    python benchmarks/probe.py [--epochs 10] [--pairs 2] [--out FILE]

A frozen BERT (width 256, 10 layers, vocabulary 8192, random weights) and a head for the two labels of 2000 sentences of
SST-2, batches of 32. Both sides are whole runs of `tv.train` in processes of their own, taking turns; seconds are those
of the updates and of filling the cache, without the start of the process. Needs `sst2`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from classification import sentences
from peers import ROOT
from record import save
from sides import THREADS

WORKLOAD = {"data": ["sst2"]}

SIDES = {
    "cached": {"name": "trainable", "cached_features": True},
    "body": {"name": "trainable", "head": False, "patterns": ["head.*"]},
}


def prepare(folder: Path) -> None:
    """Rows, tokenizer and body."""
    from trivium.artifacts.writer import write_artifact
    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.tokenizer import Tokenizer
    from trivium.tokenizers.train import train_bpe

    rows = sentences("train")[:2000]
    lines = "".join(json.dumps({"text": text, "label": "np"[label]}) + "\n" for text, label in rows)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    train_bpe([text for text, _ in rows], vocab_size=8192, special=expanded(["mask"])).save(folder / "tokenizer")
    config = preset("bert-10m")
    with write_artifact(folder / "body", kind="model") as place:
        save_model(place, config, dict(build_model(config, seed=0).state_dict()))
        Tokenizer.load(folder / "tokenizer").save(place)


def measure(side: str, folder: Path, epochs: int) -> dict[str, float]:
    """One run: seconds of its updates, with the cache, and its last losses."""
    from trivium.config import resolve
    from trivium.drivers import session as sessions
    from trivium.drivers import single

    resolved = resolve(
        {
            "name": f"{side}-{time.time_ns()}",
            "runs": str(folder / "runs"),
            "method": {"name": "classification", "dropout": 0.0},
            "model": {"path": str(folder / "body")},
            "transforms": [SIDES[side]],
            "data": {"train": str(folder / "train.jsonl"), "sequence_length": 96, "truncation": "right"},
            "train": {"epochs": epochs, "batch_size": 32, "lr": 3e-3, "compile": "off", "threads": THREADS},
        }
    )
    spent = 0.0
    original = sessions.cache_features

    def timed(*arguments: object) -> str:
        nonlocal spent
        began = time.perf_counter()
        note = original(*arguments)  # type: ignore[arg-type]
        spent = time.perf_counter() - began
        return note

    sessions.cache_features = timed
    run = single.train(resolved)
    seconds = [json.loads(line)["seconds"] for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": sum(seconds) + spent, "filling": spent, "loss": statistics.mean(losses[-20:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print("RESULT " + json.dumps(measure(arguments.side, arguments.folder, arguments.epochs)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for pair in range(arguments.pairs):
            for side in SIDES if pair % 2 == 0 else reversed(SIDES):
                command = [
                    sys.executable,
                    __file__,
                    "--side",
                    side,
                    "--folder",
                    name,
                    "--epochs",
                    str(arguments.epochs),
                ]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    sys.exit(done.stderr[-3000:])
                line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
                found[side].append(json.loads(line[7:]))
                print(f"{side:8}", found[side][-1], flush=True)
    medians = {side: statistics.median(run["seconds"] for run in runs) for side, runs in found.items()}
    print(f"cached features are {medians['body'] / medians['cached']:.1f} times as fast")
    save(__file__, found, better={"seconds": "less"}, settings={"epochs": arguments.epochs}, out=arguments.out)


if __name__ == "__main__":
    main()
