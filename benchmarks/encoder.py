"""Training a 10M BERT on masked tokens on the CPU: our whole trainer against the transformers Trainer.

    python benchmarks/encoder.py --pairs 3 --steps 20 [--peers padded grouped blocks] [--peer-python PATH] [--out FILE]

Both sides train the same shape (width 256, 10 layers, 8 heads, vocabulary 8192; tied, no dropout) on the paragraphs of
old books, 6 to 512 tokens each, about 4096 tokens in an update, 15 % of them predicted, fp32, AdamW, with logging at
every step and a checkpoint in the run. Ours packs paragraphs without letting them see each other. The Trainer takes
its own collator for masked tokens in three settings:

    padded    a batch of paragraphs, padded to the longest
    grouped   the same, with batches of paragraphs of similar length
    blocks    all paragraphs one after the other, cut into blocks of 512 tokens: no padding, but texts are mixed

Counted are real tokens, not padding; see `sides.py` for how the sides take turns.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from books import write_books
from sides import Measured, our_run, set_their_threads, take_turns, their_run

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate"],
    "data": ["gutenberg"],
    "arguments": ["--pairs", "3", "--peers", "grouped"],
}

PEERS = ("padded", "grouped", "blocks")
SEQUENCE, ROWS = 512, 8
TOKENS = SEQUENCE * ROWS


def measure(side: str, folder: Path, steps: int) -> Measured:
    """One run of one side."""
    if side != "ours":
        return theirs(folder, steps, side)
    return our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens,
        method="mlm",
        model={"preset": "bert-10m"},
        data={"train": str(folder / "train.jsonl"), "sequence_length": SEQUENCE},
        train={"batch_size": ROWS},
    )


def theirs(folder: Path, steps: int, setting: str) -> Measured:
    """One run through the transformers Trainer."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )
    from transformers.trainer_pt_utils import get_length_grouped_indices

    set_their_threads()
    torch.manual_seed(0)
    special = {"pad_token": "<|pad|>", "mask_token": "[MASK]", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), **special)
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    ends = [tokenizer.eos_token_id]
    documents = [tokenizer(text)["input_ids"][: SEQUENCE - 1] + ends for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    batch = max(1, round(TOKENS / mean))
    rows = documents
    if setting == "grouped":
        # Any batches of a whole epoch of its sampler, which sorts 50 at a time and begins with the longest.
        order = get_length_grouped_indices([len(document) for document in documents], batch)
        starts = random.Random(0).sample(range(0, len(order) - batch + 1, batch), steps)
        rows = [documents[number] for start in starts for number in order[start : start + batch]]
    if setting == "blocks":
        flat = list(itertools.chain.from_iterable(documents))
        rows = [flat[at : at + SEQUENCE] for at in range(0, len(flat) - SEQUENCE + 1, SEQUENCE)]
        batch = ROWS
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=8192,
            hidden_size=256,
            num_hidden_layers=10,
            num_attention_heads=8,
            intermediate_size=1024,
            max_position_embeddings=SEQUENCE,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )
    return their_run(
        folder,
        steps,
        trainer=Trainer,
        arguments=TrainingArguments,
        model=model,
        rows=[{"input_ids": row} for row in rows],
        batch=batch,
        count=lambda sample: len(sample["input_ids"]),
        collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.15),
        train_sampling_strategy="sequential" if setting == "grouped" else "random",
    )


if __name__ == "__main__":
    take_turns(__file__, __doc__, peers=PEERS, prepare=lambda folder, steps: write_books(folder), measure=measure)
