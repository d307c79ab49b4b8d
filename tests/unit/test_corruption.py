"""Objectives from plain text: what is hidden, how much of it, and that nothing is lost."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.data.batch import IGNORE
from trivium.data.corruption.example import next_token, prefix_lm, taught
from trivium.data.corruption.infilling import delete_tokens, infill, permute_sentences, rotate
from trivium.data.corruption.masking import LONGEST_SPAN, Masking, mask_spans, mask_tokens, mask_words
from trivium.data.corruption.middle import Marks, fill_in_the_middle
from trivium.data.corruption.spans import continue_text, corrupt_spans, noise_counts, noise_mask
from trivium.data.corruption.ul2 import MIXTURE, mixture_of_denoisers

VOCABULARY, MASK, SPECIAL = 100, 4, 10
SENTINELS = range(1000, 1100)
ORDINARY = np.arange(VOCABULARY) >= SPECIAL

lengths = st.integers(2, 300)
seeds = st.integers(0, 2**32)
rates = st.floats(0.05, 0.9)


def text(length: int, seed: int, low: int = SPECIAL) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, VOCABULARY, length)


def masking(rate: float = 0.15, shares: tuple[float, float] = (0.8, 0.1)) -> Masking:
    return Masking(MASK, ORDINARY, rate, shares)


def word_starts(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1).random(length) < 0.6


def draw(kind: str, ids, random, rules: Masking, starts):
    if kind == "tokens":
        return mask_tokens(ids, random, rules)
    return {"words": mask_words, "spans": mask_spans}[kind](ids, random, rules, starts=starts)


# Masking


@pytest.mark.parametrize("kind", ["tokens", "words", "spans"])
@given(length=lengths, seed=seeds, rate=rates)
@settings(max_examples=60, deadline=None)
def test_masking_hides_the_budget_and_changes_nothing_else(kind, length, seed, rate):
    ids, starts = text(length, seed, low=0), word_starts(length, seed)
    before = ids.copy()
    made = draw(kind, ids, np.random.default_rng(seed), masking(rate), starts)
    assert (ids == before).all(), "the text itself is untouched"
    trained = made.targets != IGNORE
    assert (made.targets[trained] == ids[trained]).all()
    assert (made.inputs[~trained] == ids[~trained]).all()
    assert ORDINARY[ids[trained]].all(), "special tokens are never hidden"
    assert (ORDINARY[made.inputs] | (made.inputs == MASK) | (made.inputs == ids)).all()
    budget = masking(rate).budget(int(ORDINARY[ids].sum()))
    if kind == "words":
        assert trained.sum() <= budget or trained.sum() <= 40
        assert bool(trained.any()) == bool(budget)
    else:
        assert trained.sum() == budget


@pytest.mark.parametrize("kind", ["tokens", "words", "spans"])
def test_shares_are_those_asked_for(kind):
    ids, random = text(200_000, 1), np.random.default_rng(2)
    made = draw(kind, ids[:20_000], random, masking(), np.ones(20_000, dtype=bool))
    if kind == "tokens":
        made = draw(kind, ids, random, masking(), None)
        ids_seen = ids
    else:
        ids_seen = ids[:20_000]
    trained = made.targets != IGNORE
    masked = (made.inputs == MASK) & trained
    kept = (made.inputs == ids_seen) & trained
    assert trained.mean() == pytest.approx(0.15, abs=1e-3)
    assert masked.sum() / trained.sum() == pytest.approx(0.8, abs=0.03)
    # A random token is the old one in 1 of 90 cases.
    assert kept.sum() / trained.sum() == pytest.approx(0.1 + 0.1 / 90, abs=0.03)
    everything = draw(kind, ids[:500], random, masking(shares=(1.0, 0.0)), np.ones(500, dtype=bool))
    assert (everything.inputs[everything.targets != IGNORE] == MASK).all()


def test_words_are_hidden_whole():
    ids, starts = text(3000, 5), word_starts(3000, 5)
    trained = mask_words(ids, np.random.default_rng(0), masking(), starts=starts).targets != IGNORE
    word = np.cumsum(starts)
    for number in np.unique(word[trained]):
        assert trained[word == number].all()
    single = mask_tokens(ids, np.random.default_rng(0), masking()).targets != IGNORE
    assert any(not single[word == number].all() for number in np.unique(word[single]))


def test_spans_have_the_lengths_of_spanbert():
    random, found = np.random.default_rng(0), Counter()
    for _ in range(300):
        trained = mask_spans(text(400, 3), random, masking(0.05), starts=np.ones(400, dtype=bool)).targets != IGNORE
        runs = np.diff(np.flatnonzero(np.diff(trained, prepend=False, append=False)))[::2]
        found.update(runs.tolist())
    short = found[1] / (found[1] + found[2])
    # Of every 20 tokens the last span is cut, and neighbours join: the law is only roughly that of single spans.
    assert short == pytest.approx(1 / 1.8, abs=0.08)
    mean = sum(length * count for length, count in found.items()) / found.total()
    law = [0.2 * 0.8**n for n in range(LONGEST_SPAN)]
    assert sum((n + 1) * p for n, p in enumerate(law)) / sum(law) == pytest.approx(3.8, abs=0.02)
    assert 3.0 < mean < 4.3


def test_one_span_shares_one_fate():
    random = np.random.default_rng(0)
    for _ in range(50):
        ids = text(400, 3)
        made = mask_spans(ids, random, masking(0.02, (0.5, 0.0)), starts=np.ones(400, dtype=bool))
        trained = made.targets != IGNORE
        edges = np.flatnonzero(np.diff(trained, prepend=False, append=False)).reshape(-1, 2)
        if len(edges) == 1:
            (start, end) = edges[0]
            assert len(set((made.inputs[start:end] == MASK).tolist())) == 1


@pytest.mark.parametrize("kind", ["tokens", "words", "spans"])
def test_every_draw_is_another_and_the_same_seed_is_the_same(kind):
    ids, starts = text(100, 0), np.ones(100, dtype=bool)
    first, second, other = (draw(kind, ids, np.random.default_rng(seed), masking(), starts) for seed in (1, 1, 2))
    assert (first.inputs == second.inputs).all()
    assert (first.targets == second.targets).all()
    assert (first.targets != other.targets).any()


# Spans


@given(length=lengths, seed=seeds, rate=rates, mean=st.floats(1, 40), roll=st.booleans())
@settings(max_examples=150, deadline=None)
def test_span_corruption_loses_nothing(length, seed, rate, mean, roll):
    ids = text(length, seed)
    source, target = corrupt_spans(
        ids, np.random.default_rng(seed), sentinels=range(1000, 1400), rate=rate, mean_length=mean, roll=roll
    )
    noisy, spans = noise_counts(length, rate=rate, mean_length=mean)
    if roll and source[0] == 1000 and source[-1] >= 1000:  # a span lies over the end
        spans += len(source) - (length - noisy + spans)
    assert len(source) == length - noisy + spans
    assert len(target) == noisy + spans
    assert [token for token in source if token >= 1000] == list(range(1000, 1000 + spans))
    assert [token for token in target if token >= 1000] == list(range(1000, 1000 + spans))
    holes: dict[int, list[int]] = {}
    for token in target.tolist():
        if token >= 1000:
            holes[token] = []
        else:
            holes[max(holes)].append(token)
    rebuilt = [part for token in source.tolist() for part in (holes[token] if token >= 1000 else [token])]
    assert rebuilt == ids.tolist()


def test_the_noise_is_that_of_t5():
    """The numbers of the reference code for 512 tokens, 15 % and spans of 3, and a uniform random cut."""
    assert noise_counts(512, rate=0.15, mean_length=3) == (77, 26)
    assert noise_counts(10, rate=0.15, mean_length=3) == (2, 1)
    assert noise_counts(2, rate=0.9, mean_length=3) == (1, 1)
    random = np.random.default_rng(0)
    # 4 noisy tokens in 2 spans of 10: noise segments (1,3) (2,2) (3,1) and kept segments (1,5) .. (5,1), all alike.
    found = Counter(
        tuple(np.flatnonzero(noise_mask(10, random, rate=0.4, mean_length=2)).tolist()) for _ in range(15_000)
    )
    assert len(found) == 3 * 5
    assert max(abs(count / 1000 - 1) for count in found.values()) < 0.15
    mask = noise_mask(512, random, rate=0.15, mean_length=3)
    assert not mask[0]
    assert mask[-1]


def test_rolled_noise_is_everywhere():
    random = np.random.default_rng(0)
    short = sum(noise_mask(8, random, rate=0.15, mean_length=3).astype(int) for _ in range(800))
    assert short.tolist() == [0] * 7 + [800]
    rolled = sum(noise_mask(8, random, rate=0.15, mean_length=3, roll=True).astype(int) for _ in range(800))
    assert rolled.sum() == 800
    assert rolled.min() > 60


def test_too_few_sentinels_are_refused():
    with pytest.raises(ValueError, match="26 spans need as many sentinels, there are 5"):
        corrupt_spans(text(512, 0), np.random.default_rng(0), sentinels=range(1000, 1005))


def test_a_missing_end_is_announced():
    source, target = continue_text(np.arange(20, 40), sentinel=1000)
    assert source.tolist() == [*range(20, 35), 1000]
    assert target.tolist() == [1000, *range(35, 40)]


# BART


@given(length=lengths, seed=seeds, rate=rates, mean=st.floats(0.5, 10))
@settings(max_examples=150, deadline=None)
def test_infilling_keeps_the_order_and_never_grows(length, seed, rate, mean):
    ids = np.arange(length) + SPECIAL
    made = infill(ids, np.random.default_rng(seed), mask_id=MASK, rate=rate, mean_length=mean)
    kept = made[made != MASK]
    assert len(made) <= length
    assert (np.diff(kept) > 0).all()
    assert not ((made[1:] == MASK) & (made[:-1] == MASK)).any(), "two masks never stand side by side"
    assert len(kept) >= length - round(length * rate)


def test_infilling_takes_its_share_in_spans_of_poisson_length():
    random = np.random.default_rng(0)
    ids = np.arange(1000) + SPECIAL
    spans, lost, empty = 0, 0, 0
    for _ in range(200):
        made = infill(ids, random, mask_id=MASK)
        lost += 1000 - int((made != MASK).sum())
        places = np.flatnonzero(made == MASK)
        spans += len(places)
        inside = places[(places > 0) & (places < len(made) - 1)]
        empty += int((made[inside + 1] - made[inside - 1] == 1).sum())
    assert lost / 200 == 300
    assert lost / spans == pytest.approx(3.0, abs=0.05)
    assert empty / spans == pytest.approx(math.exp(-3), abs=0.01)


@given(length=lengths, seed=seeds, share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_sentences_only_change_places(length, seed, share):
    ids, ends = text(length, seed), np.random.default_rng(seed).random(length) < 0.2
    made = permute_sentences(ids, np.random.default_rng(seed), ends=ends, share=share)

    def sentences(tokens, marks):
        return sorted(tuple(part) for part in np.split(tokens, np.flatnonzero(marks[:-1]) + 1))

    assert sorted(made.tolist()) == sorted(ids.tolist())
    if share == 0:
        assert (made == ids).all()
    table = np.zeros(VOCABULARY, dtype=bool)
    table[20] = True
    once = permute_sentences(ids, np.random.default_rng(seed), ends=table[ids], share=1.0)
    if table[ids[-1]]:
        assert sentences(once, table[once]) == sentences(ids, table[ids])


def test_deletion_and_rotation():
    ids, random = np.arange(100), np.random.default_rng(0)
    shorter = delete_tokens(ids, random, rate=0.3)
    assert len(shorter) == 70
    assert (np.diff(shorter) > 0).all()
    assert len(delete_tokens(np.arange(3), random, rate=1.0)) == 1
    turned = rotate(ids, random)
    assert sorted(turned.tolist()) == ids.tolist()
    assert (np.diff(turned) % 100 == 1).all()
    assert len({int(rotate(ids, random)[0]) for _ in range(50)}) > 20


# UL2


def test_the_mixture_has_every_denoiser_and_its_mode():
    modes = {"R": 500, "S": 501, "X": 502}
    ids, random = text(400, 0), np.random.default_rng(0)
    seen: Counter[int] = Counter()
    shapes = set()
    for _ in range(700):
        source, target = mixture_of_denoisers(ids, random, sentinels=SENTINELS, modes=modes)
        seen[int(source[0])] += 1
        shapes.add((int(source[0]), len(target)))
        assert source[1] < 1000
        assert target[0] == 1000
    assert len(shapes) == len(MIXTURE)
    assert seen[500] / 700 == pytest.approx(2 / 7, abs=0.06)
    assert seen[501] / 700 == pytest.approx(1 / 7, abs=0.06)
    plain = mixture_of_denoisers(ids, random, sentinels=SENTINELS)
    assert int(plain.source[0]) < 500


# Decoders


@given(length=lengths, seed=seeds)
@settings(max_examples=100, deadline=None)
def test_the_middle_is_moved_and_nothing_lost(length, seed):
    ids, marks = text(length, seed), Marks(1, 2, 3)
    for spm in (0.0, 1.0):
        made = fill_in_the_middle(ids, np.random.default_rng(seed), marks=marks, rate=1.0, spm_rate=spm).tolist()
        assert len(made) == length + 3
        suffix, middle = made.index(2), made.index(3)
        assert made[0] == 1
        if spm:
            assert suffix == 1
            after, rest = made[2:middle], made[middle + 1 :]
            assert [*rest, *after] == ids.tolist()
        else:
            assert [*made[1:suffix], *made[middle + 1 :], *made[suffix + 1 : middle]] == ids.tolist()
    assert (fill_in_the_middle(ids, np.random.default_rng(seed), marks=marks, rate=0.0) == ids).all()


def test_rates_of_the_middle_are_those_asked_for():
    random, marks = np.random.default_rng(0), Marks(1, 2, 3)
    made = [fill_in_the_middle(text(30, 0), random, marks=marks, rate=0.6, spm_rate=0.25) for _ in range(2000)]
    moved = [one for one in made if len(one) == 33]
    assert len(moved) / 2000 == pytest.approx(0.6, abs=0.04)
    assert sum(int(one[1]) == 2 for one in moved) / len(moved) == pytest.approx(0.25 + 0.75 / 31, abs=0.05)


@given(length=lengths, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_prefix_is_read_and_the_rest_predicted(length, seed):
    ids = text(length, seed)
    made = prefix_lm(ids, np.random.default_rng(seed))
    assert (made.inputs == ids[:-1]).all()
    assert 1 <= made.prefix <= length - 1
    trained = np.flatnonzero(made.targets != IGNORE)
    assert trained.tolist() == list(range(made.prefix - 1, length - 1))
    assert (made.targets[trained] == ids[1:][trained]).all()


def test_prefixes_are_uniform():
    random = np.random.default_rng(0)
    found = Counter(prefix_lm(text(11, 0), random).prefix for _ in range(10_000))
    assert sorted(found) == list(range(1, 11))
    assert max(abs(count / 1000 - 1) for count in found.values()) < 0.15


def test_teacher_forcing_begins_with_the_start_token():
    made = taught(np.array([7, 8]), np.array([20, 21, 22]), start=0)
    assert made.inputs.tolist() == [0, 20, 21]
    assert made.targets.tolist() == [20, 21, 22]
    plain = next_token(np.array([5, 6, 7]))
    assert (plain.inputs.tolist(), plain.targets.tolist()) == ([5, 6], [6, 7])
