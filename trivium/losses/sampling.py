"""Drawing tokens from a model's distribution, with logits of a few tokens at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trivium.losses.tokens import trained_chunks


@torch.no_grad()
def sample_tokens(hidden: Tensor, head: nn.Module, targets: Tensor, noise: Tensor) -> Tensor:
    """[T] one token for each position with a target, drawn from softmax(head(hidden)); 0 elsewhere.

    noise: [T] uniform numbers in [0, 1): the token is the first one whose cumulated probability exceeds its number. So
    a draw depends on its own position only, and not on how a batch was split.
    """
    drawn = torch.zeros_like(targets)
    for at in trained_chunks(targets, len(head.weight)):  # type: ignore[arg-type]
        logits = head(hidden[at])
        shares = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).cumsum(-1)
        wanted = noise[at, None].to(shares.dtype) * shares[:, -1:]
        drawn[at] = torch.searchsorted(shares, wanted, right=True).squeeze(1).clamp(max=shares.shape[1] - 1)
    return drawn
