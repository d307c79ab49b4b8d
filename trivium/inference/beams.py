"""Beam search: several beginnings of an answer side by side, the best of which go on (Lowerre 1976).

The scores and the moment to stop are those of transformers, so that both find the same answers. With groups it is
diverse beam search (Vijayakumar et al. 2016, arXiv:1610.02424): the groups take their turn at each place, and a token
costs a later group `diversity_penalty` for each beam of an earlier one that has just chosen it.

Shapes: N searches (prompts), B beams of one search, G groups of B / G beams, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trivium.errors import TriviumError
from trivium.inference.constraints import Row, constrain, constrained
from trivium.inference.engine import (
    CachedReader,
    batches,
    check_generates,
    check_room,
    context_length,
    generating,
    opening,
)
from trivium.inference.request import Beams, Completion, FinishReason, Sampling, check_number
from trivium.models.transformer import Transformer

_DEAD = -math.inf


class Reader(Protocol):
    """A model that reads tokens row by row and says what may follow; the rows share nothing."""

    def begin(self) -> Tensor:
        """Logits [N, V] after the N prompts."""
        ...

    def follow(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits [R, V] after row `parents[r]` of the last call was continued by `tokens[r]`."""
        ...


class Beam(NamedTuple):
    """A beginning: its tokens, their log-probabilities under the model, and the sum that the search ranks by."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    row: int = 0
    """Number of the beam of the last step that it continues."""


class Ended(NamedTuple):
    """A beginning that is an answer now; `score` has the length penalty in it."""

    score: float
    beam: Beam
    reason: FinishReason


@dataclass(eq=False)
class Group:
    """The beams of one group, best first, and the best answers it has found."""

    running: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Ended] = field(default_factory=list)
    done: bool = False


class Candidate(NamedTuple):
    """A beam and a token that may follow it."""

    score: float
    beam: int
    token: int
    logprob: float


@dataclass(eq=False)
class Search:
    """The search for the answers to one prompt.

    prompt: what the decoder starts with. source: what the encoder of an encoder-decoder reads (`opens`: it is one).
    """

    prompt: Sequence[int]
    max_new_tokens: int
    beams: Beams
    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: Collection[int] = ()
    opens: bool = False
    source: Sequence[int] = ()
    adapter: str = ""
    groups: list[Group] = field(default_factory=list)
    length: int = 0
    """Tokens that each running beam has."""

    def __post_init__(self) -> None:
        self.groups = [Group() for _ in range(self.beams.num_beam_groups)]

    @property
    def done(self) -> bool:
        """Whether no group goes on."""
        return all(group.done for group in self.groups)

    @property
    def width(self) -> int:
        """Beams of one group."""
        return self.beams.num_beams // self.beams.num_beam_groups

    def advance(self, group: Group, candidates: Sequence[Candidate]) -> None:
        """Takes the best candidates of a step, best first: some end, the others go on as the group's beams."""
        length = self.length + 1
        running: list[Beam] = []
        before = group.running
        for rank, candidate in enumerate(candidates):
            if candidate.score == _DEAD:
                break
            parent = before[candidate.beam]
            beam = Beam(
                (*parent.ids, candidate.token),
                (*parent.logprobs, candidate.logprob),
                candidate.score,
                candidate.beam,
            )
            stopped = candidate.token in self.eos_ids
            if not stopped and length < self.max_new_tokens:
                running.append(beam)
            elif rank < self.width:  # the others stand by only to fill the beams up
                group.ended.append(
                    Ended(beam.score / length**self.beams.length_penalty, beam, "eos" if stopped else "length")
                )
        if not candidates or candidates[0].score == _DEAD:  # no token is allowed any more
            self._end(group, "length")
            return
        group.running = running[: self.width]
        group.ended = sorted(group.ended, key=lambda ended: -ended.score)[: self.width]
        group.done = not group.running or self._is_enough(group, length)

    def _is_enough(self, group: Group, length: int) -> bool:
        """Whether going on could not, or is unlikely to, find a better answer."""
        if len(group.ended) < self.width:
            return False
        if self.beams.early_stopping is True:
            return True
        penalty = self.beams.length_penalty
        longest = self.max_new_tokens if self.beams.early_stopping == "never" and penalty > 0 else length
        return bool(group.running[0].score / longest**penalty <= group.ended[-1].score)

    def stop(self) -> None:
        """Ends the search where it stands; unfinished beams become answers."""
        for group in self.groups:
            if not group.done:
                self._end(group, "cancelled")

    def _end(self, group: Group, reason: FinishReason) -> None:
        """The running beams become answers as they are."""
        penalty = max(self.length, 1) ** self.beams.length_penalty
        group.ended += [Ended(beam.score / penalty, beam, reason) for beam in group.running]
        group.running, group.done = [], True

    def answers(self, count: int) -> list[Completion]:
        """The best `count` answers of all groups, best first; fewer if fewer were found."""
        found = sorted((ended for group in self.groups for ended in group.ended), key=lambda ended: -ended.score)
        return [
            Completion(list(beam.ids), list(beam.logprobs), [0.0] * len(beam.ids), reason, score)
            for score, beam, reason in found[:count]
        ]

    def rows(self) -> Iterator[Beam]:
        """All beams, group by group; where a group has fewer than its width, a dead one in each free place."""
        for group in self.groups:
            running = [] if group.done else group.running
            yield from running
            yield from [Beam(score=_DEAD)] * (self.width - len(running))


def beam_ids(
    module: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: Beams,
    sampling: Sampling | None = None,
    prefix: Sequence[int] = (),
    eos_ids: Collection[int] | None = None,
    count: int = 1,
    max_rows: int = 64,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[Completion]]:
    """The best `count` answers to each prompt of token ids, best first; no chance plays a part.

    sampling: only its constraints and its repetition penalty count. The rest as in `generate_ids`.
    """
    check_number("max_new_tokens", max_new_tokens, at_least=1, whole=True, fix="use a whole number from 1 up")
    config, settings = module.config, sampling or Sampling()
    ends = config.eos_ids if eos_ids is None else eos_ids
    opens = config.kind == "encoder_decoder"
    searches = []
    for number, ids in enumerate(prompts):
        prompt, source = opening(module, ids, prefix, where=f"prompt {number}")
        check_room(prompt, max_new_tokens, context=context_length(module), where=f"prompt {number}")
        searches.append(Search(prompt, max_new_tokens, beams, settings, ends, opens, source))
    for _ in run(module, searches, max_rows=max_rows, should_stop=should_stop):
        pass
    return [each.answers(count) for each in searches]


def run(
    module: Transformer,
    searches: Sequence[Search],
    *,
    max_rows: int = 64,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Search]:
    """Runs searches with the same beams, batch after batch; yields each when it is done."""
    check_generates(module.config)
    with generating(module):
        for batch in batches(searches, max_rows, width=searches[0].beams.num_beams):
            room = max(len(each.prompt) + each.max_new_tokens for each in batch) - 1
            reader = CachedReader(
                module,
                [(each.prompt, each.source) for each in batch],
                room=room,
                adapters=[each.adapter for each in batch],
            )
            for live in search(batch, reader):
                if should_stop is not None and should_stop():
                    for each in searches:
                        each.stop()
                yield from (each for each in live if each.done)
            if should_stop is not None and should_stop():
                return


def search(searches: Sequence[Search], reader: Reader) -> Iterator[list[Search]]:
    """Runs searches with the same beams side by side; yields after each step those that went on.

    Every search is done when the iterator is exhausted; between two steps the caller may `stop` any.
    """
    live = list(searches)
    rows: list[tuple[int, int]] = []
    while live:
        parents, tokens = [parent for parent, _ in rows], [token for _, token in rows]
        with torch.no_grad():
            _step(live, reader.follow(parents, tokens) if rows else reader.begin())
        yield live
        rows = [row for number, each in enumerate(live) if not each.done for row in _next_rows(number, each)]
        live = [each for each in live if not each.done]


def _next_rows(number: int, each: Search) -> Iterator[tuple[int, int]]:
    """(row of the last call, token that follows it) for each beam of a search, which stood at place `number`."""
    for place, beam in enumerate(each.rows()):
        group = place // each.width * each.width
        # Before the first token there was one row for each search.
        parent = number if each.length == 1 else number * each.beams.num_beams + group + beam.row
        yield parent, beam.ids[-1] if beam.ids else 0


def _step(live: Sequence[Search], logits: Tensor) -> None:
    """One token for each beam of each search. logits: [N, V] before the first token, then [N * B, V]."""
    beams, width = live[0].beams, live[0].width
    if live[0].length == 0:
        logits = logits.repeat_interleave(beams.num_beams, dim=0)
    # Not logsumexp: that one is ten times slower where exp() gives denormal numbers.
    plain = logits.float().log_softmax(dim=-1)
    _check(plain)
    rows = [beam for each in live for beam in each.rows()]
    totals = _ranked(live, rows, plain) + torch.tensor([beam.score for beam in rows], device=plain.device)[:, None]
    vocabulary = plain.shape[1]
    shape = (len(live), beams.num_beam_groups, width, vocabulary)
    totals, plain = totals.view(shape), plain.view(shape)
    # Even if every beam could end in every way, enough candidates are left to go on with.
    kept = min(max(2, 1 + max(len(each.eos_ids) for each in live)) * width, width * vocabulary)
    for number in range(beams.num_beam_groups):
        scores = totals[:, number]
        if number:
            scores = scores - beams.diversity_penalty * _chosen(live, number, vocabulary, plain.device)[:, None]
        best = scores.flatten(1).topk(kept)
        known = plain[:, number].flatten(1).gather(1, best.indices)
        parts = zip(best.values.tolist(), best.indices.tolist(), known.tolist(), strict=True)
        for each, (values, places, logprobs) in zip(live, parts, strict=True):
            candidates = [
                Candidate(value, place // vocabulary, place % vocabulary, logprob)
                for value, place, logprob in zip(values, places, logprobs, strict=True)
            ]
            if not each.groups[number].done:
                each.advance(each.groups[number], candidates)
    for each in live:
        each.length += 1


def _ranked(live: Sequence[Search], rows: Sequence[Beam], plain: Tensor) -> Tensor:
    """[R, V] the log-probabilities as the search sees them: repetitions penalised, forbidden tokens out."""
    owners = [each for each in live for _ in range(each.beams.num_beams)]
    penalty = live[0].sampling.repetition_penalty
    scores = plain
    if penalty != 1:
        scores = scores.clone()
        for row, (each, beam) in enumerate(zip(owners, rows, strict=True)):
            seen = torch.tensor(sorted({*each.prompt, *beam.ids}), device=scores.device)
            scores[row, seen] *= penalty  # log-probabilities are negative
    if any(constrained(each.sampling) for each in live):
        states = (
            Row(each.sampling, each.prompt, beam.ids, each.max_new_tokens, each.eos_ids, each.opens)
            for each, beam in zip(owners, rows, strict=True)
        )
        scores = constrain(scores, states, forced_score=0.0)
    return scores


def _chosen(live: Sequence[Search], groups: int, vocabulary: int, device: torch.device) -> Tensor:
    """[N, V] how many beams of the first `groups` groups have just chosen each token."""
    counts = torch.zeros(len(live), vocabulary)
    for number, each in enumerate(live):
        for group in each.groups[:groups]:
            for beam in group.running:
                if len(beam.ids) > each.length:  # not a group that was done before this step
                    counts[number, beam.ids[-1]] += 1
    return counts.to(device)


def _check(logprobs: Tensor) -> None:
    if bool(logprobs.isnan().any()):
        raise TriviumError(
            "the model's scores are not numbers (NaN), so no token can be chosen",
            fix="the weights are damaged or training has diverged: use an earlier checkpoint, or dtype float32",
        )
