"""The certificate of a conversion: what a model says before and after it, on the same prompts.

    tokens   how many prompts become the same ids with either tokenizer
    logits   largest difference, divided by the standard deviation of the logits before; KL divergence of what is said
             before from what is said after, mean over tokens (nats); how often the most likely token is the same
    scores   of a task, where data is given

A conversion that changes more than the tolerance is refused unless it is accepted, and the figures are kept either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.errors import ModelError
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.inference.model import LanguageModel

LONGEST = 64
"""Tokens of a prompt that are compared; the rest is cut off."""


@dataclass(frozen=True)
class Certificate:
    """See the file docstring. `accepted`: whether a difference above the tolerance was let through by the user."""

    prompts: int
    tokens: int
    source: str
    same_ids: bool
    max_abs_logit: float
    relative: float
    kl: float
    same_choice: float
    tolerance: float
    accepted: bool = False
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether nothing changed but for rounding."""
        return self.same_ids and self.relative <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """`certificate.json`."""
        return {**asdict(self), "holds": self.holds}

    def describe(self) -> str:
        """In one line."""
        words = (
            f"on {self.prompts} prompts ({self.tokens} tokens): largest difference of logits {self.max_abs_logit:.2g} "
            f"({self.relative:.2g} of their spread), KL {self.kl:.2g}, same choice {self.same_choice:.1%}"
        )
        return words if self.same_ids else f"{words}; the prompts become OTHER TOKENS"


def compare(
    before: LanguageModel,
    after: LanguageModel,
    *,
    prompts: Sequence[str] = (),
    count: int = 16,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Certificate:
    """Both models on the prompts; without any, on `count` random runs of tokens."""
    ids = [before.tokenizer.encode(prompt)[:LONGEST] for prompt in prompts]
    same = all(after.tokenizer.encode(prompt)[:LONGEST] == row for prompt, row in zip(prompts, ids, strict=True))
    same &= before.tokenizer.vocab_size == after.tokenizer.vocab_size
    if not ids:
        stream = torch.Generator().manual_seed(seed)
        size = min(before.tokenizer.vocab_size, before.module.config.vocab_size)
        ids = torch.randint(0, size, (count, LONGEST // 2), generator=stream).tolist()
    ids = [row for row in ids if row]
    worst = squares = total = kl = choices = 0.0
    entries = places = 0
    for row in ids:
        one, other = (logits_of(model, row) for model in (before, after))
        if one.shape != other.shape:
            raise ModelError(
                "the model says something of another shape after the conversion",
                value=f"{list(one.shape)} before, {list(other.shape)} after",
            )
        worst = max(worst, float((one - other).abs().max()))
        squares, total, entries = squares + float(one.square().sum()), total + float(one.sum()), entries + one.numel()
        logp, logq = one.log_softmax(-1), other.log_softmax(-1)
        kl += float((logp.exp() * (logp - logq)).sum())
        choices += float((one.argmax(-1) == other.argmax(-1)).sum())
        places += one.shape[0]
    spread = math.sqrt(max(squares / entries - (total / entries) ** 2, 1e-12))
    return Certificate(
        prompts=len(ids),
        tokens=sum(len(row) for row in ids),
        source="given" if prompts else f"random tokens, seed {seed}",
        same_ids=same,
        max_abs_logit=worst,
        relative=worst / spread if math.isfinite(worst) else math.inf,
        kl=kl / places,
        same_choice=choices / places,
        tolerance=tolerance,
    )


def logits_of(model: LanguageModel, row: Sequence[int]) -> Tensor:
    """[T, V] what the model says after each token (of a head for labels [1, N]), in float32."""
    from trivium.data.batch import Layout, Source

    module = model.module
    device = next(module.parameters()).device
    ids = torch.tensor(list(row), device=device)
    source = None
    if module.config.kind == "encoder_decoder":
        source = Source(ids, Layout((len(row),)))
    with torch.no_grad():
        found: Tensor = module(ids, Layout((len(row),)), source=source)
    return found.float().reshape(-1, found.shape[-1]).cpu()


def read_prompts(path: Path) -> list[str]:
    """One prompt on each line of a file."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise ModelError("the prompts cannot be read", where=path, value=str(error), fix="one prompt a line") from None
    if not lines:
        raise ModelError("the file holds no prompt", where=path, fix="write one prompt on each line")
    return lines
