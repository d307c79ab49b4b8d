"""Pretraining a 10.5M llama-style model on the CPU: our whole trainer against the transformers Trainer.

    python benchmarks/pretrain.py --pairs 5 --steps 30 [--peers eager compiled ours_compiled] [--peer-python PATH]

Both sides train the same shape (width 256, 8 layers, 8 heads, MLP 688, vocabulary 8192) on the same rows of 512 tokens,
batch 8, fp32, AdamW, with logging at every step and a checkpoint in the run. `eager` and `compiled` are settings of the
Trainer; `ours_compiled` is ours with torch.compile, beside ours without. See `sides.py` for how the sides take turns.
"""

from __future__ import annotations

from pathlib import Path

from sides import Measured, our_run, set_their_threads, take_turns, their_run

WORKLOAD = {"peers": ["torch", "transformers", "accelerate"], "arguments": ["--pairs", "3"]}

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 8,
    "intermediate_size": 688,
    "max_positions": 512,
}
PEERS = ("eager", "compiled", "ours_compiled")
SEQUENCE, BATCH = 512, 8


def make_data(folder: Path, steps: int) -> None:
    """One long document of pronounceable nonsense with the statistics of text, and a tokenizer of 8192 tokens."""
    import random

    from trivium.tokenizers.train import train_bpe

    rng = random.Random(0)
    parts = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in")]
    words = ["".join(rng.choices(parts, k=rng.choice([1, 2, 2, 3, 3, 4]))) for _ in range(20000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    needed = (steps + 2) * BATCH * SEQUENCE
    text = " ".join(rng.choices(words, weights, k=needed + 20000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_bpe([text[i : i + 10000] for i in range(0, 2_000_000, 10000)], vocab_size=8192).save(folder / "tokenizer")


def measure(side: str, folder: Path, steps: int) -> Measured:
    """One run of one side."""
    if not side.startswith("ours"):
        return theirs(folder, steps, compiled=side == "compiled")
    return our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens,
        method="clm",
        model={"preset": "llama-10m", "config": SHAPE},
        data={"train": str(folder / "text.txt"), "sequence_length": SEQUENCE},
        train={"batch_size": BATCH, "compile": "on" if side == "ours_compiled" else "off"},
    )


def theirs(folder: Path, steps: int, *, compiled: bool) -> Measured:
    """One run through the transformers Trainer on blocks of the same tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    set_their_threads()
    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    rows = torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE["vocab_size"],
            hidden_size=SHAPE["hidden_size"],
            num_hidden_layers=SHAPE["num_layers"],
            num_attention_heads=SHAPE["num_heads"],
            num_key_value_heads=SHAPE["num_kv_heads"],
            intermediate_size=SHAPE["intermediate_size"],
            max_position_embeddings=SHAPE["max_positions"],
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )
    return their_run(
        folder,
        steps,
        trainer=Trainer,
        arguments=TrainingArguments,
        model=model,
        rows=[{"input_ids": row, "labels": row} for row in rows],
        batch=BATCH,
        count=lambda sample: len(sample["input_ids"]),
        torch_compile=compiled,
    )


if __name__ == "__main__":
    take_turns(__file__, __doc__, peers=PEERS, prepare=make_data, measure=measure)
