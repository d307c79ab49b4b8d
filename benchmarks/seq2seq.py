"""Training a 9M T5 to translate on the CPU: our whole trainer against the transformers Seq2SeqTrainer.

    python benchmarks/seq2seq.py --pairs 3 --steps 20 [--peers padded grouped] [--peer-python PATH] [--out FILE]

Both sides train the same shape (t5-10m: width 256, 4 + 4 layers, 4 heads, vocabulary 8192; tied, no dropout) on the
29 000 English-German pairs of Multi30k, about 4096 real tokens of sources and targets in an update, fp32, AdamW, with
logging at every step and a checkpoint in the run. Ours packs pairs without letting them see each other. The Trainer
takes DataCollatorForSeq2Seq in two settings:

    padded    batches of pairs in random order
    grouped   the same, with batches of sources of similar length (its own sampler for that)

Counted are real tokens, not padding; see `sides.py` for how the sides take turns.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from pathlib import Path

from books import DATA
from sides import Measured, our_run, set_their_threads, take_turns, their_run

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate"],
    "data": ["multi30k"],
    "arguments": ["--pairs", "3", "--peers", "grouped"],
}

PEERS = ("padded", "grouped")
SEQUENCE, ROWS = 512, 8
TOKENS = SEQUENCE * ROWS


def write_pairs(folder: Path) -> None:
    """`train.jsonl` and `tokenizer` in `folder`."""
    from trivium.tokenizers.train import train_bpe

    if not (DATA / "multi30k" / "train.en.gz").is_file():
        raise SystemExit(f"no pairs in {DATA / 'multi30k'}: set TRIVIUM_DATA to the folder that holds multi30k/")
    sides = [
        gzip.decompress((DATA / "multi30k" / f"train.{language}.gz").read_bytes()).decode().splitlines()
        for language in ("en", "de")
    ]
    lines = [
        json.dumps({"source": source.strip(), "target": target.strip()}, ensure_ascii=False)
        for source, target in zip(*sides, strict=True)
        if source.strip() and target.strip()
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_bpe(itertools.chain(*sides), vocab_size=8192).save(folder / "tokenizer")


def measure(side: str, folder: Path, steps: int) -> Measured:
    """One run of one side."""
    if side != "ours":
        return theirs(folder, steps, side)
    return our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens + batch.source.layout.tokens,
        method="seq2seq",
        model={"preset": "t5-10m"},
        data={"train": str(folder / "train.jsonl"), "sequence_length": SEQUENCE},
        train={"batch_size": ROWS},
    )


def theirs(folder: Path, steps: int, setting: str) -> Measured:
    """One run through the transformers Seq2SeqTrainer."""
    import torch
    from transformers import (
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
    )

    set_their_threads()
    special = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), **special)
    pairs = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    ends = [tokenizer.eos_token_id]
    rows = [
        {
            "input_ids": tokenizer(pair["source"])["input_ids"] + ends,
            "labels": tokenizer(pair["target"], add_special_tokens=False)["input_ids"] + ends,
        }
        for pair in pairs
    ]
    mean = sum(len(row["input_ids"]) + len(row["labels"]) for row in rows) / len(rows)
    batch = max(1, round(TOKENS / mean))
    # Just the run: the sampler sorts by length inside of some batches, so a part of them would not stand for all.
    rows = random.Random(0).sample(rows, steps * batch)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=8192,
            d_model=256,
            d_kv=64,
            d_ff=1024,
            num_layers=4,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )
    return their_run(
        folder,
        steps,
        trainer=Seq2SeqTrainer,
        arguments=Seq2SeqTrainingArguments,
        model=model,
        rows=rows,
        batch=batch,
        count=lambda sample: len(sample["input_ids"]) + len(sample["labels"]),
        collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_sampling_strategy="group_by_length" if setting == "grouped" else "random",
    )


if __name__ == "__main__":
    take_turns(__file__, __doc__, peers=PEERS, prepare=lambda folder, steps: write_pairs(folder), measure=measure)
