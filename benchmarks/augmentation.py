"""Does EDA help where rows are few? 200 rows of SST-2, with and without 16 children each, at equal updates.

    python benchmarks/augmentation.py --data ../shared/data/sst2 --seeds 3

Accuracy on the 872 rows of the development set. Each seed draws its own 200 rows. The model is small and starts from
random weights, as in the paper's experiments with small sets (Wei and Zou 2019, table 2), which used 500 rows and 16
children, word vectors and larger networks.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
from pathlib import Path

from record import save
from sides import validations

WORKLOAD = {"data": ["sst2"], "arguments": ["--data", "{data}/sst2"]}

CHILDREN = 16
VARIANTS = {
    "none": [],
    "eda": [{"name": "eda", "children": CHILDREN}],
    "synonyms": [{"name": "synonyms", "children": CHILDREN, "share": 0.2}],
    "noise": [{"name": "noise", "children": CHILDREN}],
}


def main() -> None:
    """Prints accuracies of each variant: mean over the seeds, and each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for variant in arguments.variants:
            found[variant] = [
                accuracy(Path(scratch), arguments.data, variant, seed, rows=arguments.rows, steps=arguments.steps)
                for seed in range(arguments.seeds)
            ]
            values = found[variant]
            print(
                f"{variant:10} {statistics.mean(values):.4f}  {'  '.join(f'{value:.4f}' for value in values)}",
                flush=True,
            )
    save(__file__, result=found, settings={"steps": arguments.steps, "rows": arguments.rows})


def accuracy(folder: Path, data: Path, variant: str, seed: int, *, rows: int, steps: int) -> float:
    """Of one run, on the development set."""
    import trivium as tv
    from trivium.data.augment.rows import augment_rows
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.train import train_bpe

    every = list(csv.DictReader((data / "train.csv").open(encoding="utf-8")))
    if not (folder / "tokenizer").exists():
        (folder / "tokenizer").mkdir()
        texts = [row["text"] for row in every]
        train_bpe(texts, vocab_size=4000, special=expanded(["mask"])).save(folder / "tokenizer")
    chosen = folder / f"rows-{seed}.jsonl"
    drawn = random.Random(seed).sample(every, rows)
    chosen.write_text("".join(json.dumps({**row, "id": f"r{n}"}) + "\n" for n, row in enumerate(drawn)))
    train = chosen
    if VARIANTS[variant]:
        train = augment_rows([str(chosen)], folder / f"{variant}-{seed}", steps=VARIANTS[variant], seed=seed).rows
    run = tv.train(
        {
            "name": f"{variant}-{seed}",
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": "classification",
            "model": {"preset": "bert-1m", "config": {"vocab_size": 4000, "num_layers": 2}},
            "tokenizer": str(folder / "tokenizer"),
            "data": {
                "train": str(train),
                "validation": str(data / "dev.csv"),
                "sequence_length": 96,
                "truncation": "right",
                "packing": "none",
            },
            "train": {
                "steps": steps,
                "batch_size": 16,
                "lr": 5e-4,
                "compile": "off",
                "threads": 1,
                "checkpoint_every": steps,
            },
        }
    )
    return float(validations(run)[-1]["accuracy"])


if __name__ == "__main__":
    main()
