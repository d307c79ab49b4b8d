"""Is an encoder that was pretrained on masked tokens better at sentiment than the same encoder from random weights?

    python benchmarks/mlm_then_sst2.py [--steps 4800] [--seeds 0 1 2] [--folder FOLDER] [--out FILE]

A small BERT (width 128, 2 layers, 4 heads, vocabulary 8192: 1.5M parameters) learns masked tokens on old books, and is
then tuned on the 6920 sentences of SST-2; beside it, the same encoder is tuned from random weights, for each seed. Each
kind of start has the learning rate and number of epochs that are best on the 872 development sentences with the first
seed. The figure is the difference in accuracy on the 1821 test sentences, mean over seeds, with a bootstrap interval
over sentences and the t interval over seeds. Next to it: TF-IDF of words and pairs of words with logistic regression
(scikit-learn), its C chosen on the development sentences.

With `--folder` everything is kept, and what is there already is not done again. Needs `gutenberg` and `sst2`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from books import DATA, write_books
from record import save
from sides import validations

WORKLOAD = {"peers": ["scikit-learn"], "together": True, "data": ["gutenberg", "sst2"]}

THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
SHAPE = {"vocab_size": 8192, "max_positions": 256, "num_layers": 2}
GRID = ((1e-4, 4), (3e-4, 2), (3e-4, 4), (1e-3, 2), (1e-3, 4))
"""Learning rates and epochs of tuning that each kind of start may choose from."""


def sentences(split: str) -> tuple[list[str], list[str]]:
    """(sentences, labels) of a split of SST-2."""
    with (DATA / "sst2" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def pretrain(folder: Path, steps: int) -> dict[str, float]:
    """Masked tokens on books, into `folder`/runs/mlm."""
    import trivium as tv

    run = tv.train(
        {
            "name": "mlm",
            "runs": str(folder / "runs"),
            "method": {"name": "mlm", "rate": 0.25},
            "model": {"preset": "bert-1m", "config": SHAPE},
            "tokenizer": str(folder / "tokenizer"),
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "sequence_length": 128,
            },
            "train": {
                "steps": steps,
                "batch_size": 16,
                "lr": 2e-3,
                "warmup_steps": steps // 16,
                "compile": "off",
                "validate_every": steps // 16,
                "threads": THREADS,
            },
        }
    )
    timings = [json.loads(line)["seconds"] for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in validations(run)]
    return {"first": losses[0], "last": losses[-1], "seconds": sum(timings)}


def tune(folder: Path, start: str, *, seed: int, lr: float, epochs: int) -> Path:
    """The tuned model."""
    import trivium as tv

    name = f"{start}-{seed}-{lr:g}-{epochs}"
    done = folder / "runs" / name / "final"
    if done.exists():
        return done
    model: dict[str, Any] = {"preset": "bert-1m", "config": SHAPE}
    if start == "pretrained":
        model = {"path": str(folder / "runs" / "mlm" / "final")}
    run = tv.train(
        {
            "name": name,
            "runs": str(folder / "runs"),
            "seed": seed,
            "method": {"name": "classification", "pooling": "mean", "dropout": 0.2},
            "model": model,
            "tokenizer": str(folder / "tokenizer"),
            "data": {"train": str(DATA / "sst2" / "train.csv"), "sequence_length": 128},
            "train": {
                "epochs": epochs,
                "batch_size": 8,
                "lr": lr,
                "schedule": "linear",
                "min_lr_ratio": 0.0,
                "compile": "off",
                "threads": THREADS,
            },
        }
    )
    final: Path = run.final
    return final


def right(model: Path, split: str) -> np.ndarray:
    """[N] 1.0 where the model has the right label."""
    import torch

    import trivium as tv

    torch.set_num_threads(THREADS)
    texts, labels = sentences(split)
    said = tv.load(model).classify(texts)
    return np.array([found.label == label for found, label in zip(said, labels, strict=True)], dtype=np.float64)


def baseline() -> dict[str, float]:
    """Accuracy of TF-IDF and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, dev, test = (sentences(split) for split in ("train", "dev", "test"))
    models = []
    for strength in (0.3, 1.0, 3.0, 10.0, 30.0):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        model = make_pipeline(words, LogisticRegression(C=strength, max_iter=1000)).fit(*train)
        models.append((model.score(*dev), model))
    dev_accuracy, best = max(models, key=lambda pair: pair[0])
    return {"dev": dev_accuracy, "test": best.score(*test)}


def gain(pretrained: list[np.ndarray], random: list[np.ndarray]) -> dict[str, float]:
    """Mean difference of accuracy over seeds, with both intervals."""
    from scipy import stats

    from trivium.evaluation.intervals import with_intervals

    difference = np.mean(pretrained, axis=0) - np.mean(random, axis=0)
    over_rows = with_intervals(lambda w: {"gain": w @ difference / w.sum(axis=1)}, len(difference))["gain"]
    each = [float(np.mean(a) - np.mean(b)) for a, b in zip(pretrained, random, strict=True)]
    result = {"gain": over_rows.value, "low": over_rows.low, "high": over_rows.high}
    if len(each) > 1:
        spread = stats.t.ppf(0.975, len(each) - 1) * statistics.stdev(each) / len(each) ** 0.5
        result |= {"seeds_low": over_rows.value - spread, "seeds_high": over_rows.value + spread}
    return result


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pretrains, tunes and compares."""
    if not (folder / "tokenizer").exists():
        write_books(folder)
    result: dict[str, Any] = {"tf-idf": baseline()}
    print("tf-idf", result["tf-idf"], flush=True)
    if not (folder / "runs" / "mlm" / "final").exists():
        result["mlm"] = pretrain(folder, arguments.steps)
        print("mlm", result["mlm"], flush=True)
    answers: dict[str, list[np.ndarray]] = {}
    for start in ("pretrained", "random"):
        first = arguments.seeds[0]
        dev = {
            (lr, epochs): float(right(tune(folder, start, seed=first, lr=lr, epochs=epochs), "dev").mean())
            for lr, epochs in GRID
        }
        lr, epochs = max(dev, key=lambda setting: dev[setting])
        tuned = [tune(folder, start, seed=seed, lr=lr, epochs=epochs) for seed in arguments.seeds]
        answers[start] = [right(model, "test") for model in tuned]
        accuracies = [float(each.mean()) for each in answers[start]]
        tried = [{"lr": lr, "epochs": epochs, "dev": accuracy} for (lr, epochs), accuracy in dev.items()]
        result[start] = {"tried": tried, "lr": lr, "epochs": epochs, "test": accuracies}
        result[start]["mean"] = statistics.mean(accuracies)
        print(start, result[start], flush=True)
    return {**result, **gain(answers["pretrained"], answers["random"])}


def main() -> None:
    """Prints the accuracies and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4800, help="updates of pretraining, of about 2000 tokens each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, arguments)
    print(
        f"gain on the test sentences: {result['gain']:+.2%} "
        f"(95 % over sentences {result['low']:+.2%} to {result['high']:+.2%}"
        + (f", over seeds {result['seeds_low']:+.2%} to {result['seeds_high']:+.2%})" if "seeds_low" in result else ")")
    )
    save(__file__, result=result, settings={"steps": arguments.steps, "seeds": arguments.seeds}, out=arguments.out)


if __name__ == "__main__":
    main()
