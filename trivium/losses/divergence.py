"""Divergence between two models' next-token distributions, with logits of a few tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trivium.data.batch import IGNORE

CHUNK = 256
"""Tokens whose logits exist at the same time."""


def token_divergence(
    hidden: Tensor,
    head: nn.Module,
    teacher_hidden: Tensor,
    teacher_head: nn.Module,
    targets: Tensor,
    temperature: float,
) -> Tensor:
    """Scalar: sum over trained positions of KL(teacher || student), both softened by `temperature`.

    hidden: [T, D], teacher_hidden: [T, D_teacher], targets: [T]; only positions with a target count. Each chunk's
    logits are computed again in the backward pass. Both heads must have the same vocabulary.
    """
    trained = targets != IGNORE
    hidden, teacher_hidden = hidden[trained], teacher_hidden[trained]
    total = hidden.sum() * 0.0  # keeps the graph whole when nothing is trained

    def chunk_divergence(student: Tensor, teacher: Tensor) -> Tensor:
        ours = torch.log_softmax(
            head(student).to(torch.promote_types(hidden.dtype, torch.float32)) / temperature, dim=-1
        )
        theirs = torch.log_softmax(
            teacher_head(teacher).to(torch.promote_types(hidden.dtype, torch.float32)) / temperature, dim=-1
        )
        return torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)

    for student, teacher in zip(torch.split(hidden, CHUNK), torch.split(teacher_hidden, CHUNK), strict=True):
        total = total + checkpoint(chunk_divergence, student, teacher, use_reentrant=False)
    return total
