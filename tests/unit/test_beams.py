"""Beam search against a search written out for one prompt at a time, and against all answers there are."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trivium.errors import TriviumError
from trivium.inference.beams import Search, search
from trivium.inference.constraints import Row, constrain
from trivium.inference.request import Beams, Completion, Sampling

VOCABULARY, END = 7, 2


def logprobs_after(ids: Sequence[int]) -> list[float]:
    """A made-up language model: what follows depends on all tokens before."""
    seed = 0
    for token in ids:
        seed = (seed * 31 + token + 1) % 100003
    values = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 1.5
    return list(values.log_softmax(-1).tolist())


class Reader:
    """Reads rows of the made-up model."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.rows = [list(prompt) for prompt in prompts]

    def begin(self) -> Tensor:
        return torch.tensor([logprobs_after(row) for row in self.rows])

    def follow(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        self.rows = [[*self.rows[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        return self.begin()


def found(
    prompts: Sequence[Sequence[int]], beams: Beams, *, count: int = 1, length: int = 5, ends: Any = (END,), **more: Any
) -> list[list[Completion]]:
    searches = [Search(prompt, length, beams, Sampling(**more), ends) for prompt in prompts]
    for _ in search(searches, Reader(prompts)):
        pass
    return [each.answers(count) for each in searches]


PROMPTS = [[token, other] for token in range(4) for other in range(5)]


class Written(NamedTuple):
    score: float
    ids: tuple[int, ...]


def by_hand(prompt: Sequence[int], beams: Beams, *, length: int) -> list[Written]:
    """The same search the slow way: lists, sorting, one prompt."""
    groups, width = beams.num_beam_groups, beams.num_beams // beams.num_beam_groups
    running = [[Written(0.0, ())] for _ in range(groups)]
    ended: list[list[Written]] = [[] for _ in range(groups)]
    done = [False] * groups
    for size in range(1, length + 1):
        chosen: Counter[int] = Counter()
        for group in range(groups):
            if done[group]:
                continue
            candidates = [
                Written(beam.score + logprob - beams.diversity_penalty * chosen[token], (*beam.ids, token))
                for beam in running[group]
                for token, logprob in enumerate(logprobs_after([*prompt, *beam.ids]))
            ]
            candidates = sorted(candidates, key=lambda each: -each.score)[: 2 * width]
            last = size == length
            ended[group] += [
                Written(each.score / size**beams.length_penalty, each.ids)
                for each in candidates[:width]
                if last or each.ids[-1] == END
            ]
            ended[group] = sorted(ended[group], key=lambda each: -each.score)[:width]
            running[group] = [] if last else [each for each in candidates if each.ids[-1] != END][:width]
            chosen.update(each.ids[-1] for each in running[group])
            full = len(ended[group]) == width
            best = running[group][0].score / size**beams.length_penalty if running[group] else -math.inf
            done[group] = full and (beams.early_stopping is True or best <= ended[group][-1].score)
    return sorted((each for group in ended for each in group), key=lambda each: -each.score)


@pytest.mark.parametrize(
    "beams",
    [
        Beams(num_beams=3),
        Beams(num_beams=4, length_penalty=2.0),
        Beams(num_beams=4, length_penalty=-0.5),
        Beams(num_beams=2, early_stopping=True),
        Beams(num_beams=4, num_beam_groups=2, diversity_penalty=0.7),
        Beams(num_beams=6, num_beam_groups=3, diversity_penalty=2.0, length_penalty=0.5),
        Beams(num_beams=3, num_beam_groups=3, diversity_penalty=1.5, early_stopping=True),
    ],
)
def test_the_same_answers_as_a_search_by_hand(beams: Beams) -> None:
    for prompt, answers in zip(PROMPTS, found(PROMPTS, beams, count=beams.num_beams, length=6), strict=True):
        expected = by_hand(prompt, beams, length=6)
        assert [tuple(answer.ids) for answer in answers] == [each.ids for each in expected]
        assert [answer.score for answer in answers] == pytest.approx([each.score for each in expected], abs=1e-5)
        for answer in answers:
            context = list(prompt)
            for token, logprob in zip(answer.ids, answer.logprobs, strict=True):
                assert logprob == pytest.approx(logprobs_after(context)[token], abs=1e-5)
                context.append(token)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_answer_there_is(penalty: float) -> None:
    length = 3
    beams = Beams(num_beams=VOCABULARY**2, length_penalty=penalty, early_stopping="never")

    def score(prompt: Sequence[int], ids: Sequence[int]) -> float:
        total = sum(logprobs_after([*prompt, *ids[:at]])[token] for at, token in enumerate(ids))
        return total / len(ids) ** penalty

    texts = [
        ids
        for size in range(1, length + 1)
        for ids in itertools.product(range(VOCABULARY), repeat=size)
        if END not in ids[:-1] and (size == length or ids[-1] == END)
    ]
    for prompt, [answer] in zip(PROMPTS[:6], found(PROMPTS[:6], beams, length=length), strict=True):
        best = max(texts, key=lambda ids: score(prompt, ids))
        assert tuple(answer.ids) == best
        assert answer.score == pytest.approx(score(prompt, best), abs=1e-5)
        assert answer.finish_reason == ("eos" if best[-1] == END else "length")


def test_a_prompt_has_the_same_answers_alone_and_in_company() -> None:
    beams = Beams(num_beams=4, num_beam_groups=2, diversity_penalty=1.0)
    together = found(PROMPTS, beams, count=4)
    assert together == [found([prompt], beams, count=4)[0] for prompt in PROMPTS]
    assert len({len(answers[0].ids) for answers in together}) > 1


def test_groups_keep_apart() -> None:
    def first_tokens(beams: Beams) -> int:
        return sum(len({answer.ids[0] for answer in each}) for each in found(PROMPTS, beams, count=4, ends=()))

    plain = first_tokens(Beams(num_beams=4))
    mild = first_tokens(Beams(num_beams=4, num_beam_groups=4, diversity_penalty=0.5))
    strong = first_tokens(Beams(num_beams=4, num_beam_groups=4, diversity_penalty=100.0))
    assert plain < mild < strong == 4 * len(PROMPTS)


def test_a_longer_answer_is_favoured_by_a_higher_penalty() -> None:
    lengths = [
        sum(len(answer.ids) for [answer] in found(PROMPTS, Beams(num_beams=4, length_penalty=penalty), length=8))
        for penalty in (-2.0, 0.0, 1.0, 3.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_occurs_twice(size: int) -> None:
    for prompt, [answer] in zip(
        PROMPTS, found(PROMPTS, Beams(num_beams=3), length=7, ends=(), no_repeat_ngram_size=size), strict=True
    ):
        ids = [*prompt, *answer.ids]
        runs = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
        # The prompt may repeat itself already.
        fresh = runs[max(0, len(prompt) - size + 1) :]
        assert len(set(fresh)) == len(fresh)


def test_when_every_token_is_forbidden_the_search_ends() -> None:
    for prompt, [answer] in zip(
        PROMPTS, found(PROMPTS, Beams(num_beams=2), length=20, ends=(), no_repeat_ngram_size=1), strict=True
    ):
        assert len(answer.ids) == VOCABULARY - len(set(prompt))


def test_the_shortest_and_the_forced_tokens() -> None:
    beams = Beams(num_beams=4)
    assert all(END not in answer.ids[:4] for [answer] in found(PROMPTS, beams, length=6, min_new_tokens=4))
    [forced] = zip(*found(PROMPTS, beams, length=4, ends=(), forced_eos_id=END), strict=True)
    assert all(answer.ids[3] == END for answer in forced)
    searches = [Search([5], 4, beams, Sampling(forced_bos_id=6), (END,), opens=True) for _ in range(2)]
    for _ in search(searches, Reader([[5], [5]])):
        pass
    assert all(each.answers(1)[0].ids[0] == 6 for each in searches)


def test_a_repetition_penalty_changes_the_answers() -> None:
    beams = Beams(num_beams=3)
    assert found(PROMPTS, beams, ends=()) != found(PROMPTS, beams, ends=(), repetition_penalty=3.0)


def test_a_search_may_be_stopped_between_two_steps() -> None:
    searches = [Search(prompt, 9, Beams(num_beams=3), eos_ids=()) for prompt in PROMPTS]
    for step, _ in enumerate(search(searches, Reader(PROMPTS)), start=1):
        if step == 2:
            searches[0].stop()
    first, *others = [each.answers(3) for each in searches]
    assert [len(answer.ids) for answer in first] == [2, 2, 2]
    assert {answer.finish_reason for answer in first} == {"cancelled"}
    assert all(len(answer.ids) == 9 for answers in others for answer in answers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_beams": 0},
        {"num_beams": 2.5},
        {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
        {"num_beams": 4, "num_beam_groups": 2},
        {"num_beams": 4, "diversity_penalty": 1.0},
        {"length_penalty": math.nan},
        {"early_stopping": "soon"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TriviumError) as error:
        Beams(**wrong)
    assert error.value.where in wrong or error.value.where == "num_beam_groups"
    assert error.value.fix


def test_a_row_that_is_not_constrained_keeps_its_scores() -> None:
    scores = torch.randn(2, VOCABULARY)
    rows = [Row(Sampling(), [1], [2, 3], 5), Row(Sampling(no_repeat_ngram_size=2), [1, 4], [1], 5)]
    changed = constrain(scores, rows)
    assert torch.equal(changed[0], scores[0])
    assert changed[1].isinf().nonzero().flatten().tolist() == [4]
