"""Tuning a whole BERT on the sentiment of sentences on the CPU: our whole trainer against the transformers Trainer.

    python benchmarks/classification.py --pairs 2 --steps 217 [--peers padded grouped] [--peer-python PATH] [--out FILE]

Both sides start from the same model folder (BERT, width 128, 4 layers, 4 heads, vocabulary 4096, random weights) and
see SST-2 once with 217 updates of 32 sentences, fp32, AdamW with the same settings, with logs and a checkpoint.
`padded` batches are random, `grouped` ones hold sentences of similar length. Counted are real tokens a second after the
first four updates, and the share of the 1821 test sentences that the result has right, with the half width of its
interval (95 %). Needs `sst2`.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

from books import DATA
from sides import Measured, our_run, set_their_threads, take_turns, their_run

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate"],
    "data": ["sst2"],
    "arguments": ["--pairs", "2", "--steps", "60", "--peers", "grouped"],
}

PEERS = ("padded", "grouped")
ROWS, LENGTH = 32, 96
SHAPE = {"vocab_size": 4096, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 512}


def sentences(split: str) -> list[tuple[str, int]]:
    """(sentence, label) of a split of SST-2."""
    with (DATA / "sst2" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def prepare(folder: Path, steps: int) -> None:
    """Rows, tokenizer and the model that both begin with."""
    from trivium.artifacts.writer import write_artifact
    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model
    from trivium.tokenizers.special import expanded
    from trivium.tokenizers.tokenizer import Tokenizer
    from trivium.tokenizers.train import train_bpe

    rows = sentences("train")
    lines = "".join(json.dumps({"text": text, "label": "np"[label]}) + "\n" for text, label in rows)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    train_bpe([text for text, _ in rows], vocab_size=4096, special=expanded(["mask"])).save(folder / "tokenizer")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    config = preset("bert-1m", {**SHAPE, "max_positions": 128, "pad_id": tokenizer.pad_id})
    with write_artifact(folder / "start", kind="model") as place:
        save_model(place, config, dict(build_model(config, seed=0).state_dict()))
        tokenizer.save(place)


def measure(side: str, folder: Path, steps: int) -> Measured:
    """One run of one side, and how good its model is."""
    return ours(folder, steps) if side == "ours" else theirs(folder, steps, side)


def ours(folder: Path, steps: int) -> Measured:
    """One run through `tv.train`."""
    import trivium as tv

    measured = our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens,
        method={"name": "classification", "dropout": 0.0},
        model={"path": str(folder / "start")},
        data={
            "train": str(folder / "train.jsonl"),
            "sequence_length": LENGTH,
            "truncation": "right",
            "packing": "none",
        },
        train={"batch_size": ROWS, "lr": 3e-4},
    )
    newest = max((folder / "runs").glob("ours-*/final"), key=lambda path: path.stat().st_mtime)
    said = tv.load(newest).classify([text for text, _ in sentences("test")], truncate=True)
    return {
        **measured,
        **share([one.label == "np"[label] for one, (_, label) in zip(said, sentences("test"), strict=True)]),
    }


def theirs(folder: Path, steps: int, setting: str) -> Measured:
    """One run through the transformers Trainer."""
    import torch
    from transformers import (
        BertForSequenceClassification,
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    set_their_threads()
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), pad_token="<|pad|>"
    )
    ends = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    first, last = (tokenizer.convert_tokens_to_ids(ends[name]) for name in ("bos_token", "eos_token"))

    def encoded(text: str) -> list[int]:
        return [first, *tokenizer(text, add_special_tokens=False)["input_ids"][: LENGTH - 2], last]

    rows = [{"input_ids": encoded(text), "labels": label} for text, label in sentences("train")]
    model = BertForSequenceClassification.from_pretrained(folder / "start", attn_implementation="sdpa", num_labels=2)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    measured = their_run(
        folder,
        steps,
        trainer=Trainer,
        arguments=TrainingArguments,
        model=model,
        rows=rows,
        batch=ROWS,
        count=lambda sample: len(sample["input_ids"]),
        collator=DataCollatorWithPadding(tokenizer),
        train_sampling_strategy="group_by_length" if setting == "grouped" else "random",
        max_grad_norm=1.0,
        warmup_steps=steps // 50,
    )
    model.eval()
    right: list[bool] = []
    with torch.no_grad():
        for text, label in sentences("test"):
            scores = model(torch.tensor([encoded(text)])).logits
            right.append(int(scores.argmax()) == label)
    return {**measured, **share(right)}


def share(right: list[bool]) -> dict[str, Any]:
    """Accuracy, and half of its interval."""
    rate = sum(right) / len(right)
    return {"accuracy": rate, "interval": 1.96 * math.sqrt(rate * (1 - rate) / len(right))}


if __name__ == "__main__":
    if not (DATA / "sst2").is_dir():
        sys.exit(f"no sst2 in {DATA}: set TRIVIUM_DATA to the folder that holds it")
    take_turns(__file__, __doc__, peers=PEERS, prepare=prepare, measure=measure)
