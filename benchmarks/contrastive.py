"""Do vectors from supervised contrastive learning tell labels apart better than those from cross-entropy?

    python benchmarks/contrastive.py [--steps 800] [--seeds 0 1 2] [--folder FOLDER] [--out FILE]

A small BERT (width 128, 2 layers, vocabulary 8192: 1.5M parameters) learns masked tokens on old books, and is then
tuned for two epochs on the 6920 sentences of SST-2, for each seed: by cross-entropy (`classification`), by contrast
(`supervised_contrastive`), and by both together (`classifier: joint`, half and half). All have the mean of the last
hidden states as vector, the same batches of 32 sentences, and of two learning rates the one that gives the first seed
the best neighbours on the 872 development sentences. On the 1821 test sentences: the area under the curve of "same
label" by the cosine, over all pairs of 600 sentences, and the accuracy of the majority among the ten nearest training
sentences. Differences to cross-entropy are means over seeds, with a bootstrap interval over sentences and the t
interval over seeds.

With `--folder` everything is kept, and what is there already is not done again. Needs `gutenberg` and `sst2`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from books import DATA, write_books
from mlm_then_sst2 import pretrain, sentences
from record import save

WORKLOAD = {"data": ["gutenberg", "sst2"]}

THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
KINDS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"name": "classification", "pooling": "mean"},
    "contrast": {"name": "supervised_contrastive", "pooling": "mean"},
    "joint": {"name": "supervised_contrastive", "pooling": "mean", "projection": 0, "classifier": "joint"},
}
RATES = (3e-4, 1e-3)
EPOCHS = 2
COMPARED = 600
RESAMPLES = 200


def tune(folder: Path, kind: str, *, seed: int, lr: float) -> Path:
    """The tuned model."""
    import trivium as tv

    name = f"{kind}-{seed}-{lr:g}"
    done = folder / "runs" / name / "final"
    if done.exists():
        return done
    run = tv.train(
        {
            "name": name,
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": KINDS[kind],
            "model": {"path": str(folder / "runs" / "mlm" / "final")},
            "data": {"train": str(DATA / "sst2" / "train.csv"), "sequence_length": 128, "packing": "none"},
            "train": {
                "epochs": EPOCHS,
                "batch_size": 32,
                "lr": lr,
                "schedule": "linear",
                "min_lr_ratio": 0.0,
                "compile": "off",
                "threads": THREADS,
                "checkpoint_every": 10_000,
            },
        }
    )
    final: Path = run.final
    return final


class Vectors:
    """The vectors of all sentences by one model, and what they are worth."""

    def __init__(self, model: Path) -> None:
        import torch

        import trivium as tv

        torch.set_num_threads(THREADS)
        loaded = tv.load(model)
        self.labels = {split: np.array([int(label) for label in sentences(split)[1]]) for split in SPLITS}
        self.vectors = {
            split: loaded.embed(sentences(split)[0], pooling="mean", normalize=True, truncate=True).double().numpy()
            for split in SPLITS
        }

    def right(self, split: str) -> np.ndarray:
        """[N] 1.0 where the nearest training sentences have the label."""
        from trivium.evaluation.vectors import neighbour_labels

        said = neighbour_labels(self.vectors[split], self.labels[split], self.vectors["train"], self.labels["train"], 2)
        return (said == self.labels[split]).astype(np.float64)

    def areas(self, weights: np.ndarray) -> np.ndarray:
        """[B] area under the curve of "same label", each test sentence as often as `weights` [B, N] says."""
        from trivium.evaluation.metrics import ranking

        vectors, labels = self.vectors["test"][:COMPARED], self.labels["test"][:COMPARED]
        first, second = np.triu_indices(len(vectors), 1)
        values, same = (vectors @ vectors.T)[first, second], (labels[first] == labels[second]).astype(np.float64)
        order = np.argsort(-values, kind="stable")
        first, second, values, same = first[order], second[order], values[order], same[order]
        return np.array([ranking(same, values, (each[first] * each[second])[None])[0][0] for each in weights])


SPLITS = ("train", "dev", "test")


def over_seeds(each: list[float]) -> dict[str, float]:
    """Mean and t interval."""
    from scipy import stats

    mean = statistics.mean(each)
    if len(each) < 2:
        return {"mean": mean}
    spread = float(stats.t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
    return {"mean": mean, "seeds_low": mean - spread, "seeds_high": mean + spread}


def difference(ours: list[Vectors], theirs: list[Vectors]) -> dict[str, dict[str, float]]:
    """Both figures against cross-entropy, with both intervals."""
    random = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    rows = np.mean([a.right("test") - b.right("test") for a, b in zip(ours, theirs, strict=True)], axis=0)
    drawn = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=1000) @ rows / len(rows)
    each = [float((a.right("test") - b.right("test")).mean()) for a, b in zip(ours, theirs, strict=True)]
    found["neighbour_accuracy"] = {**over_seeds(each), **interval(drawn)}
    one = np.ones((1, COMPARED))
    weights = random.multinomial(COMPARED, np.full(COMPARED, 1 / COMPARED), size=RESAMPLES).astype(np.float64)
    gaps = [a.areas(np.concatenate([one, weights])) - b.areas(np.concatenate([one, weights]))
            for a, b in zip(ours, theirs, strict=True)]  # fmt: skip
    found["same_label_auc"] = {**over_seeds([float(gap[0]) for gap in gaps]), **interval(np.mean(gaps, axis=0)[1:])}
    return found


def interval(drawn: np.ndarray) -> dict[str, float]:
    """95 of 100 resamples."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rows_low": float(low), "rows_high": float(high)}


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pretrains, tunes and compares."""
    if not (folder / "tokenizer").exists():
        write_books(folder)
    if not (folder / "runs" / "mlm" / "final").exists():
        print("mlm", pretrain(folder, arguments.steps), flush=True)
    one = np.ones((1, COMPARED))
    start = Vectors(folder / "runs" / "mlm" / "final")
    result: dict[str, Any] = {
        "untuned": {
            "neighbour_accuracy": float(start.right("test").mean()),
            "same_label_auc": float(start.areas(one)[0]),
        }
    }
    print("untuned", result["untuned"], flush=True)
    tuned: dict[str, list[Vectors]] = {}
    for kind in KINDS:
        first = arguments.seeds[0]
        tried = {lr: Vectors(tune(folder, kind, seed=first, lr=lr)) for lr in RATES}
        dev = {lr: float(vectors.right("dev").mean()) for lr, vectors in tried.items()}
        lr = max(dev, key=lambda rate: dev[rate])
        others = [Vectors(tune(folder, kind, seed=seed, lr=lr)) for seed in arguments.seeds[1:]]
        tuned[kind] = [tried[lr], *others]
        result[kind] = {
            "lr": lr,
            "dev": dev,
            "neighbour_accuracy": [float(each.right("test").mean()) for each in tuned[kind]],
            "same_label_auc": [float(each.areas(one)[0]) for each in tuned[kind]],
        }
        print(kind, result[kind], flush=True)
    for kind in ("contrast", "joint"):
        result[f"{kind} - cross-entropy"] = difference(tuned[kind], tuned["cross-entropy"])
        print(f"{kind} - cross-entropy", result[f"{kind} - cross-entropy"], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="updates of pretraining")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(arguments.folder or Path(name), arguments)
    save(__file__, result=result, settings={"steps": arguments.steps, "seeds": arguments.seeds}, out=arguments.out)


if __name__ == "__main__":
    main()
