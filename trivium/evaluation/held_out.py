"""Loss and bits per byte of a model folder on held-out data, each token predicted once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from trivium.data.dataset import open_dataset
from trivium.data.loader import Loader
from trivium.losses.tokens import token_loss
from trivium.recipe import DataSection, Source

if TYPE_CHECKING:
    from trivium.inference.model import LanguageModel


@torch.inference_mode()
def held_out_loss(
    model: LanguageModel,
    path: str | Path,
    *,
    kind: Literal["documents", "instructions"],
    sequence_length: int = 512,
    rows: int = 8,
) -> dict[str, float]:
    """`loss` in nats for each trained token, `bits_per_byte`, `tokens`, `bytes` of one file or folder.

    Documents longer than a row are cut, and each piece starts without context, as in training. Bytes are those of the
    text; what end tokens cost is counted in the bits.
    """
    settings = DataSection(train=[Source(path=str(path))], sequence_length=sequence_length, truncation="drop")
    dataset = open_dataset(settings.train, kind=kind, tokenizer=model.tokenizer, settings=settings)
    loader = Loader(
        dataset, rows=rows, micro_rows=rows, sequence_length=sequence_length, packing="best_fit", seed=0, shuffle=False
    )
    device = next(model.module.parameters()).device
    loss, tokens, size = 0.0, 0, 0
    for batch in loader.evaluation():
        batch = batch.to(device)
        targets = batch.targets
        loss += float(
            model.module(
                batch.input_ids,
                batch.layout,
                then=lambda hidden, head, targets=targets: token_loss(hidden, head, targets),
            )
        )
        tokens += batch.trained_tokens()
        size += int(batch.fields["target_bytes"].sum())
    return {
        "loss": loss / max(1, tokens),
        "bits_per_byte": loss / math.log(2) / max(1, size),
        "tokens": tokens,
        "bytes": size,
    }
