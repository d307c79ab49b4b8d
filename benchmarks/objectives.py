"""Does the loss of each pretraining objective fall as in transformers?

    python benchmarks/objectives.py mlm span_corruption infilling [--steps 400] [--out FILE]

Ours is a whole run of `tv.train` on the paragraphs of old books. Theirs is the transformers model of the same shape
with the same first weights, given the same corrupted batches (padded, as it wants them), the same learning rate at
each step and torch's AdamW. Both are then measured on the same corrupted paragraphs of held-out books. Shown are the
final validation losses and how far the two training curves are apart at most.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from books import write_books

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trivium.data.batch import Batch, Layout
from record import save

WORKLOAD = {
    "peers": ["torch", "transformers"],
    "together": True,
    "data": ["gutenberg"],
    "arguments": ["--steps", "300"],
}

SEQUENCE, ROWS = 128, 8
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Objective:
    """One objective on both sides.

    method: the section `method` of the recipe. preset: of the model.
    peer:   name of the transformers class.
    inputs: what that class is called with for one of our batches, `labels` among it.
    """

    method: dict[str, Any]
    preset: str
    peer: str
    inputs: Callable[[Batch], dict[str, Tensor]]


def mlm() -> Objective:
    """BERT's masked tokens."""

    def inputs(batch: Batch) -> dict[str, Tensor]:
        ids, mask = padded(batch.input_ids, batch.layout, 0)
        labels, _ = padded(batch.targets, batch.layout, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return Objective({"name": "mlm"}, "bert-1m", "BertForMaskedLM", inputs)


def text_to_text(batch: Batch) -> dict[str, Tensor]:
    """What an encoder-decoder of transformers is called with."""
    assert batch.source is not None
    source, seen = padded(batch.source.ids, batch.source.layout, 0)
    ids, mask = padded(batch.input_ids, batch.layout, 0)
    labels, _ = padded(batch.targets, batch.layout, -100)
    encoder = {"input_ids": source, "attention_mask": seen}
    return {**encoder, "decoder_input_ids": ids, "decoder_attention_mask": mask, "labels": labels}


def span_corruption() -> Objective:
    """T5's missing spans."""
    method = {"name": "denoise", "objective": "t5"}
    return Objective(method, "t5-1m", "T5ForConditionalGeneration", text_to_text)


def infilling() -> Objective:
    """BART's spans behind one mask each, and sentences in another order."""
    method = {"name": "denoise", "objective": "bart"}
    return Objective(method, "bart-1m", "BartForConditionalGeneration", text_to_text)


OBJECTIVES = {"mlm": mlm, "span_corruption": span_corruption, "infilling": infilling}


def padded(values: Tensor, layout: Layout, fill: int) -> tuple[Tensor, Tensor]:
    """[T] -> ([S, longest], mask of the same shape: 1 where there is a token)."""
    import torch

    rows = torch.full((layout.sequences, max(layout.lengths)), fill, dtype=values.dtype)
    mask = torch.zeros_like(rows)
    for row, (start, end) in enumerate(layout.spans()):
        rows[row, : end - start], mask[row, : end - start] = values[start:end], 1
    return rows, mask


def recipe(objective: Objective, folder: Path, steps: int) -> dict[str, Any]:
    """Our side as `trivium train` would read it."""
    return {
        "name": objective.method["name"],
        "runs": str(folder / "runs"),
        "method": objective.method,
        "model": {"preset": objective.preset, "config": {"vocab_size": 8192, "max_positions": 2 * SEQUENCE}},
        "tokenizer": str(folder / "tokenizer"),
        "data": {
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "sequence_length": SEQUENCE,
        },
        "train": {
            "steps": steps,
            "batch_size": ROWS,
            "lr": 1e-3,
            "compile": "off",
            "checkpoint_every": steps,
            "validate_every": steps,
            "threads": THREADS,
        },
    }


def ours(settings: dict[str, Any]) -> tuple[list[dict[str, float]], float]:
    """(the line of metrics of each step, the final validation loss)."""
    import trivium as tv

    run = tv.train(settings)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    return train, [line["loss"] for line in lines if line["kind"] == "validation"][-1]


def theirs(objective: Objective, settings: dict[str, Any], folder: Path, lrs: list[float]) -> tuple[list[float], float]:
    """(the loss of each step, the final validation loss) of transformers on our batches."""
    import torch
    import transformers

    from trivium.config import resolve
    from trivium.drivers.session import open_session
    from trivium.models.build import build_model
    from trivium.models.folder import save_model

    session = open_session(resolve(settings))
    (folder / "initial").mkdir()
    first = build_model(session.config, seed=session.recipe.seed)
    save_model(folder / "initial", session.config, first.state_dict())
    model = getattr(transformers, objective.peer).from_pretrained(folder / "initial").train()
    optimizer = torch.optim.AdamW(groups(model), betas=(0.9, 0.95), eps=1e-8, fused=True)
    losses = []
    for step, lr in enumerate(lrs):
        (batch,) = session.loader.update(step)
        loss = model(**objective.inputs(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.item())
    final = validation(model.eval(), objective, session.validation_batches())
    session.close()
    return losses, final


def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def validation(model: torch.nn.Module, objective: Objective, batches: Iterable[Batch]) -> float:
    """Mean loss over all predicted tokens."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            trained = batch.trained_tokens()
            total += model(**objective.inputs(batch)).loss.item() * trained
            count += trained
    return total / count


def compare(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Both sides of one objective."""
    objective = OBJECTIVES[name]()
    settings = recipe(objective, folder, steps)
    begun = time.perf_counter()
    lines, our_final = ours(settings)
    between = time.perf_counter()
    their_losses, their_final = theirs(objective, settings, folder, [line["lr"] for line in lines])
    return {
        "ours": our_final,
        "theirs": their_final,
        "ratio": our_final / their_final,
        "first": lines[0]["loss"],
        "uniform": math.log(8192),
        "apart": max(abs(line["loss"] / loss - 1) for line, loss in zip(lines, their_losses, strict=True)),
        "seconds_ours": between - begun,
        "seconds_theirs": time.perf_counter() - between,
    }


def main() -> None:
    """Runs the objectives and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objectives", nargs="*", choices=[*OBJECTIVES, []], default=[])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--books", type=Path, help="folder that `books.write_books` filled before")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name in arguments.objectives or OBJECTIVES:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            if arguments.books:
                for part in ("train.jsonl", "validation.jsonl", "tokenizer"):
                    (folder / part).symlink_to(arguments.books.resolve() / part)
            else:
                write_books(folder, special=("mask", "sentinels"))
            results[name] = compare(name, folder, arguments.steps)
        print(
            f"{name}: validation loss {results[name]['ours']:.4f}, transformers {results[name]['theirs']:.4f} "
            f"(ratio {results[name]['ratio']:.4f}); began at {results[name]['first']:.3f}; training curves at most "
            f"{results[name]['apart']:.2%} apart; {results[name]['seconds_ours']:.0f} s and "
            f"{results[name]['seconds_theirs']:.0f} s",
            flush=True,
        )
    save(__file__, result=results, settings={"steps": arguments.steps}, out=arguments.out)


if __name__ == "__main__":
    main()
