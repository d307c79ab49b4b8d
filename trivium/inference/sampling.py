"""Choosing the next token: small objects, each one step, applied in order to the scores of all rows at once.

Shapes: B rows (samples in flight), V vocabulary. Every setting is a vector with one value per row, so requests with
different settings share a batch. Order and meaning are those of transformers' logits processors:
repetition penalty -> temperature -> top-k -> top-p -> min-p. One difference is wanted: tokens whose scores tie at
the edge of a filter are all kept, so the result does not depend on the order in which a sort leaves them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trivium.inference.request import Sampling

_OFF = -torch.inf


class Scores(NamedTuple):
    """Scores on their way through the steps.

    values: [B, V]; minus infinity for excluded tokens.
    best:   [B, N] those of `values` that are not excluded, from the highest down, where a step has sorted them
            (tokens that tie with the last one may be missing).
    """

    values: Tensor
    best: Tensor | None = None


class Step(Protocol):
    """One step from scores to scores; holds the settings of the rows it works on."""

    def __call__(self, scores: Scores) -> Scores: ...

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows, in this order."""
        ...


class RepetitionPenalty:
    """Divides positive scores of tokens already seen by the penalty and multiplies negative ones (CTRL, 2019)."""

    def __init__(self, penalty: Tensor, seen: Tensor) -> None:
        self._penalty = penalty[:, None]
        self._seen = seen

    def __call__(self, scores: Tensor) -> Tensor:
        """[B, V] -> [B, V]."""
        changed = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(self._seen, changed, scores)

    def observe(self, tokens: Tensor) -> None:
        """Notes the token [B] each row has just got."""
        self._seen.scatter_(1, tokens[:, None], True)

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._penalty, self._seen = self._penalty[rows], self._seen[rows]


class Temperature:
    """Divides the scores; above 1 the choice gets more even, below 1 sharper."""

    def __init__(self, temperature: Tensor) -> None:
        self._temperature = temperature.clamp(min=torch.finfo(temperature.dtype).tiny)[:, None]

    def __call__(self, scores: Scores) -> Scores:
        # With the highest at 0 no temperature, however low, can make a score overflow.
        highest = scores.values.amax(dim=-1, keepdim=True)
        return Scores((scores.values - highest) / self._temperature)

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._temperature = self._temperature[rows]


class TopK:
    """Keeps the k most likely tokens; 0 keeps all."""

    def __init__(self, k: Tensor) -> None:
        self._k = k[:, None]
        # Plain numbers, so that no step waits for the device.
        self._least, self._most = int(k.min()), int(k.max())

    def __call__(self, scores: Scores) -> Scores:
        vocabulary = scores.values.shape[1]
        best = _best(scores.values, min(self._most, vocabulary) or 1)
        lowest = best.gather(1, self._k.clamp(1, vocabulary) - 1).masked_fill(self._k == 0, _OFF)
        kept = None if not self._least else _keep_from(best, lowest)
        return Scores(_keep_from(scores.values, lowest), kept)

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._k = self._k[rows]
        self._least, self._most = int(self._k.min()), int(self._k.max())


class TopP:
    """Keeps the smallest set of most likely tokens whose probabilities reach p (Holtzman et al., 2019)."""

    def __init__(self, p: Tensor) -> None:
        self._p = p[:, None]

    def __call__(self, scores: Scores) -> Scores:
        values = scores.values
        best = _best(values, values.shape[1]) if scores.best is None else scores.best
        highest = values.softmax(dim=-1).amax(dim=-1, keepdim=True)
        reached = (best - best[:, :1]).exp().cumsum(dim=-1) * highest
        # The token that reaches p is kept too, so the first one always is.
        last = (reached[:, :-1] < self._p).sum(dim=-1, keepdim=True)
        lowest = best.gather(1, last).masked_fill(self._p >= 1, _OFF)
        return Scores(_keep_from(values, lowest), _keep_from(best, lowest))

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._p = self._p[rows]


class MinP:
    """Keeps tokens at least `min_p` times as likely as the most likely one (Nguyen et al., 2024)."""

    def __init__(self, min_p: Tensor) -> None:
        self._log = min_p.log()[:, None]

    def __call__(self, scores: Scores) -> Scores:
        lowest = scores.values.amax(dim=-1, keepdim=True) + self._log
        return Scores(_keep_from(scores.values, lowest))

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._log = self._log[rows]


def _best(scores: Tensor, count: int) -> Tensor:
    """[B, count] highest scores, from the highest down. On a CPU numpy is up to twenty times faster than torch."""
    if scores.device.type != "cpu":
        return scores.topk(count, dim=-1).values
    numbers = scores.detach().numpy()
    if count < scores.shape[1]:
        numbers = np.partition(numbers, scores.shape[1] - count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(numbers, axis=-1)).flip(-1)


def _likeliest(scores: Tensor) -> Tensor:
    """[B, V] -> [B] the token with the highest score, the first where several have it. On a CPU numpy is faster."""
    if scores.device.type != "cpu":
        return scores.argmax(dim=-1)
    return torch.from_numpy(scores.detach().numpy().argmax(axis=-1))


def _keep_from(scores: Tensor, lowest: Tensor) -> Tensor:
    """Excludes scores below `lowest` [B, 1]."""
    return scores.masked_fill(scores < lowest, _OFF)


@dataclass(frozen=True)
class Choice:
    """The next token of each row.

    tokens:            [B] int64, on the device of the scores.
    logprobs:          [B] natural-log probability under the unchanged scores (temperature 1, nothing filtered).
    sampling_logprobs: [B] the same under the distribution that was drawn from; 0 for greedy rows.
    """

    tokens: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor


class Sampler:
    """All steps together, then the draw.

    samplings: B settings.
    prompts:   B lists of token ids, for the repetition penalty.
    streams:   B streams of random numbers; one number is taken from each per token, also by greedy rows.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        *,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[random.Random],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self._greedy_rows = [sampling.greedy for sampling in samplings]
        self._streams = list(streams)
        self._device = device
        self._greedy = torch.tensor(self._greedy_rows, device=device)
        self._penalty = _repetition_penalty(samplings, prompts, vocabulary, device)
        self._steps = build_steps(samplings, device=device)

    def choose(self, logits: Tensor, *, allowed: Tensor | None = None) -> Choice:
        """[B, V] scores of the model -> the next token of each row.

        allowed: the scores with minus infinity for tokens that may not be chosen; the model's own probabilities are
                 those of all tokens.
        """
        # Not logsumexp: that one is ten times slower where exp() gives denormal numbers.
        plain = logits.float().log_softmax(dim=-1)
        scores = (logits if allowed is None else allowed).float()
        changed = scores if self._penalty is None else self._penalty(scores)
        if all(self._greedy_rows):
            tokens, sampling_logprobs = _likeliest(changed), torch.zeros(len(scores), device=scores.device)
        else:
            tokens, sampling_logprobs = self._draw(changed)
        if self._penalty is not None:
            self._penalty.observe(tokens)
        return Choice(tokens, plain.gather(1, tokens[:, None])[:, 0], sampling_logprobs)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps only these rows, in this order."""
        index = torch.tensor(rows, device=self._device)
        self._greedy_rows = [self._greedy_rows[row] for row in rows]
        self._streams = [self._streams[row] for row in rows]
        self._greedy = self._greedy[index]
        for step in self._steps:
            step.select(index)
        if self._penalty is not None:
            self._penalty.select(index)

    def _draw(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        filtered = Scores(scores)
        for step in self._steps:
            filtered = step(filtered)
        numbers = torch.tensor([stream.random() for stream in self._streams], dtype=torch.float64)
        tokens, logprobs = draw(filtered.values, numbers)
        if any(self._greedy_rows):
            tokens = torch.where(self._greedy, scores.argmax(dim=-1), tokens)
            logprobs = logprobs.masked_fill(self._greedy, 0.0)
        return tokens, logprobs


def build_steps(samplings: Sequence[Sampling], *, device: torch.device) -> list[Step]:
    """The steps after the repetition penalty, without those that no row asks for."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    steps: list[Step] = []
    if any(sampling.temperature != 1 for sampling in samplings):
        steps.append(Temperature(column([1.0 if s.greedy else s.temperature for s in samplings])))
    if any(sampling.top_k for sampling in samplings):
        steps.append(TopK(torch.tensor([s.top_k for s in samplings], device=device)))
    if any(sampling.top_p < 1 for sampling in samplings):
        steps.append(TopP(column([s.top_p for s in samplings])))
    if any(sampling.min_p > 0 for sampling in samplings):
        steps.append(MinP(column([s.min_p for s in samplings])))
    return steps


def draw(scores: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token per row from softmax(scores) by inverting its distribution function.

    scores:  [B, V]; minus infinity is never drawn.
    numbers: [B] uniform in [0, 1).
    Returns the tokens [B] and their log-probabilities [B].
    """
    # In double precision, because the sum over a large vocabulary must resolve its rarest tokens; Apple's GPU has none.
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    probabilities = scores.softmax(dim=-1, dtype=precise)
    reached = probabilities.cumsum(dim=-1)
    # A number that is rounded up to the very end would fall behind the last possible token.
    numbers = numbers.to(precise).clamp(max=1 - 4 * torch.finfo(precise).eps)
    numbers = numbers.to(scores.device, non_blocking=scores.device.type == "cuda")  # waits for nothing
    at = numbers[:, None] * reached[:, -1:]
    tokens = torch.searchsorted(reached, at, right=True).clamp_(max=scores.shape[1] - 1)
    return tokens[:, 0], probabilities.gather(1, tokens)[:, 0].log().to(scores.dtype)


def _repetition_penalty(
    samplings: Sequence[Sampling], prompts: Sequence[Sequence[int]], vocabulary: int, device: torch.device
) -> RepetitionPenalty | None:
    if all(sampling.repetition_penalty == 1 for sampling in samplings):
        return None
    seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt)] = True
    penalty = torch.tensor([sampling.repetition_penalty for sampling in samplings], device=device)
    return RepetitionPenalty(penalty, seen.to(device))
