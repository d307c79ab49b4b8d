"""What is asked of a generation: the caller's settings, the model folder's where the caller is silent, and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from trivium.errors import TriviumError
from trivium.inference.defaults import Defaults
from trivium.inference.request import Beams, Sampling, check_number
from trivium.inference.stopping import check_stop

DEFAULT_NEW_TOKENS = 256
"""Longest answer where neither the caller nor the model folder names one."""

_CHANCE = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0}
"""Settings of chance, with the value that leaves nothing to it, or changes nothing."""
_FILTERS = ("top_k", "top_p", "min_p")
_BEAMS = tuple(field.name for field in fields(Beams))


@dataclass(frozen=True)
class Settings:
    """What all answers of one call share."""

    sampling: Sampling
    beams: Beams
    stop: tuple[str, ...]
    max_new_tokens: int | None
    """As the caller asked for it; None: what the folder says and the model has room for."""
    defaults: Defaults

    @property
    def searches(self) -> bool:
        """Whether beam search finds the answers."""
        return self.beams.num_beams > 1

    def length(self, prompt: int, *, room: int) -> int:
        """The longest answer to a prompt of so many tokens; `room`: most tokens of both together."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        limits = [room - prompt, self.defaults.max_new_tokens or DEFAULT_NEW_TOKENS]
        if self.defaults.max_new_tokens is None and (self.defaults.max_length or 0) > prompt:
            limits[1] = (self.defaults.max_length or 0) - prompt
        return min(limits)

    def sampling_for(self, prompt: int, length: int) -> Sampling:
        """The settings of one answer, with the folder's shortest length of prompt and answer together."""
        least = (self.defaults.min_length or 0) - prompt
        if least <= self.sampling.min_new_tokens:
            return self.sampling
        return replace(self.sampling, min_new_tokens=min(least, length))


def settle(options: Mapping[str, Any], defaults: Defaults, *, n: int, answers: bool) -> Settings:
    """The settings of one call; TriviumError if they do not go together.

    options: what the caller gave. n: answers to each prompt.
    answers: the model answers a source instead of continuing a text; without a word about chance it is then greedy.
    """
    check_number("n", n, at_least=1, whole=True, fix="use a whole number from 1 up")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("max_rows", "max_new_tokens"):
        check_number(name, given.get(name, 1), at_least=1, whole=True, fix="use a whole number from 1 up")
    check_number("lookup", given.get("lookup", 0), at_least=0, whole=True, fix="use 0 for none, or a whole number")
    chance = [name for name, neutral in _CHANCE.items() if given.get(name, neutral) != neutral]
    beams = _beams(given, defaults, chance)
    base = defaults.sampling
    if beams.num_beams > 1 or (answers and defaults.chance is None and not chance):
        base = replace(base, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    wanted = {name: value for name, value in given.items() if name in Sampling.__dataclass_fields__}
    sampling = replace(base, **wanted)
    stop = check_stop(given["stop"]) if "stop" in given else defaults.stop
    if beams.num_beams > 1:
        _check_search(beams, stop, n)
        if given.get("lookup"):
            raise TriviumError(
                "beam search guesses no tokens", where="lookup", value=given["lookup"], fix="leave lookup out"
            )
    elif sampling.greedy:
        _check_greedy(given, n)
    longest = given.get("max_new_tokens")
    if longest is not None and sampling.min_new_tokens > longest:
        raise TriviumError(
            "the shortest answer is longer than the longest one",
            where="min_new_tokens",
            value=sampling.min_new_tokens,
            fix=f"use at most max_new_tokens, {longest}",
        )
    return Settings(sampling, beams, stop, longest, defaults)


def _beams(given: Mapping[str, Any], defaults: Defaults, chance: Sequence[str]) -> Beams:
    """How to search; the folder's own beams give way to a caller who asks for chance."""
    if chance and given.get("num_beams", 1) > 1:
        raise TriviumError(
            "beam search leaves nothing to chance",
            where=chance[0],
            value=given[chance[0]],
            fix=f"leave {chance[0]} out, or num_beams",
        )
    base = Beams() if chance or given.get("num_beams") == 1 else defaults.beams
    beams = replace(base, **{name: given[name] for name in _BEAMS if name in given})
    if beams.num_beams == 1:
        for name in _BEAMS[1:]:
            if name in given:
                raise TriviumError(
                    f"{name} has no effect without beam search",
                    where=name,
                    value=given[name],
                    fix="set num_beams above 1 as well",
                )
    return beams


def _check_search(beams: Beams, stop: Sequence[str], n: int) -> None:
    if stop:
        raise TriviumError(
            "beam search knows no stop strings",
            where="stop",
            value=stop[0],
            fix="leave them out, or set num_beams to 1",
        )
    if n > beams.num_beams:
        raise TriviumError(
            "beam search finds as many answers as it has beams",
            where="n",
            value=n,
            fix=f"use at most num_beams, {beams.num_beams}",
        )


def _check_greedy(given: Mapping[str, Any], n: int) -> None:
    """Refuses what could have no effect without chance."""
    if n > 1:
        raise TriviumError(
            "several answers without chance would all be the same",
            where="n",
            value=n,
            fix="set temperature above 0, or num_beams above 1",
        )
    idle = [name for name in _FILTERS if name in given]
    if idle and "temperature" not in given:
        raise TriviumError(
            f"{idle[0]} has no effect: this model folder asks for greedy decoding",
            where=idle[0],
            value=given[idle[0]],
            fix="set temperature above 0 as well",
        )
