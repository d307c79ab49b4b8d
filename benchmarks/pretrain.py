"""Pretraining on the CPU: our whole trainer against the transformers Trainer, litgpt and a loop like nanoGPT's.

    python benchmarks/pretrain.py --pairs 5 --steps 30 [--large] [--peers eager compiled ...] [--peer-python PATH]

A llama-style model of 10.5M parameters (width 256, 8 layers, 8 heads, MLP 688, vocabulary 8192), 8 rows of 512 tokens
in an update; with --large a GPT-2 of 124M (width 768, 12 layers, vocabulary 50304), 2 rows. All sides train on the same
tokens in fp32 with AdamW. Ours runs as a user runs it, with logging at every step and a checkpoint in the run.

    ours_compiled    ours with torch.compile; `ours` is without
    eager, compiled  the transformers Trainer, logging and saving too
    litgpt           litgpt's model of the same shape, compiled, in a bare loop; its pretraining does the same and more
    nanogpt          a model and a bare loop like nanoGPT's, compiled (its MLP has 4 times the width, no gate)

Beside each of ours the fraction is measured that the arithmetic of an update (`flops_per_token`) is of what square
matrix products reach in the same process right afterwards. See `sides.py` for how the sides take turns.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from sides import WARMUP, Measured, our_run, set_their_threads, take_turns, their_run

WORKLOAD = {
    "peers": ["torch", "transformers", "accelerate"],
    "apart": {
        "litgpt": {"peers": ["torch", "litgpt"], "environment": "litgpt", "unpinned": ["huggingface-hub", "tokenizers"]}
    },
    "arguments": ["--pairs", "3"],
}

LARGE = "--large" in sys.argv
SMALL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 8,
    "intermediate_size": 688,
    "max_positions": 512,
}
GPT2 = {"vocab_size": 50304, "max_positions": 512}
MODEL = {"preset": "gpt2", "config": GPT2} if LARGE else {"preset": "llama-10m", "config": SMALL}
PEERS = ("eager", "compiled", "ours_compiled", "litgpt", "nanogpt")
SEQUENCE, BATCH = 512, 2 if LARGE else 8
VOCABULARY, WIDTH, LAYERS, HEADS = (50304, 768, 12, 12) if LARGE else (8192, 256, 8, 8)


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
    if side in ("eager", "compiled"):
        return theirs(folder, steps, compiled=side == "compiled")
    if not side.startswith("ours"):
        return bare(folder, steps, litgpt_model() if side == "litgpt" else nanogpt_model())
    found = our_run(
        folder,
        steps,
        count=lambda batch: batch.tokens,
        method="clm",
        model=MODEL,
        data={"train": str(folder / "text.txt"), "sequence_length": SEQUENCE},
        train={"batch_size": BATCH, "compile": "on" if side == "ours_compiled" else "off"},
    )
    return {**found, "of_matrix_peak": work_per_token() * found["tokens"] / found["seconds"] / matrix_peak()}


def work_per_token() -> float:
    """Floating-point operations of an update for a token."""
    from trivium.core.plan import flops_per_token
    from trivium.models.build import preset

    return flops_per_token(preset(MODEL["preset"], MODEL["config"]), sequence_tokens=SEQUENCE)


def matrix_peak() -> float:
    """Operations a second of square fp32 products in this process, the median of some."""
    import statistics

    import torch

    size, rates = 1536, []
    a, b = torch.randn(size, size), torch.randn(size, size)
    for _ in range(20):
        begin = time.perf_counter()
        a @ b
        rates.append(2 * size**3 / (time.perf_counter() - begin))
    return statistics.median(rates)


def rows_of(folder: Path) -> Any:
    """[N, SEQUENCE] tokens of the text."""
    import torch
    from tokenizers import Tokenizer

    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)


def theirs(folder: Path, steps: int, *, compiled: bool) -> Measured:
    """One run through the transformers Trainer on blocks of the same tokens."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    set_their_threads()
    torch.manual_seed(0)
    if LARGE:
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=SEQUENCE,
            attn_implementation="sdpa",
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        )
        model: Any = GPT2LMHeadModel(config)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=SMALL["vocab_size"],
                hidden_size=SMALL["hidden_size"],
                num_hidden_layers=SMALL["num_layers"],
                num_attention_heads=SMALL["num_heads"],
                num_key_value_heads=SMALL["num_kv_heads"],
                intermediate_size=SMALL["intermediate_size"],
                max_position_embeddings=SMALL["max_positions"],
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
        rows=[{"input_ids": row, "labels": row} for row in rows_of(folder)],
        batch=BATCH,
        count=lambda sample: len(sample["input_ids"]),
        torch_compile=compiled,
    )


def litgpt_model() -> Any:
    """litgpt's model of the same shape."""
    from litgpt import GPT, Config

    kind = (
        {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True, "intermediate_size": 3072}
        if LARGE
        else {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "intermediate_size": 688}
    )
    return GPT(
        Config(
            block_size=SEQUENCE,
            vocab_size=VOCABULARY,
            padded_vocab_size=VOCABULARY,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            rotary_percentage=1.0,
            parallel_residual=False,
            **kind,
        )
    )


def nanogpt_model() -> Any:
    """A model like nanoGPT's, without biases."""
    from nanogpt import make_model

    return make_model(VOCABULARY, layers=LAYERS, heads=HEADS, width=WIDTH, block=SEQUENCE)


def bare(folder: Path, steps: int, model: Any) -> Measured:
    """A compiled model in a loop that does nothing but train it."""
    import torch
    from torch.nn import functional

    set_their_threads()
    rows = rows_of(folder)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    seconds, loss = [], 0.0
    for step in range(steps):
        begin = time.perf_counter()
        batch = rows[step * BATCH : (step + 1) * BATCH]
        logits = compiled(batch)[:, :-1]
        result = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        result.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = float(result)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": sum(seconds[WARMUP:]), "tokens": (steps - WARMUP) * BATCH * SEQUENCE, "loss": loss}


if __name__ == "__main__":
    take_turns(__file__, __doc__, peers=PEERS, prepare=make_data, measure=measure, flags=("--large",))
