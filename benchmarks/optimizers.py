"""Which optimiser learns most from the same updates? Each at the best of three learning rates, and several seeds.

    python benchmarks/optimizers.py --seeds 3 --work runs/optimizers

Held-out bits per byte of the documentation of Python's standard library (a small llama, every eighth module). The
learning rate is chosen by the first seed; where the best one is at an end of its grid, the table says so. Finished runs
are kept in the folder, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from curriculum import prepare
from record import save
from sides import validations

WORKLOAD = {"arguments": ["--work", "runs/benchmarks/optimizers"]}

FREE = {"schedule": "constant"}
SIDES: dict[str, tuple[dict[str, Any], list[float], dict[str, Any]]] = {
    "adamw": ({"name": "adamw"}, [3e-3, 6e-3, 1.2e-2], {}),
    "muon": ({"name": "muon"}, [3e-3, 6e-3, 1.2e-2], {}),
    "lion": ({"name": "lion", "beta2": 0.98}, [5e-4, 1e-3, 2e-3], {}),
    "schedule_free": ({"name": "schedule_free", "beta2": 0.95}, [6e-3, 1.2e-2, 2.4e-2], FREE),
    "adafactor": ({"name": "adafactor"}, [1e-2, 3e-2, 1e-1], {}),
    "lamb": ({"name": "lamb"}, [5e-3, 1e-2, 2e-2], {}),
}
"""Optimiser, learning rates and further settings of each side."""


def main() -> None:
    """Prints a line for each side: the chosen rate, the mean over the seeds, and from the least to the largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sides", nargs="+", default=["adamw", "muon", "lion", "schedule_free"], choices=list(SIDES))
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.work)
    result = {}
    for side in arguments.sides:
        rates = SIDES[side][1]
        tried = {lr: held_out(arguments.work, side, lr, 0, arguments.steps) for lr in rates}
        best = min(tried, key=lambda lr: tried[lr])
        found = [held_out(arguments.work, side, best, seed, arguments.steps) for seed in range(arguments.seeds)]
        end = " (an end of the grid)" if best in (rates[0], rates[-1]) else ""
        spread = f"{statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})"
        print(f"{side:14} lr {best:<8g}{spread} bits per byte{end}", flush=True)
        result[side] = {"lr": best, "tried": tried, "bits_per_byte": found}
    save(__file__, result=result, settings={"steps": arguments.steps, "seeds": arguments.seeds})


def held_out(folder: Path, side: str, lr: float, seed: int, steps: int) -> float:
    """Bits per byte at the end of one run."""
    import trivium as tv

    optimizer, _, further = SIDES[side]
    run = tv.train(
        {
            "name": f"{side}-{lr:g}-{seed}-{steps}",
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": "clm",
            "model": {"preset": "llama-1m", "config": {"vocab_size": 2048, "num_layers": 2}},
            "tokenizer": str(folder / "tokenizer"),
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "sequence_length": 128,
            },
            "train": {
                "steps": steps,
                "batch_size": 16,
                "lr": lr,
                "optimizer": optimizer,
                "validate_every": steps,
                "validation_batches": 20,
                "checkpoint_every": steps,
                "compile": "off",
                "threads": 1,
                **further,
            },
        }
    )
    return float(validations(run)[-1]["bits_per_byte"])


if __name__ == "__main__":
    main()
