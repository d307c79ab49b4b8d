"""How well the classifiers of harmful texts tell eight categories apart, beside TF-IDF with logistic regression.

    python benchmarks/moderation.py [--seeds 0] [--folder FOLDER] [--out FILE] [--only NAME ...]

1,680 prompts with labels in eight categories (openai/moderation-api-release; a category that a row does not have is not
known). Three prompts of ten, by their hash, are held out. Average precision (AUPRC) for each category, over the rows
whose label is known, with the bootstrap interval of the mean over rows.

    words, characters    scikit-learn: TF-IDF of words and pairs of words, or of 2 to 5 characters inside words, with
                         logistic regression (C 10, balanced)
    linear               `trivium data classifier`
    encoder              `trivium train recipes/moderation.yaml`, from word vectors learnt on old books, 999 answers of
                         Alpaca and the training prompts
    random               the same encoder without them

Needs `openai_moderation`, `gutenberg` and `alpaca_1k`. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from books import DATA, ROOT, paragraphs
from record import save

WORKLOAD = {"peers": ["scikit-learn"], "together": True, "data": ["openai_moderation", "gutenberg", "alpaca_1k"]}

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
METHODS = ("words", "characters", "linear", "encoder", "random")


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, held-out rows)."""
    with gzip.open(DATA / "openai_moderation" / "samples-1680.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    held_out = [int(hashlib.sha256(row["prompt"].encode()).hexdigest()[:8], 16) % 10 < 3 for row in found]
    return [r for r, out in zip(found, held_out, strict=True) if not out], [
        r for r, out in zip(found, held_out, strict=True) if out
    ]


def truth(rows: list[dict[str, Any]]) -> np.ndarray:
    """[N, 8] 0, 1, or NaN where nothing is known."""
    return np.array([[row.get(name, np.nan) for name in CATEGORIES] for row in rows], dtype=np.float64)


def sklearn_scores(train: list[dict[str, Any]], texts: list[str], **features: Any) -> np.ndarray:
    """[N, 8] of TF-IDF and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, **features)
    known, unknown = vectorizer.fit_transform([row["prompt"] for row in train]), vectorizer.transform(texts)
    columns = []
    for labels in truth(train).T:
        there = ~np.isnan(labels)
        model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000).fit(known[there], labels[there])
        columns.append(model.decision_function(unknown))
    return np.stack(columns, axis=1)


def write_texts(folder: Path, train: list[dict[str, Any]]) -> None:
    """The training rows, and what tokenizer and word vectors are learnt from."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train), encoding="utf-8")
    texts = [text for book in sorted((DATA / "gutenberg").glob("*.txt")) for text in paragraphs(book)]
    answers = (DATA / "alpaca_1k" / "train.jsonl").read_text("utf-8").splitlines()
    texts += [text for line in answers if len(text := json.loads(line)["output"]) > 40]
    texts += [row["prompt"] for row in train] * 3
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")


def encoder_scores(folder: Path, texts: list[str], *, vectors: bool, seed: int) -> np.ndarray:
    """[N, 8] of the encoder that the recipe trains."""
    import yaml

    import trivium as tv
    from trivium.artifacts.writer import write_artifact
    from trivium.tokenizers.train import train_bpe
    from trivium.tokenizers.vectors_train import train_vectors

    if not (folder / "tokenizer").exists():
        corpus = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text("utf-8").splitlines()]
        (folder / "tokenizer").mkdir()
        train_bpe(corpus, vocab_size=8192).save(folder / "tokenizer")
        learnt = train_vectors(corpus, size=128, epochs=3, lowercase=True, threads=THREADS)
        with write_artifact(folder / "vectors", kind="word vectors") as place:
            learnt.save(place)
    recipe = yaml.safe_load((ROOT / "recipes" / "moderation.yaml").read_text("utf-8"))
    recipe |= {"runs": str(folder / "runs"), "tokenizer": str(folder / "tokenizer"), "seed": seed}
    recipe["name"] = f"{'encoder' if vectors else 'random'}-{seed}"
    recipe["model"]["word_vectors"] = str(folder / "vectors") if vectors else None
    recipe["data"] |= {"train": str(folder / "train.jsonl"), "validation": []}
    recipe["train"] |= {"compile": "off", "threads": THREADS}
    said = tv.load(tv.train(recipe).final).classify(texts, truncate=True)
    names = recipe["data"]["labels"]["names"]
    return np.array([[one.scores[names[name]] for name in CATEGORIES] for one in said])


def linear_scores(folder: Path, texts: list[str]) -> np.ndarray:
    """[N, 8] of the linear classifier."""
    from trivium.data.safety.linear import LinearClassifier, train_linear

    target = folder / "linear"
    train_linear(folder / "train.jsonl", target, text="prompt", labels=CATEGORIES)
    return np.array(LinearClassifier(target).scores(texts))


def average_precisions(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    """AUPRC of each category."""
    from sklearn.metrics import average_precision_score

    found = []
    for column, said in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(column)
        found.append(float(average_precision_score(column[known], said[known])) if column[known].any() else np.nan)
    return found


def judged(labels: np.ndarray, scores: np.ndarray, draws: int = 300) -> dict[str, Any]:
    """AUPRC by category, their mean, and its interval over rows."""
    source = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        drawn = source.integers(0, len(labels), len(labels))
        means.append(np.nanmean(average_precisions(labels[drawn], scores[drawn])))
    single = average_precisions(labels, scores)
    low, high = np.quantile(means, (0.025, 0.975))
    return {**dict(zip(CATEGORIES, single, strict=True)), "mean": float(np.mean(single)), "low": low, "high": high}


def main() -> None:
    """Prints a row for each classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    train, held_out = rows()
    texts, labels = [row["prompt"] for row in held_out], truth(held_out)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder, train)
        for method in arguments.only:
            for seed in arguments.seeds if method in ("encoder", "random") else [0]:
                begin = time.process_time()
                if method == "words":
                    scores = sklearn_scores(train, texts, ngram_range=(1, 2))
                elif method == "characters":
                    scores = sklearn_scores(train, texts, analyzer="char_wb", ngram_range=(2, 5))
                elif method == "linear":
                    scores = linear_scores(folder, texts)
                else:
                    scores = encoder_scores(folder, texts, vectors=method == "encoder", seed=seed)
                seconds = time.process_time() - begin
                result[f"{method}-{seed}"] = found = judged(labels, scores) | {"seconds": seconds}
                print(f"{method} (seed {seed}):", *(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
    positives = {name: int(np.nansum(column)) for name, column in zip(CATEGORIES, labels.T, strict=True)}
    print(f"{len(train)} rows to train on, {len(held_out)} held out, positives there: {positives}")
    save(__file__, result=result, settings={"seeds": arguments.seeds}, out=arguments.out)


if __name__ == "__main__":
    main()
