"""Guesses from the text change how often the model runs, and never the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.test_generation_engine import PROMPTS, tiny, tiny_seq2seq
from trivium.errors import TriviumError
from trivium.inference import engine
from trivium.inference.defaults import Defaults
from trivium.inference.engine import generate_ids
from trivium.inference.lookup import guess
from trivium.inference.request import Completion, Sampling
from trivium.inference.settings import settle
from trivium.models.transformer import Transformer

SETTINGS = {
    "greedy": Sampling(temperature=0),
    "drawn": Sampling(temperature=0.7),
    "filtered": Sampling(temperature=0.6, top_k=9, top_p=0.9),
    "penalised": Sampling(temperature=0, repetition_penalty=1.2),
    "constrained": Sampling(temperature=0.5, no_repeat_ngram_size=4, min_new_tokens=6),
}


def test_guesses_are_what_followed_before() -> None:
    assert guess([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert guess([1, 2, 3, 7, 2, 3, 5, 1, 2, 3], 1) == [7]  # three tokens alike go before two that are nearer
    assert guess([4, 2, 3, 7, 6, 2, 3, 5, 2, 3], 4) == [5, 2, 3]  # the latest place
    assert guess([1, 2, 3], 4) == guess([1, 2, 1, 2], 0) == guess([], 3) == guess([5, 1, 6, 1], 3) == []
    assert guess([5, 5, 5, 5], 3) == [5]


def counted(module: Transformer, found: list[int], **options: Any) -> list[Completion]:
    """The answers; appends the number of forward passes to `found`."""
    calls: list[int] = []
    hook = module.embed.register_forward_pre_hook(lambda *_: calls.append(1))
    answers = generate_ids(module, PROMPTS, max_new_tokens=30, seeds=4, **options)
    hook.remove()
    found.append(len(calls))
    return answers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "window", "t5"])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_the_answer_is_the_same_with_guesses(sampling: str, kind: str) -> None:
    module = tiny_seq2seq() if kind == "t5" else tiny(kind)
    calls: list[int] = []
    options = {"sampling": SETTINGS[sampling], "eos_ids": (3,)}
    plain = counted(module, calls, **options)
    for rows, lookup in ((64, 4), (3, 7)):
        guessed = counted(module, calls, **options, lookup=lookup, max_rows=rows)
        for one, other in zip(plain, guessed, strict=True):
            assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-4)


def test_right_guesses_save_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("llama")
    calls: list[int] = []
    plain = counted(module, calls, sampling=SETTINGS["greedy"], eos_ids=())
    texts = [[*prompt, *found.ids] for prompt, found in zip(PROMPTS, plain, strict=True)]

    def knowing(ids: Sequence[int], most: int) -> list[int]:
        whole = next(text for text in texts if text[: len(ids)] == list(ids))
        return whole[len(ids) : len(ids) + most]

    monkeypatch.setattr(engine, "guess", knowing)
    guessed = counted(module, calls, sampling=SETTINGS["greedy"], eos_ids=(), lookup=4)
    assert [found.ids for found in guessed] == [found.ids for found in plain]
    assert calls[0] == 30
    assert calls[1] <= 8


def test_each_token_is_seen_and_a_stop_between_guesses_holds() -> None:
    seen: list[tuple[int, int]] = []

    def watch(place: int, sample: engine.Sample) -> bool:
        seen.append((place, sample.completion.ids[-1]))
        return place == 1 and len(sample.completion.ids) == 5

    found = generate_ids(
        tiny("llama"), PROMPTS, max_new_tokens=30, sampling=SETTINGS["greedy"], eos_ids=(), lookup=5, on_token=watch
    )
    assert len(found[1].ids) == 5
    for place, completion in enumerate(found):
        assert [token for at, token in seen if at == place] == completion.ids


def test_beam_search_refuses_it() -> None:
    with pytest.raises(TriviumError, match="beam search guesses no tokens"):
        settle({"num_beams": 2, "lookup": 3}, Defaults(), n=1, answers=False)
