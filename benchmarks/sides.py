"""What benchmarks of training share: a run of ours, one of the transformers Trainer, what it measured, taking turns.

Each measurement is a process of its own, the same script called with --side; the figure is the ratio of the medians
of tokens per second, counted over the steps after warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import ROOT
from record import peak_memory, save

WARMUP = int(os.environ.get("BENCH_WARMUP", 4))
"""Updates before the clock runs; fewer for short looks."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))

Measured = dict[str, float]
"""`seconds` and `tokens` of the steps after warm-up, and the last `loss`."""


def our_run(folder: Path, steps: int, *, count: Callable[[Any], int], **recipe: Any) -> Measured:
    """One run through `tv.train`; the tokens of its batches are counted afterwards, from the same loader."""
    import trivium as tv
    from trivium.config import resolve
    from trivium.drivers.session import open_session

    train = {"steps": steps, "checkpoint_every": steps, "threads": THREADS, "compile": "off", **recipe.pop("train")}
    settings = {
        "name": f"ours-{time.time_ns()}",
        "runs": str(folder / "runs"),
        "tokenizer": str(folder / "tokenizer"),
        **recipe,
        "train": train,
    }
    run = tv.train(settings)
    seconds = [json.loads(line)["seconds"] for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    session = open_session(resolve(settings))
    tokens = [sum(count(batch) for batch in session.loader.update(step)) for step in range(steps)]
    session.close()
    return {"seconds": sum(seconds[WARMUP:]), "tokens": sum(tokens[WARMUP:]), "loss": losses[-1]}


def set_their_threads() -> None:
    """As many threads as ours; left alone if torch has them already, since setting them slows attention down."""
    import torch

    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


def their_run(
    folder: Path,
    steps: int,
    *,
    trainer: type[Any],
    arguments: type[Any],
    model: Any,
    rows: Sequence[Any],
    batch: int,
    count: Callable[[Any], int],
    collator: Callable[[list[Any]], Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Measured:
    """One run of a transformers Trainer at its best settings, with a log line a step and a checkpoint.

    collator: default: the trainer's own. extra: further arguments of the trainer itself.
    """
    from transformers import TrainerCallback

    tokens: list[int] = []
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter())

    made = trainer(
        model,
        arguments(
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
            **{"remove_unused_columns": False, **settings},
        ),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[Clock()],
        **(extra or {}),
    )
    collate = made.data_collator

    def counted(samples: list[Any]) -> Any:
        tokens.append(sum(count(sample) for sample in samples))
        return collate(samples)

    made.data_collator = counted
    result = made.train()
    taken = [after - before for before, after in itertools.pairwise(seconds)]  # of step 1, 2, ...
    # The loader fetches a batch ahead, so there may be one more count than batches.
    parts = settings.get("gradient_accumulation_steps", 1)
    return {
        "seconds": sum(taken[WARMUP - 1 :]),
        "tokens": sum(tokens[WARMUP * parts : steps * parts]),
        "loss": result.training_loss,
    }


def validations(run: Any) -> list[dict[str, Any]]:
    """What a run of ours measured on held-out data, in order."""
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == "validation"]


def take_turns(
    script: str,
    description: str | None,
    *,
    peers: Sequence[str],
    prepare: Callable[[Path, int], None],
    measure: Callable[[str, Path, int], Measured],
    flags: Sequence[str] = (),
) -> None:
    """The command line of a benchmark: `prepare(folder, steps)` makes the data, `measure` runs one side in it.

    flags: further options without a value, which the process of each measurement gets too (and finds in sys.argv).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has transformers")
    parser.add_argument(
        "--python-of", nargs=2, action="append", default=[], metavar=("SIDE", "PATH"), help="of one side"
    )
    parser.add_argument("--out", type=Path, help="file of the figures, see record.py")
    parser.add_argument("--note", default="", help="what a reader of the figures must know")
    parser.add_argument("--side", choices=["ours", *peers], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the data is made, or was made before")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    arguments = parser.parse_args()
    arguments.flags = [flag for flag in flags if flag in sys.argv]
    if arguments.side:
        _measure(measure, arguments)
        return
    sides = ["ours", *arguments.peers]
    runs: dict[str, list[Measured]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        arguments.folder = arguments.folder or Path(name)
        if not (arguments.folder / "tokenizer").exists():
            prepare(arguments.folder, arguments.steps)
        warm_memory()
        for pair in range(arguments.pairs):
            for side in sides if pair % 2 == 0 else reversed(sides):
                runs[side].append(_run(script, side, arguments))
    save(
        script,
        runs,
        better={"tokens_per_second": "more", "memory": "less"},
        variant="-".join(flag.strip("-") for flag in arguments.flags),
        settings={"pairs": arguments.pairs, "steps": arguments.steps},
        out=arguments.out,
        peer_python=arguments.peer_python,
        note=arguments.note,
    )


def warm_memory(share: float = 0.4) -> None:
    """Touches memory once, in a process of its own, so that the first side does not pay for all.

    The host of a virtual machine takes idle memory back, and gives it again page by page, at the first use: the first
    updates of the first run took up to ten times as long as they should.
    """
    pages = int(os.sysconf("SC_AVPHYS_PAGES") * share)
    program = f"import numpy; numpy.ones({pages * os.sysconf('SC_PAGE_SIZE') // 8})"
    subprocess.run([sys.executable, "-c", program], check=False)


def _measure(measure: Callable[[str, Path, int], Measured], arguments: argparse.Namespace) -> None:
    """Runs one side in this process and prints a line of JSON."""
    result = measure(arguments.side, arguments.folder, arguments.steps)
    result["tokens_per_second"] = result["tokens"] / result["seconds"]
    result["memory"] = peak_memory()
    print("RESULT " + json.dumps(result))


def _run(script: str, side: str, arguments: argparse.Namespace) -> Measured:
    """One measurement in a process of its own."""
    apart = dict(arguments.python_of)
    python = sys.executable if side.startswith("ours") else apart.get(side, arguments.peer_python)
    command = [python, script, "--side", side, "--folder", str(arguments.folder), "--steps", str(arguments.steps)]
    command += arguments.flags
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: Measured = json.loads(lines[0][7:])
    print(f"{side:8}", {key: round(value, 2) for key, value in result.items()}, flush=True)
    return result
