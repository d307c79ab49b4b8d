"""A tiny base with a tokenizer, and adapters on it, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import write_artifact
from trivium.models.adapter_folder import base_of, save_adapters
from trivium.models.build import build_model, preset
from trivium.models.folder import load_model, save_model
from trivium.models.transform import Transform, apply_transforms
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe
from trivium.transforms.lora import LoRA

TEXT = ["the quick brown fox jumps over the lazy dog", "a stitch in time saves nine", "all is well that ends well"]


def write_base(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A model folder with a tokenizer of bytes and a few merges."""
    made = folder.parent / "tokenizer"
    if not made.exists():
        made.mkdir(parents=True)
        train_bpe(TEXT * 5, vocab_size=300).save(made)
    tokenizer = Tokenizer.load(made)
    shape = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    config = preset("llama-1m", {**shape, "intermediate_size": 64, "init_std": 0.2, **changes})
    model = build_model(config, seed=seed)
    with write_artifact(folder, kind="model") as place:
        save_model(place, config, model.state_dict())
        tokenizer.save(place)
    return folder


def write_adapter(base: Path, folder: Path, *transforms: Transform, seed: int = 1, size: float = 0.1) -> Path:
    """A folder of adapters with random values; by default one LoRA."""
    model = load_model(base)
    model.base = base_of(base)
    apply_transforms(model, transforms or [LoRA(LoRA.Config(rank=4))], seed=0)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=stream) * size
    with write_artifact(folder, kind="model", parents=[parent_of(base, "base")]) as place:
        save_adapters(place, model, model.state_dict())
        Tokenizer.load(base).save(place)
    return folder
