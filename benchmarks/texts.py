"""Made-up texts, for benchmarks that need no real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path


def write_texts(folder: Path, *, words: int, vocabulary: int = 600, lengths: tuple[int, int] = (5, 200)) -> None:
    """`train.jsonl` of texts of mixed lengths in words, and `tokenizer`: pronounceable nonsense, Zipf-like."""
    from trivium.tokenizers.train import train_bpe

    draw = random.Random(0)
    parts = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in")]
    known = ["".join(draw.choices(parts, k=draw.choice([1, 2, 2, 3]))) for _ in range(5000)]
    weights = [1 / (rank + 3) for rank in range(len(known))]
    texts, left = [], words
    while left > 0:
        size = draw.randint(*lengths)
        texts.append(" ".join(draw.choices(known, weights, k=size)))
        left -= size
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    train_bpe(texts[:4000], vocab_size=vocabulary).save(folder / "tokenizer")
