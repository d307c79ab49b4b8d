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
from typing import Any, Literal

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
    no_repeat_ngram_size: int = 0
    """No run of this many tokens occurs twice in prompt and answer; 0 means off. Of an encoder-decoder the prompt is
    what its decoder starts with, not the source."""
    min_new_tokens: int = 0
    """No end token before the answer has this many tokens."""
    forced_bos_id: int | None = None
    """First token of the answer of an encoder-decoder whose decoder starts with one token only (mBART's language)."""
    forced_eos_id: int | None = None
    """Token at `max_new_tokens`, if the answer gets that far."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, at_least=0, fix="use 0 for greedy decoding, or a value above 0")
        check_number("top_k", self.top_k, at_least=0, whole=True, fix="use 0 for all tokens, or a whole number above 0")
        check_number("top_p", self.top_p, above=0, at_most=1, fix="use a value above 0 and up to 1; 1 keeps all tokens")
        check_number("min_p", self.min_p, at_least=0, at_most=1, fix="use a value from 0 to 1; 0 keeps all tokens")
        check_number("repetition_penalty", self.repetition_penalty, above=0, fix="use a value above 0; 1 means off")
        for name in ("no_repeat_ngram_size", "min_new_tokens"):
            check_number(name, getattr(self, name), at_least=0, whole=True, fix="use 0 for off, or a whole number")
        for name in ("forced_bos_id", "forced_eos_id"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=0, whole=True, fix="use the number of a token")

    @property
    def greedy(self) -> bool:
        """Whether chance plays no part."""
        return self.temperature == 0


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Beam search: the most likely answer as a whole, instead of one token after the other.

    An answer's score is the sum of its tokens' log-probabilities divided by its length to the power of
    `length_penalty`, as in transformers.
    """

    num_beams: int = 1
    """Beginnings that are followed side by side; 1 means no beam search."""
    length_penalty: float = 1.0
    """Above 0 favours long answers, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """When to stop: at `num_beams` ended answers (true), when a better one is unlikely (false), or impossible."""
    num_beam_groups: int = 1
    """Groups of beams that keep apart from each other (Vijayakumar et al. 2016, arXiv:1610.02424)."""
    diversity_penalty: float = 0.0
    """Taken from the score of a token for each beam of an earlier group that chose it at the same place."""

    def __post_init__(self) -> None:
        check_number("num_beams", self.num_beams, at_least=1, whole=True, fix="use a whole number; 1 means off")
        check_number("num_beam_groups", self.num_beam_groups, at_least=1, whole=True, fix="use a whole number from 1")
        check_number("length_penalty", self.length_penalty, fix="use a number; 0 ignores the length")
        check_number("diversity_penalty", self.diversity_penalty, at_least=0, fix="use 0 for off, or a value above 0")
        if self.early_stopping not in (True, False, "never"):
            raise _wrong("early_stopping", self.early_stopping, "use true, false or never")
        if self.num_beams % self.num_beam_groups:
            raise _wrong("num_beam_groups", self.num_beam_groups, f"use a divisor of num_beams {self.num_beams}")
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0):
            raise TriviumError(
                "groups of beams and a penalty that keeps them apart belong together",
                where="num_beam_groups",
                value=f"num_beam_groups {self.num_beam_groups}, diversity_penalty {self.diversity_penalty}",
                fix="set num_beam_groups above 1 and diversity_penalty above 0, or neither",
            )


@dataclass
class Completion:
    """One sample at the level of tokens.

    ids:               the new tokens; the end token is among them if `finish_reason` is "eos".
    logprobs:          natural-log probability of each of them under the model itself: temperature 1, no penalty, no
                       filter, whatever it was sampled with. This is what a policy ratio needs.
    sampling_logprobs: the same under the distribution it was drawn from; 0 for choices without chance.
    finish_reason:     why it ended.
    score:             of a beam search, see `Beams`.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    score: float | None = None


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
        raise _wrong(name, value, fix)


def _wrong(name: str, value: Any, fix: str) -> TriviumError:
    return TriviumError(f"{name} cannot have this value", where=name, value=value, fix=fix)
