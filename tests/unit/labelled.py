"""Small tokenizers and rows for tests of labelled data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from trivium.data.labelled import LabelledDataset, LabelSet
from trivium.data.opening import open_labelled
from trivium.recipe import DataSection
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe

TEXTS = [
    "the good film was a great joy to watch",
    "a bad and boring story without any point",
    "unbelievably wonderful acting in New York and Paris",
    "Ada Lovelace lives in London , where she writes",
    "who wrote the first program ? it was Ada in 1843 .",
]


def wordpiece(folder: Path, *, frame: str = "template") -> Tokenizer:
    """A BERT-like tokenizer; `frame` is what adds its special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    start, end = ("[CLS]", 2), ("[SEP]", 3)
    if frame == "template":
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[start, end]
        )
    elif frame == "bert":
        backend.post_processor = processors.BertProcessing(end, start)
    elif frame == "roberta":
        backend.post_processor = processors.RobertaProcessing(end, start)
    backend.save(str(folder / "tokenizer.json"))
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return Tokenizer.load(folder)


def bytelevel() -> Tokenizer:
    """A GPT-like tokenizer."""
    return train_bpe(TEXTS, vocab_size=300)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opened(
    path: Path,
    tokenizer: Tokenizer,
    kind: Any = "labels",
    *,
    like: LabelSet | None = None,
    keep_rows: bool = False,
    length: int = 64,
    labels: Mapping[str, Any] | None = None,
    **settings: Any,
) -> LabelledDataset:
    """The data set of a file."""
    section = DataSection.model_validate(
        {"train": str(path), "sequence_length": length, "labels": labels or {}, **settings}
    )
    return open_labelled(
        section.train, kind=kind, tokenizer=tokenizer, settings=section, like=like, keep_rows=keep_rows
    )
