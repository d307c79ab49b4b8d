"""The decode loop: prompts of any lengths in one batch, a key/value cache, one token for each sample per step.

There is no padding: the prompts are one ragged run of tokens, each starts at the left of its cache row, and a sample
that has ended leaves the batch. Samples of one prompt share the computation of that prompt.

Shapes: S sequences in a forward pass, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout
from trivium.errors import ModelError, TriviumError
from trivium.inference.request import Completion, FinishReason, Sampling, check_number, check_seed, random_stream
from trivium.inference.sampling import Sampler
from trivium.models.cache import KVCache
from trivium.models.transformer import Transformer

_CACHE_TOKENS = 1 << 16
"""Most tokens the cache of one batch may hold; bounds its memory whatever is asked."""


@dataclass(eq=False)
class Sample:
    """One answer in the making: `completion` grows with each step."""

    prompt: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    stream: Random
    eos_ids: Collection[int] = ()
    completion: Completion = field(default_factory=Completion)
    ended: bool = False

    def end(self, reason: FinishReason) -> None:
        """Ends the sample: it gets no further token. The first reason stays, but a stop string goes before length."""
        if not self.ended or (reason == "stop" and self.completion.finish_reason == "length"):
            self.ended = True
            self.completion.finish_reason = reason


class Decoding:
    """A batch of samples in flight; they need not share their settings. Each `step` gives every one a token."""

    def __init__(self, module: Transformer, samples: Sequence[Sample]) -> None:
        self.live = list(samples)
        """Samples that still get tokens, in the order of the rows of the cache."""
        self.seconds: list[float] = []
        """Duration of each step; the first one reads the prompts."""
        self._module = module
        self._device = next(module.parameters()).device
        self._cache: KVCache | None = None
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._sampler = Sampler(
            [sample.sampling for sample in self.live],
            prompts=[sample.prompt for sample in self.live],
            streams=[sample.stream for sample in self.live],
            vocabulary=module.config.vocab_size,
            device=self._device,
        )

    @torch.no_grad()
    def step(self) -> list[Sample]:
        """Appends one token to each live sample and returns those samples; an empty list when none is left.

        Between two steps the caller may `end` any sample, for instance because of a stop string.
        """
        begin = time.perf_counter()
        self._drop_ended()
        if not self.live:
            return []
        logits = self._read_prompts() if self._cache is None else self._read_tokens(self._cache)
        choice = self._sampler.choose(logits)
        self._tokens = choice.tokens
        logprobs = torch.stack([choice.logprobs, choice.sampling_logprobs]).tolist()
        for sample, token, *probabilities in zip(self.live, choice.tokens.tolist(), *logprobs, strict=True):
            self._append(sample, token, *probabilities)
        self.seconds.append(time.perf_counter() - begin)
        return self.live

    def _append(self, sample: Sample, token: int, logprob: float, sampling_logprob: float) -> None:
        if math.isnan(logprob):
            raise ModelError(
                "the model's scores are not numbers (NaN), so no token can be chosen",
                value=f"after {len(sample.prompt) + len(sample.completion.ids)} tokens",
                fix="the weights are damaged or training has diverged: use an earlier checkpoint, or dtype float32",
            )
        completion = sample.completion
        completion.ids.append(token)
        completion.logprobs.append(logprob)
        completion.sampling_logprobs.append(sampling_logprob)
        if token in sample.eos_ids:
            sample.end("eos")
        elif len(completion.ids) == sample.max_new_tokens:
            sample.end("length")

    def _drop_ended(self) -> None:
        rows = [row for row, sample in enumerate(self.live) if not sample.ended]
        if len(rows) == len(self.live):
            return
        if rows and self._cache is not None:
            rows = _compact(self._cache, rows)
            self._tokens = self._tokens[rows]
        if rows:
            self._sampler.select(rows)
        self.live = [self.live[row] for row in rows]

    def _read_prompts(self) -> Tensor:
        """Runs each distinct prompt once and copies its cache row for all of its samples; logits [S, V]."""
        prompts = [tuple(sample.prompt) for sample in self.live]
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        self._cache = KVCache(
            self._module.config,
            rows=len(places),
            max_length=max(len(sample.prompt) + sample.max_new_tokens for sample in self.live) - 1,
            dtype=_compute_dtype(self._module, self._device),
            device=self._device,
        )
        tokens = torch.tensor([token for prompt in places for token in prompt], device=self._device)
        logits = self._last_logits(tokens, Layout(tuple(len(prompt) for prompt in places)), self._cache)
        if len(places) == len(prompts):
            return logits
        rows = [places[prompt] for prompt in prompts]
        self._cache.select(rows)
        return logits[rows]

    def _read_tokens(self, cache: KVCache) -> Tensor:
        """Runs the token that each live sample got last; logits [S, V]."""
        return self._last_logits(self._tokens, Layout((1,) * len(self.live)), cache)

    def _last_logits(self, tokens: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Logits [S, V] after the last token of each sequence; those of other positions are never computed."""
        ends: Tensor | None = None
        if layout.tokens != layout.sequences:
            ends = torch.tensor([end - 1 for _, end in layout.spans()], device=self._device)

        def then(hidden: Tensor, head: nn.Module) -> Tensor:
            logits: Tensor = head(hidden if ends is None else hidden[ends])
            return logits

        result: Tensor = self._module(tokens, layout, then=then, cache=cache)
        return result


def generate_ids(
    module: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seeds: int | Sequence[int] = 0,
    eos_ids: Collection[int] | None = None,
    max_rows: int = 64,
    on_token: Callable[[int, Sample], bool | None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Continues prompts of token ids; works on any `Transformer`, also on one in training.

    module:      in eval mode meanwhile and afterwards as it was; no gradients.
    prompts:     B lists of ids; for several samples of a prompt name it several times, it is computed once.
    sampling:    see `Sampling`; default: the model's own distribution.
    seeds:       one for each prompt, or one for all. A sample depends on its seed and prompt, not on its company.
    eos_ids:     tokens that end a sample; default: those of the model's configuration. Empty: none does.
    max_rows:    samples in flight at once; more are worked off one batch after the other.
    on_token:    called with (index, sample) after each token; returns True to end that sample.
    should_stop: asked before each step; True ends everything as it stands ("cancelled").

    Returns B completions. Raises TriviumError if a prompt is empty or leaves no room for `max_new_tokens`.
    """
    check_number("max_new_tokens", max_new_tokens, at_least=1, whole=True, fix="use a whole number from 1 up")
    settings = sampling or Sampling()
    ends = module.config.eos_ids if eos_ids is None else eos_ids
    each = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    samples = []
    for number, (prompt, seed) in enumerate(zip(prompts, each, strict=True)):
        check_seed(seed)
        check_room(prompt, max_new_tokens, context=module.config.max_positions, where=f"prompt {number}")
        samples.append(Sample(prompt, settings, max_new_tokens, random_stream(seed, prompt), ends))
    places = {id(sample): place for place, sample in enumerate(samples)}
    for decoding in decode(module, samples, max_rows=max_rows, should_stop=should_stop):
        for sample in decoding.live:
            if on_token is not None and on_token(places[id(sample)], sample):
                sample.end("stop")
    return [sample.completion for sample in samples]


def decode(
    module: Transformer,
    samples: Sequence[Sample],
    *,
    max_rows: int = 64,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Decoding]:
    """Runs all samples to their end, batch after batch; yields after each step the batch, whose samples have grown.

    The module is in eval mode until the iterator is finished or closed.
    """
    with evaluating(module):
        for batch in _batches(samples, max_rows):
            decoding = Decoding(module, batch)
            while True:
                if should_stop is not None and should_stop():
                    for sample in samples:
                        sample.end("cancelled")
                    return
                if not decoding.step():
                    break
                yield decoding


def check_room(prompt: Sequence[int], max_new_tokens: int, *, context: int, where: str) -> None:
    """Raises unless the prompt has a token and leaves room for the answer; nothing is ever cut off silently."""
    if not prompt:
        raise TriviumError("the prompt holds no token", where=where, fix="give the model something to continue")
    if len(prompt) >= context:
        raise TriviumError(
            "the prompt is too long for the model",
            where=where,
            value=f"{len(prompt)} tokens, but prompt and answer together may have {context}",
            fix=f"shorten the prompt to at most {context - 1} tokens, or use a model with a longer context",
        )
    if len(prompt) + max_new_tokens > context:
        raise TriviumError(
            "prompt and answer together are too long for the model",
            where=where,
            value=f"{len(prompt)} prompt tokens + max_new_tokens {max_new_tokens}, but together they may be {context}",
            fix=f"set max_new_tokens to at most {context - len(prompt)}, or shorten the prompt",
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule as it was, also one that was in eval mode all along."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _batches(samples: Sequence[Sample], max_rows: int) -> Iterator[list[Sample]]:
    """Runs of samples whose cache stays within `max_rows` rows and `_CACHE_TOKENS` tokens."""
    batch: list[Sample] = []
    longest = 0
    for sample in samples:
        length = len(sample.prompt) + sample.max_new_tokens
        longest = max(longest, length)
        if batch and (len(batch) == max_rows or (len(batch) + 1) * longest > _CACHE_TOKENS):
            yield batch
            batch, longest = [], length
        batch.append(sample)
    if batch:
        yield batch


def _compact(cache: KVCache, rows: Sequence[int]) -> list[int]:
    """Keeps only `rows` of the cache and returns their new order.

    Rows from the end move into the gaps, so one row is copied for each that leaves; `KVCache.select` would copy all.
    """
    count = len(rows)
    order = list(range(count))
    from_the_end = [row for row in rows if row >= count]
    for gap in sorted(set(order) - set(rows)):
        row = from_the_end.pop()
        length = cache.lengths[row]
        for tensor in (*cache.keys, *cache.values):
            tensor[gap, :, :length] = tensor[row, :, :length]
        order[gap] = row
    cache.keys = [tensor[:count] for tensor in cache.keys]
    cache.values = [tensor[:count] for tensor in cache.values]
    cache.lengths = [cache.lengths[row] for row in order]
    return order


def _compute_dtype(module: nn.Module, device: torch.device) -> torch.dtype:
    """The type keys and values come in: that of the weights, or of an autocast around the call."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(module.parameters()).dtype
