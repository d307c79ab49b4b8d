"""Kill a training run with SIGKILL at random moments, start it again, and compare with a run nobody disturbed.

    python -m tests.crash.kills --kills 100 --method clm

Each start is a new process with the same recipe. What it was doing when it died is counted by phase.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

PHASES = ("start", "step", "save", "validation", "end")
PRELOAD = ["torch", "torch._inductor", "trivium.drivers.single", "trivium.drivers.session", "trivium.core.checkpoint"]


def make_world(folder: Path, method: str) -> dict[str, Any]:
    """Data, tokenizer and recipe of a run of a few seconds with many saves and validations."""
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.train import train_bpe

    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 7))) for _ in range(200)]

    def text(size: int) -> str:
        return " ".join(rng.choices(words, k=size))

    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    special = expanded(["mask", "sentinels"]) if method in ("mlm", "denoise") else []
    train_bpe([text(4000)], vocab_size=400 + len(special), special=special).save(tokenizer)
    rows: dict[str, Any] = {
        **dict.fromkeys(("clm", "mlm", "denoise"), lambda: {"text": text(rng.randrange(5, 60))}),
        "sft": lambda: {"prompt": text(4), "completion": text(rng.randrange(2, 9))},
        "dpo": lambda: {"prompt": text(4), "chosen": text(5), "rejected": text(5)},
        "grpo": lambda: {"prompt": text(4), "answer": "a"},
    }
    for split, count in (("train", 300), ("validation", 40)):
        lines = [json.dumps(rows[method]()) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"grpo": {"name": "grpo", "reward": "brevity", "group_size": 4, "max_new_tokens": 8, "minibatches": 2}}
    presets = {"mlm": "bert-1m", "denoise": "t5-1m"}
    shape = {"vocab_size": 400 + len(special), "num_layers": 2, "dropout": 0.1, "embedding_dropout": 0.1}
    shape |= {"denoise": {"attention_dropout": 0.1, "activation_dropout": 0.1}}.get(method, {})
    prompts = {} if method == "mlm" else {"sample_prompts": ["abc"], "sample_every": 20, "sample_tokens": 4}
    validation = {} if method == "grpo" else {"validation": str(folder / "validation.jsonl")}
    return {
        "name": "killed",
        "runs": str(folder / "runs"),
        "method": settings.get(method, method),
        "model": {"preset": presets.get(method, "gpt2-1m"), "config": shape},
        "tokenizer": str(tokenizer),
        "data": {"train": str(folder / "train.jsonl"), "sequence_length": 128, **validation},
        "train": {
            "steps": 30,
            "batch_size": 4,
            "micro_batch_size": 4 if method == "grpo" else 2,  # it makes many rows of each prompt
            "checkpoint_every": 3,
            **prompts,
            **({"validate_every": 4} if validation else {}),
        },
    }


def run_once(recipe: dict[str, Any], phase: Any) -> None:
    """The body of each process: the same call, with a note of what it is doing."""
    import torch

    from trivium.core.checkpoint import Checkpoints
    from trivium.core.engine import Engine
    from trivium.drivers import single

    torch.set_num_threads(1)

    def noted(owner: Any, name: str, number: int) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            before, phase.value = phase.value, number
            try:
                return original(*arguments, **keywords)
            finally:
                phase.value = before

        setattr(owner, name, wrapper)

    noted(Engine, "run", PHASES.index("step"))
    noted(Engine, "evaluate", PHASES.index("validation"))
    noted(Checkpoints, "save", PHASES.index("save"))
    noted(single, "write_final", PHASES.index("end"))
    noted(single, "write_report", PHASES.index("end"))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        single.train({**recipe, "train": {**recipe["train"], "threads": 1}})


def finish(recipe: dict[str, Any], kills: int, seed: int, lifetime: float = 0.0) -> Counter[str]:
    """Runs to the end, killing `kills` times on the way; each attempt lives for a random part of `lifetime` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    rng = random.Random(seed)
    died: Counter[str] = Counter()
    fresh = True
    while True:
        phase = context.Value("i", 0)
        process = context.Process(target=run_once, args=(recipe, phase))
        process.start()
        began = time.perf_counter()
        if sum(died.values()) < kills:
            process.join(rng.uniform(0.05, lifetime))
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                died[PHASES[phase.value]] += 1
                fresh = False
                continue
            if fresh:  # the machine has become faster: kill within what a run takes now
                lifetime = min(lifetime, time.perf_counter() - began)
        process.join()
        assert process.exitcode == 0, f"a start of the run failed with exit code {process.exitcode}"
        if sum(died.values()) >= kills:
            return died
        # It got to the end before it was killed often enough: start a new run of the same kind beside it.
        fresh = True
        folder = Path(recipe["runs"]) / recipe["name"]
        folder.rename(folder.with_name(f"{recipe['name']}-{len(list(folder.parent.iterdir()))}"))


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of what must be identical: final weights, optimiser state, progression, metrics, samples."""

    def digest(*paths: Path) -> str:
        whole = hashlib.sha256()
        for path in paths:
            whole.update(path.name.encode() + path.read_bytes())
        return whole.hexdigest()[:16]

    newest = run / "checkpoints" / (run / "latest").read_text().strip()
    return {
        "final": digest(*sorted((run / "final").rglob("*.safetensors"))),
        "optimiser": digest(*sorted((newest / "train").iterdir())),
        "metrics": digest(run / "metrics.jsonl"),
        "samples": digest(*sorted((run / "samples").glob("*.json"))) if (run / "samples").exists() else "",
    }


def experiment(
    method: str, kills: int, seed: int = 0, **train: Any
) -> tuple[dict[str, str], list[dict[str, str]], Counter[str]]:
    """(fingerprint of an undisturbed run, fingerprints of all disturbed runs, deaths by phase); `train`: settings."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_world(Path(folder), method)
        recipe["train"].update(train)
        short = {**recipe["train"], "steps": 1}
        finish({**recipe, "name": "warm", "train": short}, 0, seed)  # starts the server that processes are forked from
        began = time.perf_counter()
        finish({**recipe, "name": "calm"}, 0, seed)
        died = finish(recipe, kills, seed, lifetime=time.perf_counter() - began)
        runs = Path(recipe["runs"])
        disturbed = [fingerprint(path) for path in sorted(runs.iterdir()) if path.name.startswith("killed")]
        return fingerprint(runs / "calm"), disturbed, died


def main() -> None:
    """Prints what happened; exit code 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--method", default="clm", choices=["clm", "sft", "dpo", "grpo", "mlm", "denoise"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    calm, disturbed, died = experiment(arguments.method, arguments.kills, arguments.seed)
    divergent = [run for run in disturbed if run != calm]
    print(f"{arguments.method}: {sum(died.values())} kills {dict(died)} over {len(disturbed)} runs")
    print(f"undisturbed {calm}\n{len(divergent)} divergent runs {divergent}, {time.perf_counter() - began:.0f} s")
    sys.exit(bool(divergent))


if __name__ == "__main__":
    main()
