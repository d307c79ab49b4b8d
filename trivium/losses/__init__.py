"""Losses on hidden states; imported lazily so that reading a method's `Config` does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.lazy import lazy_attributes

if TYPE_CHECKING:
    from trivium.losses.divergence import token_divergence as token_divergence
    from trivium.losses.sampling import sample_tokens as sample_tokens
    from trivium.losses.tokens import token_logprobs as token_logprobs
    from trivium.losses.tokens import token_loss as token_loss

__getattr__ = lazy_attributes(
    __name__,
    {
        "sample_tokens": "trivium.losses.sampling",
        "token_divergence": "trivium.losses.divergence",
        "token_loss": "trivium.losses.tokens",
        "token_logprobs": "trivium.losses.tokens",
    },
)
