"""Does a curriculum help? The same model, data and updates, with four orders of difficulty, and several seeds.

    python benchmarks/curriculum.py --seeds 3

Held-out bits per byte of every eighth module of the documentation of Python's standard library, at a quarter, half and
the end of the run.
`random` is the control: pools of the same size as the curriculum's, but without regard to difficulty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
from pathlib import Path

from record import save
from sides import validations

WORKLOAD = {}

ORDERS = ("none", "easy_first", "hard_first", "random")


def main() -> None:
    """Prints a table: mean over the seeds, and the spread from the least to the largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--scorer", default="rarity")
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=ORDERS)
    parser.add_argument("--work", type=Path, default=None, help="keep everything in this folder")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        prepare(folder)
        for order in arguments.orders:
            curves = [curve(folder, order, arguments.scorer, seed, arguments.steps) for seed in range(arguments.seeds)]
            cells = [f"{order:12}"]
            for points in zip(*curves, strict=True):
                values = [value for _, value in points]
                cells.append(
                    f"update {points[0][0]}: {statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"
                )
            print("   ".join(cells), flush=True)
            found[order] = curves
    save(__file__, result=found, settings={"steps": arguments.steps, "scorer": arguments.scorer})


def prepare(folder: Path, *, every: int = 8, held_out: int = 10, vocabulary: int = 2048) -> None:
    """So many modules of pydocs in two splits, one of `held_out` for validation, and a tokenizer of them."""
    from trivium.data.intake import Intake
    from trivium.data.reading import read_documents
    from trivium.recipe import Source
    from trivium.tokenizers.train import train_bpe

    if (folder / "tokenizer").exists():
        return
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    for document in read_documents(Source(path="pydocs"), Intake()):
        number = int.from_bytes(hashlib.sha256(document.group.encode()).digest()[:8], "big")
        if number % every == 0:
            split = "validation" if number // every % held_out == 0 else "train"
            texts[split].append(document.text)
    for split, found in texts.items():
        rows = ({"id": f"{split}-{number}", "text": text} for number, text in enumerate(found))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tokenizer").mkdir(parents=True)
    train_bpe(texts["train"], vocab_size=vocabulary).save(folder / "tokenizer")


def curve(folder: Path, order: str, scorer: str, seed: int, steps: int) -> list[tuple[int, float]]:
    """(update, held-out bits per byte) of one run."""
    import trivium as tv

    curriculum = None if order == "none" else {"scorer": scorer, "order": order, "start": 0.1, "until": 0.5}
    run = tv.train(
        {
            "name": f"{order}-{scorer}-{seed}-{steps}",
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": "clm",
            "model": {"preset": "llama-1m", "config": {"vocab_size": 2048, "num_layers": 2}},
            "tokenizer": str(folder / "tokenizer"),
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "sequence_length": 128,
                "curriculum": curriculum,
            },
            "train": {
                "steps": steps,
                "batch_size": 8,
                "lr": 3e-3,
                "validate_every": steps // 4,
                "validation_batches": 20,
                "checkpoint_every": steps,
                "compile": "off",
                "threads": 1,
            },
        }
    )
    found = [(line["step"], line["bits_per_byte"]) for line in validations(run)]
    return [pair for pair in found if pair[0] in (steps // 4, steps // 2, steps)]


if __name__ == "__main__":
    main()
