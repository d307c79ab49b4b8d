"""What a model has forgotten: bits per byte on general text, of its body under the language head of its base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trivium import losses
from trivium.data.batch import IGNORE, Batch, Layout, make_batch
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.inference.engine import evaluating
from trivium.models.adapter_folder import is_adapter
from trivium.models.folder import load_model, read_config
from trivium.tokenizers.special import mask_id
from trivium.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from trivium.models.transformer import Transformer
    from trivium.recipe import Source

ROWS = 200
"""Documents of a probe."""
MASKED = 7
"""For encoders each seventh token is hidden, in turn, so that all of them are guessed once."""
_TOKENS_AT_ONCE = 1 << 13


def forgotten(folder: Path, base: Path, sources: Sequence[Source], *, rows: int = ROWS) -> dict[str, float]:
    """Bits per byte on general text of the base and of what was made of it, and their difference."""
    tokenizer = Tokenizer.load(base)
    models = {"before": with_language_head(base, base), "after": with_language_head(folder, base)}
    found = {
        name: bits_per_byte(model, tokenizer, sources, rows=rows, length=min(512, model.config.max_positions))
        for name, model in models.items()
    }
    return {**found, "forgetting": found["after"] - found["before"]}


def with_language_head(folder: Path, base: Path) -> Transformer:
    """The model in `folder` with the head for tokens that its base has; adapters stay on."""
    shape = read_config(base)
    head = {"head": shape.head, **({"head_bias": True} if shape.head == "masked" else {})}
    if read_config(folder).head == shape.head:
        return load_model(folder).eval()
    model = load_model(folder, head=head, base=base if is_adapter(folder) else None).eval()
    if not model.tied or shape.head == "masked":
        own = load_model(base).state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith("head.") and name in own:
                    parameter.copy_(own[name])
    return model


@torch.no_grad()
def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, sources: Sequence[Source], *, rows: int, length: int
) -> float:
    """Of the first `length` tokens of up to `rows` documents: the next token, or for an encoder each one hidden."""
    nats, size = 0.0, 0
    share = -(-rows // len(sources))
    documents = [found for source in sources for found in islice(read_documents(source, Intake()), share)]
    device = next(model.parameters()).device
    group: list[Batch] = []
    for document in documents[:rows]:
        ids = tokenizer.encode(document.text)[:length]
        if len(ids) < 2:
            continue
        group += _masked(ids, tokenizer) if model.config.kind == "encoder" else [make_batch([ids])]
        size += len(tokenizer.decode(ids).encode())
        if sum(batch.tokens for batch in group) > _TOKENS_AT_ONCE:
            nats += sum(_nats(model, batch.to(device)) for batch in group)
            group = []
    nats += sum(_nats(model, batch.to(device)) for batch in group)
    return nats / math.log(2) / max(size, 1)


def _masked(ids: list[int], tokenizer: Tokenizer) -> list[Batch]:
    tokens, mask, ignore = torch.tensor(ids), torch.tensor(mask_id(tokenizer)), torch.tensor(IGNORE)
    found = []
    for start in range(MASKED):
        hidden = torch.arange(len(ids)) % MASKED == start
        inputs, targets = torch.where(hidden, mask, tokens), torch.where(hidden, tokens, ignore)
        found.append(Batch(inputs, targets, Layout((len(ids),))))
    return found


def _nats(model: Transformer, batch: Batch) -> float:
    with evaluating(model):
        total = model(
            batch.input_ids, batch.layout, then=lambda hidden, head: losses.token_loss(hidden, head, batch.targets)
        )
    return float(total)
