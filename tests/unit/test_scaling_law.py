"""The fit of L(N, D): it finds a law that is known, says how sure it is, and refuses what determines nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.core.scaling_law import Law, Point, fit_law
from trivium.errors import DataError

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
SMALL = 1e15


def runs(law: Law, *, noise: float = 0.0, seed: int = 0, levels: int = 3, sizes: int = 4) -> list[Point]:
    """Four sizes around the best at three levels of compute, as a ladder has them."""
    random = np.random.default_rng(seed)
    found = []
    for level in range(levels):
        flops = SMALL * 3**level
        for place in range(sizes):
            parameters = law.best_parameters(flops) * 2 ** (place - (sizes - 1) / 2)
            tokens = flops / 6 / parameters
            loss = law.loss(parameters, tokens) * math.exp(noise * random.standard_normal())
            found.append(Point(parameters, tokens, loss))
    return found


def test_runs_without_noise_give_back_the_law() -> None:
    fit = fit_law(runs(CHINCHILLA), resamples=20)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((0.34, 0.28), abs=0.005)
    assert pytest.approx(1.69, abs=0.03) == fit.law.E
    assert fit.spread < 2e-4


@settings(max_examples=8, deadline=None)
@given(
    alpha=st.floats(0.25, 0.6),
    beta=st.floats(0.25, 0.6),
    rest=st.floats(1.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_larger_runs_are_foreseen_from_noisy_ones(alpha: float, beta: float, rest: float, seed: int) -> None:
    """Whatever the law: ten times the compute of the largest run, within a few percent, although E is not known."""
    law = Law(E=rest, A=2.0 * (1e6**alpha), B=2.0 * (2e7**beta), alpha=alpha, beta=beta)
    fit = fit_law(runs(law, noise=0.003, seed=seed), resamples=10)
    parameters, tokens = law.best(SMALL * 90)
    assert fit.law.loss(parameters, tokens) == pytest.approx(law.loss(parameters, tokens), rel=0.04)


def test_intervals_hold_what_they_promise() -> None:
    """Nine of ten, counted over ladders that differ in their noise only."""
    parameters, tokens = CHINCHILLA.best(SMALL * 27)
    held, noise = 0, 0.005
    for seed in range(24):
        fit = fit_law(runs(CHINCHILLA, noise=noise, seed=seed), resamples=100, seed=seed)
        new = CHINCHILLA.loss(parameters, tokens) * math.exp(noise * np.random.default_rng(99 + seed).standard_normal())
        held += fit.loss(parameters, tokens).holds(new)
    assert held >= 18


def test_more_noise_gives_wider_intervals() -> None:
    widths = []
    for noise in (0.001, 0.01):
        interval = fit_law(runs(CHINCHILLA, noise=noise), resamples=50).loss(*CHINCHILLA.best(SMALL * 27))
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] > 3 * widths[0]


@given(st.floats(1e12, 1e25), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_the_best_size_spends_exactly_the_budget_and_no_other_is_better(
    flops: float, alpha: float, beta: float
) -> None:
    law = Law(E=1.5, A=300.0, B=500.0, alpha=alpha, beta=beta)
    parameters, tokens = law.best(flops)
    assert 6 * parameters * tokens == pytest.approx(flops, rel=1e-9)
    best = law.loss(parameters, tokens)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(parameters * factor, tokens / factor) >= best * (1 - 1e-12)


def test_the_same_runs_give_the_same_law() -> None:
    points = runs(CHINCHILLA, noise=0.01)
    assert fit_law(points, resamples=20) == fit_law(points, resamples=20)


def test_a_run_that_failed_does_not_move_the_law_much() -> None:
    """Huber's loss: one run of twelve, ten percent off."""
    points = runs(CHINCHILLA, noise=0.001)
    broken = [*points[:5], Point(points[5].parameters, points[5].tokens, 1.1 * points[5].loss), *points[6:]]
    at = CHINCHILLA.best(SMALL * 9)
    assert fit_law(broken, resamples=5).law.loss(*at) == pytest.approx(CHINCHILLA.loss(*at), rel=0.02)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (runs(CHINCHILLA)[:5], "do not determine a law"),
        ([Point(1e6, 1e7 * k, 3.0 - 0.1 * k) for k in range(1, 9)], "8 runs of 1 sizes"),
        ([*runs(CHINCHILLA)[:-1], Point(1e6, 1e7, math.inf)], "no finite positive loss"),
    ],
)
def test_refuses_what_determines_nothing(points: list[Point], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        fit_law(points)
    assert len(str(caught.value).splitlines()) <= 5
