"""The law by which loss falls with model size and data, fitted to small runs, and what it says about larger ones.

    L(N, D) = E + A / N^alpha + B / D^beta          (Hoffmann et al. 2022, arXiv:2203.15556, approach 3)

N parameters of matrices (`plan.matrix_parameters`), D training tokens, C = 6 N D operations. Fitted is

    min over (a, b, e, alpha, beta) of
    sum_i Huber( log( exp(a - alpha log N_i) + exp(b - beta log D_i) + exp(e) ) - log L_i )

with A = exp(a), B = exp(b), E = exp(e), from a grid of starts of which the best end counts, as in the paper. Instead of
L-BFGS the minimiser is Levenberg-Marquardt with weights, all starts at once: five unknowns need no library.
A few runs hold a long way from infinity determine E, alpha and beta only weakly, so there are weak priors
(`PRIOR`), which one good ladder outweighs; uncertainty comes from refits to resampled runs.

On the frontier (6 N D = C, the paper's equation 4):

    N = G (C / 6)^(beta / (alpha + beta)),  D = (C / 6)^(alpha / (alpha + beta)) / G,
    G = (alpha A / (beta B))^(1 / (alpha + beta))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.errors import DataError

Floats = NDArray[np.float64]

HUBER = 1e-3
"""Residuals of log L beyond this count linearly, as in the paper."""
PRIOR = ((0.5, 0.3), (0.5, 0.3))
"""Mean and standard deviation of what alpha and beta are taken to be before there are data: between 0.2 and 0.8 mostly.
Published are 0.34 and 0.28 (Hoffmann), 0.35 and 0.37 (Besiroglu et al. 2024, arXiv:2404.10102, on the same runs)."""
NOISE = 5e-3
"""Spread of log L between two runs alike, which says how much a prior weighs against one run."""
LEAST_RUNS = 6
STEPS = 200
LEVEL = 0.9
"""Probability of the intervals."""


@dataclass(frozen=True)
class Point:
    """One run that was measured."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """The fitted law; see the file docstring."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D)."""
        return float(self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta)

    def best_parameters(self, flops: float) -> float:
        """N that reaches the lowest loss with 6 N D = `flops`."""
        both = self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        return float(balance * (flops / 6) ** (self.beta / both))

    def best(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss with 6 N D = `flops`."""
        parameters = self.best_parameters(flops)
        return parameters, flops / 6 / parameters

    def as_dict(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A value, and where it lies with probability `LEVEL`."""

    low: float
    value: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Fit:
    """A law, the laws of the resampled runs, and what is left of each run: log(measured / fitted)."""

    law: Law
    resampled: tuple[Law, ...]
    residuals: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Root mean square of the residuals, corrected for the five unknowns."""
        free = max(1, len(self.residuals) - 5)
        return math.sqrt(sum(residual**2 for residual in self.residuals) / free)

    def interval(self, name: str) -> Interval:
        """Of one parameter of the law."""
        return _interval(getattr(self.law, name), [getattr(law, name) for law in self.resampled])

    def loss(self, parameters: float, tokens: float) -> Interval:
        """Of the loss of one new run: the law's uncertainty, and the spread of single runs around it."""
        middle = self.law.loss(parameters, tokens)
        drawn = np.random.default_rng(1).standard_normal(len(self.resampled)) * self.spread
        around = [law.loss(parameters, tokens) * math.exp(z) for law, z in zip(self.resampled, drawn, strict=True)]
        return _interval(middle, around)

    def best_parameters(self, flops: float) -> Interval:
        """Of the best size for a budget."""
        return _interval(self.law.best_parameters(flops), [law.best_parameters(flops) for law in self.resampled])


def fit_law(points: Sequence[Point], *, resamples: int = 200, seed: int = 0) -> Fit:
    """Fits the law to runs; DataError if they are too few, or do not tell size and data apart."""
    _refuse_too_few(points)
    data = np.log([[point.parameters, point.tokens, point.loss] for point in points])
    count = len(points)
    starts = _starts(data)
    ends, costs = _minimise(starts, np.repeat(data[None], len(starts), axis=0), np.ones((len(starts), count)))
    best = ends[int(np.argmin(costs))]
    random = np.random.default_rng(seed)
    # A resample gives each run a weight: how often it was drawn. Exponential weights (Rubin 1981) leave no run out
    # altogether, so even a small ladder keeps two sizes and two amounts of data.
    weights = random.dirichlet(np.ones(count), size=resamples) * count
    tries = np.stack([best, *_apart(ends, costs)])
    again = np.tile(tries, (resamples, 1))
    found, costs = _minimise(again, np.repeat(data[None], len(again), axis=0), np.repeat(weights, len(tries), axis=0))
    chosen = np.argmin(costs.reshape(resamples, -1), axis=1)
    laws = found.reshape(resamples, len(tries), 5)[np.arange(resamples), chosen]
    law = _law(best)
    residuals = tuple(math.log(point.loss / law.loss(point.parameters, point.tokens)) for point in points)
    return Fit(law, tuple(_law(each) for each in laws), residuals)


def _refuse_too_few(points: Sequence[Point]) -> None:
    if any(not (math.isfinite(p.loss) and p.loss > 0 and p.parameters > 0 and p.tokens > 0) for p in points):
        raise DataError(
            "a run has no finite positive loss",
            value=[point.loss for point in points],
            fix="look at the runs of the ladder: one of them diverged",
        )
    sizes, amounts = ({getattr(point, name) for point in points} for name in ("parameters", "tokens"))
    if len(points) < LEAST_RUNS or len(sizes) < 3 or len(amounts) < 3:
        raise DataError(
            f"{len(points)} runs of {len(sizes)} sizes with {len(amounts)} amounts of data do not determine a law",
            fix=f"give the ladder at least {LEAST_RUNS} runs, 3 sizes and 3 amounts of data: a larger budget",
        )


def _starts(data: Floats) -> Floats:
    """[S, 5] starts (a, b, e, alpha, beta): each term a share of the loss at the middle of the runs."""
    sizes, tokens, losses = data.mean(axis=0)
    lowest = data[:, 2].min()
    found = []
    for alpha, beta, rest, share in itertools.product(
        (0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.2, 0.6, 0.9), (0.2, 0.5, 0.8)
    ):
        floor = math.exp(lowest) * rest
        above = math.exp(losses) - floor
        found.append(
            [
                math.log(above * share) + alpha * sizes,
                math.log(above * (1 - share)) + beta * tokens,
                math.log(floor),
                alpha,
                beta,
            ]
        )
    return np.array(found)


def _apart(ends: Floats, costs: Floats, most: int = 3) -> list[Floats]:
    """A few good ends that differ from each other, as starts of the resamples."""
    kept: list[Floats] = []
    for place in np.argsort(costs):
        if all(float(np.abs(ends[place] - other).max()) > 0.05 for other in kept):
            kept.append(ends[place])
        if len(kept) == most:
            break
    return kept[1:]


def _residuals(unknown: Floats, data: Floats) -> tuple[Floats, Floats]:
    """([S, n + 2] residuals, [S, n + 2, 5] derivatives); the last two are the priors, in units of the noise."""
    a, b, e, alpha, beta = (unknown[:, place, None] for place in range(5))
    size, tokens, loss = (data[:, :, place] for place in range(3))
    terms = np.stack([a - alpha * size, b - beta * tokens, np.broadcast_to(e, size.shape)], axis=2)
    top = terms.max(axis=2, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(axis=2, keepdims=True)
    shares /= total
    residual = (top + np.log(total))[:, :, 0] - loss
    slopes = [shares[:, :, 0], shares[:, :, 1], shares[:, :, 2], -size * shares[:, :, 0], -tokens * shares[:, :, 1]]
    prior = np.stack([(unknown[:, 3 + at] - mean) / width * NOISE for at, (mean, width) in enumerate(PRIOR)], axis=1)
    pulls = np.zeros((len(unknown), 2, 5))
    for at, (_, width) in enumerate(PRIOR):
        pulls[:, at, 3 + at] = NOISE / width
    return np.concatenate([residual, prior], axis=1), np.concatenate([np.stack(slopes, axis=2), pulls], axis=1)


def _cost(residual: Floats, weights: Floats) -> Floats:
    """[S] Huber's sum over runs, plus the priors' squares, which are scaled alike."""
    size = np.abs(residual)
    huber = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
    prior = residual[:, -2:] ** 2 / 2 * (HUBER / NOISE)
    cost: Floats = (huber[:, :-2] * weights).sum(axis=1) + prior.sum(axis=1)
    return cost


def _minimise(start: Floats, data: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """([S, 5] ends, [S] costs) of Levenberg-Marquardt from each start, on its own data [S, n, 3] and weights [S, n]."""
    unknown = start.copy()
    damping = np.full(len(start), 1e-2)
    residual, slopes = _residuals(unknown, data)
    cost = _cost(residual, weights)
    for _ in range(STEPS):
        # Huber's loss as weighted squares: a residual beyond the border counts HUBER / |residual|.
        counted = np.concatenate(
            [
                weights * np.minimum(1, HUBER / np.maximum(np.abs(residual[:, :-2]), 1e-300)),
                np.full((len(start), 2), HUBER / NOISE),
            ],
            axis=1,
        )
        normal = np.einsum("sni,sn,snj->sij", slopes, counted, slopes)
        downhill = np.einsum("sni,sn,sn->si", slopes, counted, residual)
        # Scaled by what the diagonal is, so that the step does not depend on units.
        diagonal = np.einsum("sii->si", normal) * damping[:, None] + 1e-12
        normal[:, range(5), range(5)] += diagonal
        tried = unknown - np.clip(np.linalg.solve(normal, downhill[:, :, None])[:, :, 0], -5, 5)
        tried[:, 3:] = np.clip(tried[:, 3:], 0.01, 3)
        new_residual, new_slopes = _residuals(tried, data)
        new_cost = _cost(new_residual, weights)
        better = new_cost < cost
        unknown[better], residual[better], slopes[better] = tried[better], new_residual[better], new_slopes[better]
        gain = np.where(better, cost - new_cost, 0)
        cost = np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
        if np.all((gain <= 1e-12 * cost) & (damping > 1e-3)):
            break
    return unknown, cost


def _law(unknown: Floats) -> Law:
    a, b, e, alpha, beta = (float(value) for value in unknown)
    return Law(E=math.exp(e), A=math.exp(a), B=math.exp(b), alpha=alpha, beta=beta)


def _interval(value: float, drawn: Sequence[float]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(min(float(low), value), value, max(float(high), value))
