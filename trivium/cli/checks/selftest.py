"""A real training step on a tiny model: is the arithmetic of this machine exact and repeatable?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trivium.cli.checks.findings import Check, Finding
from trivium.lazy import torch
from trivium.threads import use_threads

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.data.batch import Batch
    from trivium.models.transformer import Transformer

TOLERANCE = 1e-10
_SEQUENCES = [[(7 * row + 3 * at) % 61 for at in range(length)] for row, length in enumerate((23, 9, 31, 14))]
_REPORT = "report it with the output of 'trivium doctor --json'; reinstall torch, and test the memory of the machine"


def check_selftest(runs: Path) -> Iterator[Finding]:
    """Gradients must not depend on how a batch is split, and the same step twice must give the same bits."""
    threads = torch.get_num_threads()
    use_threads(1)  # the model is too small for more
    try:
        yield from _examine()
    finally:
        use_threads(threads)


def _examine() -> Iterator[Finding]:
    whole = gradients([_SEQUENCES])
    split = gradients([_SEQUENCES[:1], _SEQUENCES[1:]])
    apart = max(float((a - b).norm() / b.norm()) for a, b in zip(split, whole, strict=True))
    if not apart < TOLERANCE:
        message = f"gradients of a split batch differ by {apart:.1e}, at most {TOLERANCE:.0e} is right"
        yield Finding("self-test", "fail", message, _REPORT)
        return
    first, again = train(steps=8), train(steps=8)
    if first != again:
        yield Finding("self-test", "fail", "the same training steps gave different results", _REPORT)
    elif not first[-1] < 0.9 * first[0]:
        message = f"eight steps did not lower the loss ({first[0]:.3f} to {first[-1]:.3f})"
        yield Finding("self-test", "fail", message, _REPORT)
    else:
        message = f"a tiny model learns (loss {first[0]:.2f} to {first[-1]:.2f}), exactly and repeatably"
        yield Finding("self-test", "ok", message)


def gradients(parts: list[list[list[int]]]) -> list[Tensor]:
    """Gradient of the mean loss over all tokens for each parameter, added up over the parts of the batch; float64."""
    from trivium.data.batch import make_batch

    model = _model(torch.float64)
    tokens = sum(len(row) - 1 for part in parts for row in part)
    losses = [_loss(model, make_batch(part)) / tokens for part in parts]
    each = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    return [torch.stack(shares).sum(dim=0) for shares in zip(*each, strict=True)]


def train(*, steps: int) -> list[float]:
    """Losses of a few steps of AdamW in float32."""
    from trivium.data.batch import make_batch

    model, batch = _model(torch.float32), make_batch(_SEQUENCES)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = _loss(model, batch) / batch.tokens
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        losses.append(loss.item())
    return losses


def _model(dtype: torch.dtype) -> Transformer:
    from trivium.models.build import build_model, preset

    shape = preset(
        "llama-1m", {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}
    )
    return build_model(shape, seed=0, dtype=dtype)


def _loss(model: Transformer, batch: Batch) -> Tensor:
    logits = model(batch.input_ids, batch.layout)
    return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")


CHECKS: tuple[Check, ...] = (check_selftest,)
