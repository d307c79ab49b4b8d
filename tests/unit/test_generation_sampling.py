"""The next token: filters, their order, the draw, and settings that differ from row to row."""

from __future__ import annotations

import math

import pytest
import torch

from trivium.errors import TriviumError
from trivium.inference.request import Sampling, random_stream
from trivium.inference.sampling import Sampler, Scores, build_steps, draw

CPU = torch.device("cpu")
OFF = -math.inf


def filtered(scores: list[list[float]], *samplings: Sampling) -> list[list[float]]:
    result = Scores(torch.tensor(scores))
    for step in build_steps(samplings, device=CPU):
        result = step(result)
    return result.values.tolist()


def sampler(*samplings: Sampling, prompts: list[list[int]] | None = None, vocabulary: int = 50) -> Sampler:
    prompts = prompts or [[0]] * len(samplings)
    streams = [random_stream(0, prompt, number) for number, prompt in enumerate(prompts)]
    return Sampler(samplings, prompts=prompts, streams=streams, vocabulary=vocabulary, device=CPU)


def test_top_k_keeps_the_k_best_and_ties_at_the_edge() -> None:
    assert filtered([[1.0, 4.0, 3.0, 2.0]], Sampling(top_k=2)) == [[OFF, 4.0, 3.0, OFF]]
    assert filtered([[3.0, 4.0, 3.0, 2.0]], Sampling(top_k=2)) == [[3.0, 4.0, 3.0, OFF]]
    assert filtered([[1.0, 2.0]], Sampling(top_k=100)) == [[1.0, 2.0]]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    scores = [[math.log(value) for value in (0.1, 0.5, 0.25, 0.15)]]
    kept = [value > OFF for value in filtered(scores, Sampling(top_p=0.6))[0]]
    assert kept == [False, True, True, False]
    kept = [value > OFF for value in filtered(scores, Sampling(top_p=0.01))[0]]
    assert kept == [False, True, False, False]


def test_min_p_is_relative_to_the_best() -> None:
    scores = [[math.log(value) for value in (0.1, 0.5, 0.26, 0.14)]]
    assert [value > OFF for value in filtered(scores, Sampling(min_p=0.5))[0]] == [False, True, True, False]


def test_temperature_comes_before_top_p() -> None:
    scores = [[math.log(value) for value in (0.4, 0.3, 0.2, 0.1)]]
    sharp, flat = Sampling(temperature=0.2, top_p=0.7), Sampling(temperature=5.0, top_p=0.7)
    assert sum(value > OFF for value in filtered(scores, sharp)[0]) == 1
    assert sum(value > OFF for value in filtered(scores, flat)[0]) == 3


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 9.0, -3.0, 8.0]])
    choice = sampler(Sampling(temperature=temperature, top_k=3, top_p=0.9, min_p=0.01), vocabulary=4).choose(logits)
    assert choice.tokens.tolist() == [1]
    assert choice.sampling_logprobs.tolist() == [0.0]


def test_each_row_has_its_own_settings() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 200)
    samplings = [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=7),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1),
        Sampling(temperature=2.0, top_k=50, top_p=0.9, min_p=0.02),
    ]
    together = torch.tensor(filtered(scores.tolist(), *samplings)).softmax(-1)
    for row, sampling in enumerate(samplings):
        alone = torch.tensor(filtered(scores[row : row + 1].tolist(), sampling)[0]).softmax(-1)
        assert torch.allclose(together[row], alone, atol=1e-6)
        assert torch.equal(together[row] > 0, alone > 0)


def test_the_draw_follows_the_distribution() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 40) * 2
    scores[0, [0, 7, 39]] = OFF
    count = 20_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs = draw(scores.expand(count, -1), numbers)
    expected = scores.softmax(-1)[0]
    frequencies = torch.bincount(tokens, minlength=40) / count
    assert (frequencies - expected).abs().max() <= 1.01 / count
    assert frequencies[[0, 7, 39]].sum() == 0
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-5)


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_interval_never_draw_an_excluded_token(number: float) -> None:
    scores = torch.tensor([[OFF, 0.3, 0.1, OFF]])
    token, _ = draw(scores, torch.tensor([number], dtype=torch.float64))
    assert token.item() == (1 if number == 0 else 2)


def test_greedy_takes_the_best_and_knows_the_models_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    choice = sampler(Sampling(temperature=0), vocabulary=3).choose(logits)
    assert choice.tokens.tolist() == [1]
    assert choice.logprobs[0].item() == pytest.approx(logits.log_softmax(-1)[0, 1].item())
    assert choice.sampling_logprobs.tolist() == [0.0]


def test_logprobs_are_the_models_own_whatever_it_was_sampled_with() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50)
    choice = sampler(Sampling(temperature=0.3, top_k=5, repetition_penalty=2.0), Sampling()).choose(logits)
    plain = logits.log_softmax(-1).gather(1, choice.tokens[:, None])[:, 0]
    assert torch.allclose(choice.logprobs, plain)
    assert choice.sampling_logprobs[0] > plain[0]
    assert choice.sampling_logprobs[1].item() == pytest.approx(plain[1].item(), abs=1e-5)


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50)
    greedy, free = Sampling(temperature=0), Sampling(temperature=3.0)
    mixed = sampler(greedy, free).choose(logits)
    assert mixed.tokens[0] == logits[0].argmax()
    assert mixed.tokens[1] == sampler(free, free).choose(logits).tokens[1]
    assert mixed.sampling_logprobs[0] == 0


def test_repetition_penalty_covers_the_prompt_and_the_answer() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.9, -1.0]])
    chooser = sampler(Sampling(temperature=0, repetition_penalty=2.0), prompts=[[0, 0]], vocabulary=4)
    assert [chooser.choose(logits).tokens.item() for _ in range(3)] == [1, 2, 0]


def test_a_selected_row_goes_on_as_if_alone() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(3, 50) for _ in range(4)]
    samplings = [Sampling(top_k=9), Sampling(top_p=0.7, repetition_penalty=1.3), Sampling(min_p=0.1, temperature=0.7)]
    whole, part = sampler(*samplings), sampler(*samplings)
    expected = [whole.choose(each).tokens[[2, 1]].tolist() for each in logits]
    seen = [part.choose(logits[0]).tokens[[2, 1]].tolist()]
    part.select([2, 1])
    seen += [part.choose(each[[2, 1]]).tokens.tolist() for each in logits[1:]]
    assert seen == expected


def test_random_numbers_depend_on_seed_prompt_and_sample() -> None:
    def first(*arguments: object) -> float:
        return random_stream(*arguments).random()  # type: ignore[arg-type]

    assert first(1, [2, 3], 0) == first(1, [2, 3], 0)
    assert len({first(1, [2, 3], 0), first(2, [2, 3], 0), first(1, [3, 2], 0), first(1, [2, 3], 1)}) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "warm"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", True),
    ],
)
def test_a_wrong_setting_is_named_with_its_fix(name: str, value: object) -> None:
    with pytest.raises(TriviumError) as error:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert error.value.where == name
    assert error.value.fix
    assert len(str(error.value).splitlines()) <= 5
