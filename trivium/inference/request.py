"""What is asked of a model and what comes back; plain Python, no torch.

A *request* is a prompt with its `Sampling`. It can ask for several *samples*; each of them has its own stream of
random numbers, so what one sample says never depends on what else runs in the same batch.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trivium.errors import TriviumError

FinishReason = Literal["eos", "stop", "length", "cancelled"]
"""The model ended its answer; a stop string appeared; `max_new_tokens` was reached; the caller stopped it."""

_MOST_SEEDS = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults sample from the model's own distribution.

    The parts apply in the order of transformers' logits processors: repetition penalty, temperature, top-k, top-p,
    min-p; each works on what the one before has left.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (greedy)."""
    top_k: int = 0
    """Only the k most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability (Holtzman et al., 2019); 1 means all."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the most likely one (Nguyen et al., 2024); 0 means all."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the answer so far less likely (CTRL, Keskar et al., 2019); 1 means off."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, at_least=0, fix="use 0 for greedy decoding, or a value above 0")
        check_number("top_k", self.top_k, at_least=0, whole=True, fix="use 0 for all tokens, or a whole number above 0")
        check_number("top_p", self.top_p, above=0, at_most=1, fix="use a value above 0 and up to 1; 1 keeps all tokens")
        check_number("min_p", self.min_p, at_least=0, at_most=1, fix="use a value from 0 to 1; 0 keeps all tokens")
        check_number("repetition_penalty", self.repetition_penalty, above=0, fix="use a value above 0; 1 means off")

    @property
    def greedy(self) -> bool:
        """Whether chance plays no part."""
        return self.temperature == 0


@dataclass
class Completion:
    """One sample at the level of tokens.

    ids:               the new tokens; the end token is among them if `finish_reason` is "eos".
    logprobs:          natural-log probability of each of them under the model itself: temperature 1, no penalty, no
                       filter, whatever it was sampled with. This is what a policy ratio needs.
    sampling_logprobs: the same under the distribution it was drawn from; 0 for greedy choices.
    finish_reason:     why it ended.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


def random_stream(seed: int, prompt: Sequence[int], sample: int = 0) -> random.Random:
    """The random numbers of one sample: a function of the seed, the prompt and the number of the sample.

    The prompt takes part so that a thousand prompts under one seed do not all draw the same numbers; the place in
    the batch does not, so that a prompt has the same answer alone and in company.
    """
    content = struct.pack(f"<Qq{len(prompt)}q", seed, sample, *prompt)
    return random.Random(hashlib.blake2b(content, digest_size=16).digest())


def check_seed(seed: int) -> None:
    """Raises unless `seed` is a whole number from 0 to 2**63 - 1."""
    check_number("seed", seed, at_least=0, at_most=_MOST_SEEDS - 1, whole=True, fix="use a whole number from 0 up")


def check_number(
    name: str,
    value: float,
    *,
    fix: str,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    whole: bool = False,
) -> None:
    """Raises a `TriviumError` that names the setting unless `value` is a finite number within the bounds."""
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    right_kind = isinstance(value, kinds) and not isinstance(value, bool)
    if not right_kind or not math.isfinite(value) or value < at_least or value <= above or value > at_most:
        raise TriviumError(f"{name} cannot have this value", where=name, value=value, fix=fix)
