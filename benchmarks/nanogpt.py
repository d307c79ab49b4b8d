"""A character model of tinyshakespeare in nanoGPT's CPU setting: our whole trainer against a loop like nanoGPT's.

    python benchmarks/nanogpt.py --text input.txt --pairs 2 [--steps 2000] [--lr 1e-3] [--out FILE]

4 layers, 4 heads, width 128, rows of 64 characters, 12 rows in an update, 2000 updates, AdamW (0.9, 0.99), learning
rate 1e-3 with 100 updates of warm-up and a cosine to a tenth, no dropout, fp32, not compiled. The first 90 % of the
characters are trained on. Both sides log every update and, every 250 updates, validate on 20 batches and save.

Ours is the real command, `trivium train recipes/shakespeare-char.yaml`, whose learning rate is 2e-3; `--lr 1e-3` gives
it the other side's. Our GPT-2 has biases, theirs none. nanoGPT is no package, so theirs is written
here anew in plain PyTorch, after its published description: fused query/key/value, scaled-dot-product attention, no
biases, tied embeddings, random windows of the text, an estimate of both losses at each validation.

Each run is a process of its own; the sides take turns. Reported are the wall time of the whole process and the loss in
nats a character over the whole validation text, in consecutive windows of 64 (measured afterwards, not timed).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import save

WORKLOAD = {"data": ["tinyshakespeare"], "arguments": ["--text", "{data}/tinyshakespeare/input.txt"]}

ROOT = Path(__file__).parent.parent
LAYERS, HEADS, WIDTH, BLOCK, BATCH = 4, 4, 128, 64, 12
LR, WARMUP, EVERY, EVALUATIONS = 1e-3, 100, 250, 20


def make_data(text: Path, folder: Path) -> None:
    """Cuts the text, and makes our tokenizer with our command."""
    characters = text.read_text(encoding="utf-8")
    cut = int(0.9 * len(characters))
    data = folder / "runs" / "shakespeare"
    data.mkdir(parents=True)
    (data / "train.txt").write_text(characters[:cut], encoding="utf-8")
    (data / "validation.txt").write_text(characters[cut:], encoding="utf-8")
    parts = [str(data / "train.txt"), str(data / "validation.txt")]
    output = ["--output", str(folder / "runs" / "shakespeare-tokenizer")]
    call = [sys.executable, "-m", "trivium", "tokenizer", "train", *parts, "--kind", "char", *output]
    subprocess.run(call, check=True, capture_output=True, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def ours(steps: int, name: str, lr: float | None) -> list[str]:
    """The command of our side."""
    recipe = str(ROOT / "recipes" / "shakespeare-char.yaml")
    changes = [f"train.steps={steps}", f"name={name}"] + ([] if lr is None else [f"train.lr={lr}"])
    return [sys.executable, "-m", "trivium", "train", recipe, *changes]


def theirs(steps: int, name: str) -> list[str]:
    """The command of the other side."""
    return [sys.executable, __file__, "--peer", name, "--steps", str(steps)]


def our_loss(folder: Path, name: str) -> dict[str, float]:
    """Loss of our model on the whole validation text."""
    from trivium.evaluation.held_out import held_out_loss
    from trivium.inference.model import load

    model = load(folder / "runs" / name / "final", device="cpu")
    validation = folder / "runs" / "shakespeare" / "validation.txt"
    loss = held_out_loss(model, validation, kind="documents", sequence_length=BLOCK, rows=64)["loss"]
    return {"loss": loss, "parameters": sum(p.numel() for p in model.module.parameters())}


def make_model(vocabulary: int, *, layers: int, heads: int, width: int, block: int) -> Any:
    """A model like nanoGPT's without biases or dropout: ids [B, L] -> logits [B, L, vocabulary]."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Norm(), Norm()
            self.stacked = nn.Linear(width, 3 * width, bias=False)
            self.output = nn.Linear(width, width, bias=False)
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            parts = self.stacked(self.first(x)).split(width, dim=2)
            query, key, value = (part.view(rows, length, heads, -1).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.output(mixed.transpose(1, 2).contiguous().view(rows, length, width))
            return x + self.down(functional.gelu(self.up(self.second(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = Norm()
            self.head = nn.Linear(width, vocabulary, bias=False)
            self.head.weight = self.embed.weight
            for key, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    branch = key.endswith(("output.weight", "down.weight"))
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if branch else 0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits: torch.Tensor = self.head(self.norm(x))
            return logits

    return Model()


def peer(name: str, steps: int) -> None:
    """A training loop in the manner of nanoGPT, in the current folder."""
    import numpy as np
    import torch
    from torch.nn import functional

    folder = Path("runs/shakespeare")
    texts = {part: (folder / f"{part}.txt").read_text(encoding="utf-8") for part in ("train", "validation")}
    table = {character: place for place, character in enumerate(sorted(set("".join(texts.values()))))}
    data = {part: np.array([table[c] for c in text], dtype=np.uint16) for part, text in texts.items()}
    torch.manual_seed(1337)
    model = make_model(len(table), layers=LAYERS, heads=HEADS, width=WIDTH, block=BLOCK)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    def batch(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        values = data[part]
        starts = torch.randint(len(values) - BLOCK, (BATCH,))
        x = torch.stack([torch.from_numpy(values[s : s + BLOCK].astype(np.int64)) for s in starts])
        y = torch.stack([torch.from_numpy(values[s + 1 : s + 1 + BLOCK].astype(np.int64)) for s in starts])
        return x, y

    @torch.no_grad()
    def estimate() -> dict[str, float]:
        model.eval()
        found = {part: sum(loss_of(*batch(part)).item() for _ in range(EVALUATIONS)) / EVALUATIONS for part in data}
        model.train()
        return found

    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99))
    best = math.inf
    x, y = batch("train")
    before = time.perf_counter()
    for step in range(steps + 1):
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, max(0, step - WARMUP) / max(1, steps - WARMUP))))
        lr = LR * (step + 1) / (WARMUP + 1) if step < WARMUP else LR * (0.1 + 0.9 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if step % EVERY == 0 or step == steps:
            losses = estimate()
            print(f"step {step}: train loss {losses['train']:.4f}, val loss {losses['validation']:.4f}", flush=True)
            if losses["validation"] < best and step:
                best = losses["validation"]
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"runs/{name}.pt")
        if step == steps:
            break
        loss = loss_of(x, y)
        x, y = batch("train")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        print(f"iter {step}: loss {loss.item():.4f}, time {(now - before) * 1000:.2f}ms", flush=True)
        before = now
    model.eval()
    values = torch.from_numpy(data["validation"].astype(np.int64))
    rows = (len(values) - 1) // BLOCK
    with torch.no_grad():
        inputs, targets = values[: rows * BLOCK].view(rows, BLOCK), values[1 : rows * BLOCK + 1].view(rows, BLOCK)
        finished = time.time()
        parts = range(0, rows, 64)
        total = sum(loss_of(inputs[s : s + 64], targets[s : s + 64]).item() * len(inputs[s : s + 64]) for s in parts)
    result = {"loss": total / rows, "parameters": sum(p.numel() for p in model.parameters()), "finished": finished}
    Path(f"runs/{name}.json").write_text(json.dumps(result), encoding="utf-8")


def measure(side: str, folder: Path, steps: int, number: int, lr: float | None) -> dict[str, float]:
    """One run of one side."""
    name = f"{side}-{number}"
    command = ours(steps, name, lr) if side == "ours" else theirs(steps, name)
    started = time.time()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    seconds = time.time() - started
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    if side == "ours":
        return {"seconds": seconds, **our_loss(folder, name)}
    result: dict[str, float] = json.loads((folder / "runs" / f"{name}.json").read_text(encoding="utf-8"))
    return {"seconds": result.pop("finished") - started, **result}


def main() -> None:
    """Takes turns and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, help="learning rate of our side; default: the recipe's")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer, arguments.steps)
        return
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        make_data(arguments.text, Path(name))
        for pair in range(arguments.pairs):
            for side in ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours"):
                runs[side].append(measure(side, Path(name), arguments.steps, pair, arguments.lr))
                print(side, {key: round(value, 4) for key, value in runs[side][-1].items()}, flush=True)
    save(
        __file__,
        runs,
        better={"seconds": "less", "loss": "less"},
        settings={"steps": arguments.steps, "lr": arguments.lr},
        out=arguments.out,
    )


if __name__ == "__main__":
    main()
