"""Supervised fine-tuning on chats of mixed lengths on the CPU: our whole trainer against TRL's SFTTrainer.

    python benchmarks/sft.py --pairs 3 --steps 12 [--large] [--lora] [--peers padding_free packing] [--out FILE]

Both sides train the same model folder on the same 1000 conversations of Alpaca (`alpaca_1k`), the answers only, about
4096 tokens in an update, fp32, AdamW, with logging at every step and a checkpoint in the
run. The model is llama-style with 10.5M parameters (width 256, 8 layers, vocabulary 8192), with --large a GPT-2 (width
768, 12 layers, vocabulary 50304); --lora trains adapters of rank 16 in all linear layers, through PEFT on their side.
Ours packs conversations without letting them see each other. TRL (bfloat16 and gradient checkpointing, its defaults,
are slower here and off):

    padding_free  3 parts of 8 conversations (its default batch), each in one sequence with a block-diagonal mask
    small_parts   the same with 6 parts of 4, since the mask costs the square of a part
    packing       its rows of 1024 tokens (best fit decreasing), 4 in an update
    padded        6 parts of 4 conversations, padded to the longest
    grouped       the same, with conversations of similar length in a part

Counted are real tokens, not padding; see `sides.py` for how the sides take turns. Needs trl (and peft for --lora).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from books import DATA
from sides import THREADS, Measured, our_run, take_turns, their_run

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate", "trl", "peft", "datasets"],
    "data": ["alpaca_1k"],
    "arguments": ["--pairs", "3", "--peers", "small_parts", "packing"],
}

PEERS = ("padding_free", "small_parts", "packing", "padded", "grouped")
LARGE, LORA = "--large" in sys.argv, "--lora" in sys.argv
SEQUENCE, ROWS = 1024, 4
PARTS = {"padding_free": (3, 8), "packing": (1, ROWS)}
"""Parts of an update, and conversations or rows in one."""
SMALL = {"preset": "llama-10m", "max_positions": SEQUENCE}
GPT2 = {"preset": "gpt2", "vocab_size": 50304}
RANK = {"rank": 16, "alpha": 32}


def make_data(folder: Path, steps: int) -> None:
    """`train.jsonl` of messages, `tokenizer`, and `model`: the folder that both sides start from."""
    from trivium.models.build import build_model, preset
    from trivium.models.folder import save_model
    from trivium.tokenizers.train import train_bpe

    source = DATA / "alpaca_1k" / "train.jsonl"
    if not source.is_file():
        raise SystemExit(f"no chats in {source.parent}: set TRIVIUM_DATA to the folder that holds alpaca_1k/")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chats = [
        [
            {"role": "user", "content": "\n".join(filter(None, (row["instruction"], row["input"])))},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in rows
        if row["output"].strip()
    ]
    tokenizer = train_bpe((message["content"] for chat in chats for message in chat), vocab_size=8192)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    kept = [chat for chat in chats if len(tokenizer.encode_chat(chat).ids) <= SEQUENCE]
    lines = [json.dumps({"messages": chat}, ensure_ascii=False) for chat in kept]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    changes: dict[str, Any] = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    changes |= GPT2 if LARGE else SMALL
    model = build_model(preset(changes.pop("preset"), changes), seed=0)
    (folder / "model").mkdir()
    save_model(folder / "model", model.config, model.state_dict())
    tokenizer.save(folder / "model")


def measure(side: str, folder: Path, steps: int) -> Measured:
    """One run of one side."""
    if side != "ours":
        return theirs(folder, steps, side)
    return our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens + batch.layout.sequences,  # the last token of each is a target only
        method="sft",
        model={"path": str(folder / "model")},
        transforms=[{"name": "lora", "target": "all-linear", **RANK}] if LORA else [],
        data={"train": str(folder / "train.jsonl"), "sequence_length": SEQUENCE},
        train={"batch_size": ROWS},
    )


def theirs(folder: Path, steps: int, setting: str) -> Measured:
    """One run through TRL's SFTTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(THREADS)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    parts, batch = PARTS.get(setting, (6, 4))
    settings: dict[str, Any] = {
        "padding_free": {"padding_free": True, "max_length": None},
        "small_parts": {"padding_free": True, "max_length": None},
        "packing": {"packing": True, "max_length": SEQUENCE},
        "padded": {"max_length": SEQUENCE},
        "grouped": {"max_length": SEQUENCE, "train_sampling_strategy": "group_by_length"},
    }[setting]
    extra: dict[str, Any] = {"processing_class": AutoTokenizer.from_pretrained(folder / "tokenizer")}
    if LORA:
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(
            r=RANK["rank"], lora_alpha=RANK["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
    return their_run(
        folder,
        steps,
        trainer=SFTTrainer,
        arguments=SFTConfig,
        model=AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="sdpa", dtype=torch.float32),
        rows=Dataset.from_list(rows),
        batch=batch,
        gradient_accumulation_steps=parts,
        count=lambda sample: len(sample["input_ids"]),
        extra=extra,
        remove_unused_columns=True,
        assistant_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )


if __name__ == "__main__":
    take_turns(__file__, __doc__, peers=PEERS, prepare=make_data, measure=measure, flags=("--large", "--lora"))
