"""The decode loop: prompts of any lengths in one batch, a key/value cache, one token for each sample per step.

There is no padding: the prompts are one ragged run of tokens, each starts at the left of its cache row, and a sample
that has ended leaves the batch to one that waits. Samples of one prompt share the computation of that prompt, and
prompts that begin alike share that of their beginning.

Shapes: S sequences in a forward pass, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout, Source
from trivium.errors import ModelError, TriviumError
from trivium.inference.constraints import Row, constrain, constrained
from trivium.inference.lookup import guess
from trivium.inference.request import Completion, FinishReason, Sampling, check_number, check_seed, random_stream
from trivium.inference.sampling import Sampler
from trivium.models.cache import KVCache
from trivium.models.config import ModelConfig
from trivium.models.fused import fused
from trivium.models.transformer import Transformer

_CACHE_TOKENS = 1 << 16
"""Most tokens the cache of one batch may hold; bounds its memory whatever is asked."""
_WORTH_SHARING = 16
"""Prompts that begin with as many equal tokens read these once."""
_READ_TOGETHER = 8
"""Prompts are read when an eighth of the batch is free: few at a time cost more."""


@dataclass(eq=False)
class Sample:
    """One answer in the making: `completion` grows with each step.

    prompt: what the answer continues; of an encoder-decoder what its decoder starts with, and `source` what its
            encoder reads.
    adapter: the entry of the model's shelf that it is made under, empty for none.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    stream: Random
    eos_ids: Collection[int] = ()
    source: Sequence[int] = ()
    adapter: str = ""
    completion: Completion = field(default_factory=Completion)
    ended: bool = False
    ahead: deque[tuple[int, float, float]] = field(default_factory=deque)
    """Tokens that are drawn already, each with its two log-probabilities, and not yet part of the completion."""

    @property
    def size(self) -> int:
        """Most tokens that its row of the cache will hold."""
        return len(self.source) + len(self.prompt) + self.max_new_tokens

    @property
    def drawn(self) -> list[int]:
        """The tokens of the answer, with those ahead."""
        return [*self.completion.ids, *(token for token, _, _ in self.ahead)]

    def end(self, reason: FinishReason) -> None:
        """Ends the sample: it gets no further token. The first reason stays, but a stop string goes before length."""
        if not self.ended or (reason == "stop" and self.completion.finish_reason == "length"):
            self.ended = True
            self.completion.finish_reason = reason


class CachedReader:
    """A model that reads its prompts once, and then one token of each row after the other.

    module:  a decoder or an encoder-decoder. prompts, sources: [(ids, ids of the source or none)], one for each row.
    room:    most tokens that a row will hold, without virtual ones.
    adapters: for each row the entry of the model's shelf that it is under, empty for none.
    """

    def __init__(
        self,
        module: Transformer,
        prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        room: int,
        adapters: Sequence[str] = (),
    ) -> None:
        self._module, self._prompts = module, prompts
        self._adapters = list(adapters) or [""] * len(prompts)
        self.device = next(module.parameters()).device
        dtype = _compute_dtype(module, self.device)
        longest = room + self._virtual()
        self._cache = KVCache(
            module.config,
            rows=len(prompts),
            max_length=longest,
            dtype=dtype,
            device=self.device,
            heads=module.key_heads,
        )

    def begin(self) -> Tensor:
        """Logits [N, V] after the prompts."""
        tokens, layout = _flat([prompt for prompt, _ in self._prompts], self.device)
        source = None
        if self._module.config.kind == "encoder_decoder":
            source = Source(*_flat([source for _, source in self._prompts], self.device))
        return self._last_logits(tokens, layout, source)

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after one more token [R] of each row."""
        return self._last_logits(tokens, Layout((1,) * len(tokens)), None)

    def read_several(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits [T, V] after each of some more tokens of each row."""
        flat, layout = _flat(tokens, self.device)
        return self._logits(flat, layout, None, None)

    def read_rests(self, rests: Sequence[Sequence[int]]) -> Tensor:
        """Logits [N, V] after the rest of each prompt, whose beginning is read already."""
        return self._last_logits(*_flat(rests, self.device), None)

    def forget(self, counts: Sequence[int]) -> None:
        """Takes the last so many tokens of each row back."""
        for row, count in enumerate(counts):
            self._cache.truncate(row, self._cache.lengths[row] - count)

    def follow(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits [R, V] after row `parents[r]` was continued by `tokens[r]`."""
        self.select(parents)
        return self.read(torch.tensor(tokens, device=self.device))

    def select(self, parents: Sequence[int]) -> None:
        """Row r becomes what row `parents[r]` was."""
        self._cache.select(parents)
        self._adapters = [self._adapters[parent] for parent in parents]

    def join(self, other: CachedReader, *, room: int) -> None:
        """Takes over the rows of another reader of the same model; `room`: as for both of them together."""
        self._adapters += other._adapters
        self._cache.join(other._cache, room=room + self._virtual())

    def _virtual(self) -> int:
        """Most virtual tokens that a row begins with."""
        return max(self._module.virtual_tokens(adapter)[0] for adapter in {*self._adapters, ""})

    def _last_logits(self, tokens: Tensor, layout: Layout, source: Source | None) -> Tensor:
        """Logits [S, V] after the last token of each sequence; those of other positions are never computed."""
        ends: Tensor | None = None
        if layout.tokens != layout.sequences:
            ends = torch.tensor([end - 1 for _, end in layout.spans()], device=self.device)
        return self._logits(tokens, layout, source, ends)

    def _logits(self, tokens: Tensor, layout: Layout, source: Source | None, ends: Tensor | None) -> Tensor:
        """Logits after the tokens `ends`, None for all of them."""

        def then(hidden: Tensor, head: nn.Module) -> Tensor:
            logits: Tensor = head(hidden if ends is None else hidden[ends])
            return logits

        adapters = self._adapters if any(self._adapters) else None
        result: Tensor = self._module(tokens, layout, then=then, cache=self._cache, source=source, adapters=adapters)
        return result


class Decoding:
    """Samples in flight; they need not share their settings. Each `step` gives every one in the batch a token.

    A sample that has ended leaves the batch, and those that wait take its place.
    """

    def __init__(
        self, module: Transformer, samples: Sequence[Sample], *, max_rows: int = 1 << 30, lookup: int = 0
    ) -> None:
        """lookup: most tokens that are guessed from the text at a time (`trivium.inference.lookup`)."""
        self.live: list[Sample] = []
        """Samples that get tokens, in the order of the rows of the cache."""
        self.grown: list[Sample] = []
        """Those of them that got one in the latest step: all, but for guesses that were right."""
        self.seconds: list[float] = []
        """Duration of each step; the first one reads prompts."""
        self._waiting = deque(samples)
        self._module, self._max_rows, self._lookup = module, max_rows, lookup
        self._device = next(module.parameters()).device
        self._reader: CachedReader | None = None
        self._shared: tuple[tuple[int, ...], CachedReader] | None = None
        """What the prompts read so far begin with."""
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._constrained = any(constrained(sample.sampling) for sample in samples)
        self._sampler = self._make_sampler(self.live)

    @torch.no_grad()
    def step(self) -> list[Sample]:
        """Appends one token to each live sample and returns those samples; an empty list when none is left.

        Tokens that were guessed right are appended first, one in a step, while other samples wait.
        Between two steps the caller may `end` any sample, for instance because of a stop string.
        """
        begin = time.perf_counter()
        self._drop_ended()
        if not any(sample.ahead for sample in self.live):
            self._draw()
        self.grown = [sample for sample in self.live if sample.ahead]
        for sample in self.grown:
            self._append(sample, *sample.ahead.popleft())
        if self.grown:
            self.seconds.append(time.perf_counter() - begin)
        return self.grown

    def _draw(self) -> None:
        """Draws at least one token for each live sample, and for those that join them."""
        joining = self._admit()
        guesses = [self._guess(sample) for sample in self.live]
        parts, last = [], []
        if self.live and self._reader is not None:
            if any(guesses):
                read = [[token, *more] for token, more in zip(self._tokens.tolist(), guesses, strict=True)]
                parts.append(self._reader.read_several(read))
                last = Layout(tuple(map(len, read))).starts()
            else:
                parts.append(self._reader.read(self._tokens))
                last = list(range(len(self.live)))
        if joining:
            last += [sum(map(len, parts)) + row for row in range(len(joining))]
            parts.append(self._read_prompts(joining))
            self.live, guesses = [*self.live, *joining], [*guesses, *([] for _ in joining)]
            self._sampler = self._make_sampler(self.live)
        if not self.live:
            return
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        first = logits if len(logits) == len(last) else logits[last]
        self._tokens = self._choose(self._sampler, self.live, first)
        if any(guesses):
            self._check_guesses(guesses, logits, last)

    def _guess(self, sample: Sample) -> list[int]:
        left = sample.max_new_tokens - len(sample.completion.ids) - 1
        return guess([*sample.prompt, *sample.completion.ids], min(self._lookup, left)) if self._lookup else []

    def _check_guesses(self, guesses: Sequence[Sequence[int]], logits: Tensor, first: Sequence[int]) -> None:
        """Goes on drawing where the token was the one that was guessed; takes back what was read in vain."""
        assert self._reader is not None
        right = [0] * len(self.live)
        rows = list(range(len(self.live)))
        while rows := [
            row
            for row in rows
            if right[row] < len(guesses[row])
            and self.live[row].drawn[-1] == guesses[row][right[row]]
            and guesses[row][right[row]] not in self.live[row].eos_ids
        ]:
            for row in rows:
                right[row] += 1
            samples = [self.live[row] for row in rows]
            places = [first[row] + right[row] for row in rows]
            self._tokens[rows] = self._choose(self._make_sampler(samples), samples, logits[places])
        self._reader.forget([len(guessed) - count for guessed, count in zip(guesses, right, strict=True)])
        if any(sample.sampling.repetition_penalty != 1 for sample in self.live):
            self._sampler = self._make_sampler(self.live)  # it has to know all that was drawn

    def _choose(self, sampler: Sampler, samples: Sequence[Sample], logits: Tensor) -> Tensor:
        """[B] the next token of each of the samples, which go ahead."""
        choice = sampler.choose(logits, allowed=self._allowed(logits, samples))
        # All at once, since each transfer waits for the device; a token as float32 is exact up to 2^24.
        made = torch.stack([choice.tokens.float(), choice.logprobs, choice.sampling_logprobs]).tolist()
        for sample, token, logprob, other in zip(samples, *made, strict=True):
            sample.ahead.append((int(token), logprob, other))
        return choice.tokens

    def _make_sampler(self, samples: Sequence[Sample]) -> Sampler:
        return Sampler(
            [sample.sampling for sample in samples],
            prompts=[[*sample.prompt, *sample.drawn] for sample in samples],
            streams=[sample.stream for sample in samples],
            vocabulary=self._module.config.vocab_size,
            device=self._device,
        )

    def _admit(self) -> list[Sample]:
        """Waiting samples for which there is room, once there is room for enough of them to be read together."""
        free = self._max_rows - len(self.live)
        if self.live and free < max(1, self._max_rows // _READ_TOGETHER):
            return []
        joining: list[Sample] = []
        longest = max((sample.size for sample in self.live), default=0)
        while self._waiting and len(joining) < free:
            if self._waiting[0].ended:
                self._waiting.popleft()
                continue
            longest, rows = max(longest, self._waiting[0].size), len(self.live) + len(joining)
            if rows and (rows + 1) * longest > _CACHE_TOKENS:
                break
            joining.append(self._waiting.popleft())
        return joining

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

    def _allowed(self, logits: Tensor, samples: Sequence[Sample]) -> Tensor | None:
        """The scores without the tokens that may not come next; None if all may."""
        if not self._constrained:
            return None
        rows = (
            Row(
                sample.sampling,
                sample.prompt,
                sample.drawn,
                sample.max_new_tokens,
                sample.eos_ids,
                opens=self._module.config.kind == "encoder_decoder",
            )
            for sample in samples
        )
        return constrain(logits, rows)

    def _drop_ended(self) -> None:
        rows = [row for row, sample in enumerate(self.live) if not sample.ended]
        if len(rows) == len(self.live):
            return
        if self._reader is not None:
            rows = _filled(rows)
            self._reader.select(rows)
            self._tokens = self._tokens[rows]
        if rows:
            self._sampler.select(rows)
        self.live = [self.live[row] for row in rows]

    def _read_prompts(self, joining: Sequence[Sample]) -> Tensor:
        """Runs each distinct prompt once and copies its cache row for all of its samples; logits [S, V]."""
        prompts = [(tuple(sample.prompt), tuple(sample.source), sample.adapter) for sample in joining]
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        room = max(len(sample.prompt) + sample.max_new_tokens for sample in [*self.live, *joining]) - 1
        adapters = [adapter for _, _, adapter in places]
        own = room if self._reader is None else max(len(prompt) for prompt, _, _ in places)
        beginning = self._beginning([prompt for prompt, _, _ in places]) if self._can_share(adapters) else ()
        if beginning:
            reader = self._begun(beginning, len(places), own)
            logits = reader.read_rests([prompt[len(beginning) :] for prompt, _, _ in places])
        else:
            reader = CachedReader(
                self._module, [(prompt, source) for prompt, source, _ in places], room=own, adapters=adapters
            )
            logits = reader.begin()
        if len(places) < len(prompts):
            rows = [places[prompt] for prompt in prompts]
            reader.select(rows)
            logits = logits[rows]
        if self._reader is None:
            self._reader = reader
        else:
            self._reader.join(reader, room=room)
        return logits

    def _can_share(self, adapters: Sequence[str]) -> bool:
        """Whether two prompts that begin alike see the same there."""
        return self._module.config.kind == "decoder" and not any(adapters) and not self._module.prompts

    def _beginning(self, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """What all prompts begin with, and have read before or read now for all of them; nothing where it is short."""
        longest = min(map(len, prompts)) - 1
        if self._shared is not None:
            common = _common([*prompts, self._shared[0]])[:longest]
            if len(common) >= _WORTH_SHARING:
                return common
            self._shared = None
        common = _common(prompts)[:longest]
        return common if len(prompts) > 1 and len(common) >= _WORTH_SHARING else ()

    def _begun(self, beginning: tuple[int, ...], rows: int, room: int) -> CachedReader:
        """A reader whose rows have all read `beginning`, which is computed once for all that ever join."""
        if self._shared is None or self._shared[0][: len(beginning)] != beginning:
            first = CachedReader(self._module, [(beginning, ())], room=len(beginning))
            first.begin()
            self._shared = beginning, first
        reader = CachedReader(self._module, [], room=room)
        reader.join(self._shared[1], room=max(room, len(self._shared[0])))
        reader.select([0] * rows)
        reader.forget([len(self._shared[0]) - len(beginning)] * rows)
        return reader


def generate_ids(
    module: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    prefix: Sequence[int] = (),
    seeds: int | Sequence[int] = 0,
    eos_ids: Collection[int] | None = None,
    max_rows: int = 64,
    lookup: int = 0,
    on_token: Callable[[int, Sample], bool | None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Continues prompts of token ids; works on any decoder or encoder-decoder, also on one in training.

    module:      in eval mode meanwhile and afterwards as it was; no gradients.
    prompts:     B lists of ids; for several samples of a prompt name it several times, it is computed once. For an
                 encoder-decoder they are the sources.
    prefix:      what the answers of an encoder-decoder begin with; it is not part of them.
    sampling:    see `Sampling`; default: the model's own distribution.
    seeds:       one for each prompt, or one for all. A sample depends on its seed and prompt, not on its company.
    eos_ids:     tokens that end a sample; default: those of the model's configuration. Empty: none does.
    max_rows:    samples in flight at once; the others wait until one of these ends.
    lookup:      most tokens guessed from the text at a time, which changes the time and not the answer; 0 for none.
    on_token:    called with (index, sample) after each token; returns True to end that sample.
    should_stop: asked before each step; True ends everything as it stands ("cancelled").

    Returns B completions. Raises TriviumError if a prompt is empty or leaves no room for `max_new_tokens`.
    """
    check_number("max_new_tokens", max_new_tokens, at_least=1, whole=True, fix="use a whole number from 1 up")
    settings = sampling or Sampling()
    ends = module.config.eos_ids if eos_ids is None else eos_ids
    each = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    samples = []
    for number, (ids, seed) in enumerate(zip(prompts, each, strict=True)):
        check_seed(seed)
        prompt, source = opening(module, ids, prefix, where=f"prompt {number}")
        check_room(prompt, max_new_tokens, context=context_length(module), where=f"prompt {number}")
        stream = random_stream(seed, [*source, *prompt])
        samples.append(Sample(prompt, settings, max_new_tokens, stream, ends, source))
    places = {id(sample): place for place, sample in enumerate(samples)}
    for decoding in decode(module, samples, max_rows=max_rows, lookup=lookup, should_stop=should_stop):
        for sample in decoding.grown:
            if on_token is not None and on_token(places[id(sample)], sample):
                sample.end("stop")
    return [sample.completion for sample in samples]


def decode(
    module: Transformer,
    samples: Sequence[Sample],
    *,
    max_rows: int = 64,
    lookup: int = 0,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Decoding]:
    """Runs all samples to their end, `max_rows` side by side; yields after each step, when samples have grown.

    The module is in eval mode until the iterator is finished or closed.
    """
    check_generates(module.config)
    with generating(module):
        decoding = Decoding(module, samples, max_rows=max_rows, lookup=lookup)
        while True:
            if should_stop is not None and should_stop():
                for sample in samples:
                    sample.end("cancelled")
                return
            if not decoding.step():
                break
            yield decoding


def opening(
    module: Transformer, ids: Sequence[int], prefix: Sequence[int] = (), *, where: str, adapter: str = ""
) -> tuple[list[int], list[int]]:
    """(what the decoder starts with, what the encoder reads) for a prompt; a decoder continues the prompt itself.

    prefix: tokens that the answer of an encoder-decoder begins with. Raises if the source is empty or too long.
    """
    config = module.config
    if config.kind != "encoder_decoder":
        if prefix:
            raise TriviumError("only encoder-decoders take a prefix", where="prefix", fix="put it at the prompt's end")
        return list(ids), []
    if config.start_id is None:
        raise ModelError(
            "the model does not say with which token its decoder starts",
            where="decoder_start_token_id",
            fix="set it in config.json",
        )
    context = context_length(module, source=True, adapter=adapter)
    if not ids or len(ids) > context:
        raise TriviumError(
            "the source is too long for the model" if ids else "the source holds no token",
            where=where,
            value=f"{len(ids)} tokens, the encoder reads {context}" if ids else None,
            fix=f"shorten it to at most {context} tokens" if ids else "give the model something to read",
        )
    return [config.start_id, *prefix], list(ids)


def context_length(module: Transformer, *, source: bool = False, adapter: str = "") -> int:
    """Most tokens of a sequence, or of a source, beside the virtual ones; relative positions have no limit."""
    config = module.config
    return 1 << 30 if config.positions == "relative" else config.max_positions - module.virtual_tokens(adapter)[source]


def check_generates(config: ModelConfig) -> None:
    """Raises if the model cannot write text."""
    if config.kind == "encoder":
        raise ModelError(
            "an encoder reads text and cannot write it",
            value=f"{config.family} with a head of the kind {config.head}",
            fix="use a decoder or an encoder-decoder; an encoder fills gaps (`fill`) and compares texts (`embed`)",
        )
    if config.head != "language":
        raise ModelError(
            "the model has no language-model head, so it cannot write text",
            value=f"{config.family} with a head of the kind {config.head}",
            fix="use the folder of the model before it was given this head",
        )


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


@contextmanager
def generating(module: Transformer) -> Iterator[None]:
    """Eval mode inside, with fused blocks; those of a model in training do not outlive it, as its weights change."""
    keep = not module.training
    with evaluating(module), fused(module, keep=keep):
        yield


class _Sized(Protocol):
    """What decides how much of the cache a sample takes."""

    prompt: Sequence[int]
    source: Sequence[int]
    max_new_tokens: int


Sized = TypeVar("Sized", bound=_Sized)


def batches(samples: Sequence[Sized], max_rows: int, *, width: int = 1) -> Iterator[list[Sized]]:
    """Runs of samples of `width` rows each whose cache stays within `max_rows` rows and `_CACHE_TOKENS` tokens."""
    batch: list[Sized] = []
    longest = 0
    for sample in samples:
        length = len(sample.source) + len(sample.prompt) + sample.max_new_tokens
        longest = max(longest, length)
        rows = (len(batch) + 1) * width
        if batch and (rows > max_rows or rows * longest > _CACHE_TOKENS):
            yield batch
            batch, longest = [], length
        batch.append(sample)
    if batch:
        yield batch


def _common(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all rows begin with."""
    equal = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return tuple(tokens[0] for tokens in equal)


def _filled(rows: Sequence[int]) -> list[int]:
    """`rows` in another order, in which those from the end fill the gaps; so one row moves for each that leaves."""
    order = list(range(len(rows)))
    from_the_end = [row for row in rows if row >= len(rows)]
    for gap in sorted(set(order) - set(rows)):
        order[gap] = from_the_end.pop()
    return order


def _flat(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Layout]:
    """Rows of ids as one run of tokens."""
    return torch.tensor([token for row in rows for token in row], device=device), Layout(tuple(map(len, rows)))


def _compute_dtype(module: nn.Module, device: torch.device) -> torch.dtype:
    """The type keys and values come in: that of the weights, or of an autocast around the call."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(module.parameters()).dtype
