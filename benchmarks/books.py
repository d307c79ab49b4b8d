"""What several benchmarks share: paragraphs of old books as documents, and a tokenizer made from them.

The books are the folder `gutenberg` of a data folder (TRIVIUM_DATA, default ../shared/data): 17 English books.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from peers import DATA as DATA
from peers import ROOT as ROOT

HELD_OUT = ("austen-persuasion", "melville-moby_dick")
"""Whole books, of a known and of an unknown author."""


def paragraphs(book: Path) -> Iterator[str]:
    """The paragraphs of a book that are more than a heading, without line breaks."""
    data = book.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    for part in re.split(r"\r?\n\s*\n", text):
        line = " ".join(part.split())
        if len(line) >= 40:
            yield line


def write_books(
    folder: Path, *, held_out: int = 400, vocab_size: int = 8192, special: Sequence[str] = ("mask",)
) -> None:
    """`train.jsonl`, `validation.jsonl` (`held_out` paragraphs of whole books) and `tokenizer` in `folder`."""
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.train import train_bpe

    books = sorted((DATA / "gutenberg").glob("*.txt"))
    if not books:
        raise SystemExit(f"no books in {DATA / 'gutenberg'}: set TRIVIUM_DATA to the folder that holds gutenberg/")
    train = [text for book in books if book.stem not in HELD_OUT for text in paragraphs(book)]
    other = [text for book in books if book.stem in HELD_OUT for text in paragraphs(book)]
    for name, texts in (("train", train), ("validation", other[:: max(1, len(other) // held_out)][:held_out])):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_bpe(train, vocab_size=vocab_size, special=expanded(special)).save(folder / "tokenizer")
