"""Losses over vectors against those of sentence-transformers and loops, a logistic head against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from trivium.losses import contrastive
from trivium.losses.logistic import fit_logistic


class Given(torch.nn.Module):
    """A 'model' whose vectors are those it is given."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["vectors"]}


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(*sides: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"vectors": side} for side in sides]


def test_ranking_is_multiple_negatives_ranking() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    anchors, positives, negatives = vectors(5, 0), vectors(5, 1), vectors(5, 2)
    similarity = contrastive.similarities(anchors, torch.cat([positives, negatives]))
    theirs = losses.MultipleNegativesRankingLoss(Given(), scale=20.0)
    expected = theirs(features(anchors, positives, negatives), None)
    torch.testing.assert_close(contrastive.ranking(similarity * 20.0).mean(), expected)
    both = losses.MultipleNegativesSymmetricRankingLoss(Given(), scale=20.0)
    ours = contrastive.ranking(contrastive.similarities(anchors, positives) * 20.0, symmetric=True).mean()
    torch.testing.assert_close(ours, both(features(anchors, positives), None))


def test_order_is_cosent_and_cosine_is_theirs() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    first, second = vectors(7, 0), vectors(7, 1)
    target = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.0, 1.0, 0.3], dtype=torch.float64)
    similarity = contrastive.of_pairs(first, second)
    ours = contrastive.order(similarity, target, temperature=1 / 20)
    torch.testing.assert_close(ours, losses.CoSENTLoss(Given(), scale=20.0)(features(first, second), target))
    theirs = losses.CosineSimilarityLoss(Given())(features(first, second), target)
    torch.testing.assert_close((similarity - target).square().mean(), theirs)


def loops(given: torch.Tensor, labels: list[int], temperature: float, hardness: float) -> list[float]:
    """Equation 2 of the paper, number by number."""
    unit = F.normalize(given, dim=-1)
    score = (unit @ unit.T / temperature).tolist()
    found = []
    for i, label in enumerate(labels):
        others = [a for a in range(len(labels)) if a != i]
        positives = [a for a in others if labels[a] == label]
        negatives = [a for a in others if labels[a] != label]
        weight = {a: math.exp(hardness * score[i][a]) for a in negatives}
        mean = sum(weight.values()) / max(1, len(negatives))
        below = sum(math.exp(score[i][a]) for a in positives)
        below += sum(weight[a] / mean * math.exp(score[i][a]) for a in negatives)
        found.append(-sum(score[i][p] - math.log(below) for p in positives) / max(1, len(positives)))
    return found


@pytest.mark.parametrize("hardness", [0.0, 0.7])
def test_supervised_contrast_is_the_equation(hardness: float) -> None:
    given, labels = vectors(8, 3).requires_grad_(), [0, 1, 0, 2, 1, 0, 1, 3]
    ours = contrastive.supervised(given, torch.tensor(labels), temperature=0.2, hardness=hardness)
    assert ours.tolist() == pytest.approx(loops(given.detach(), labels, 0.2, hardness), rel=1e-10)
    assert float(ours[3].detach()) == 0.0, "a text whose label no other has adds nothing"
    ours.sum().backward()
    assert bool(torch.isfinite(given.grad).all())


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]])
def test_supervised_contrast_is_finite_at_its_edges(labels: list[int]) -> None:
    given = vectors(len(labels), 4).float().requires_grad_()
    loss = contrastive.supervised(given, torch.tensor(labels), temperature=0.1, hardness=0.5)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all()) and bool(torch.isfinite(given.grad).all())


def test_what_does_not_count_as_negative() -> None:
    anchors, positives, negatives = torch.tensor([1, 2, 1]), torch.tensor([5, 6, 7]), torch.tensor([5, 8])
    known = contrastive.known_pairs(anchors, positives, negatives)
    # The first and third pair have one anchor; the first negative is the text of the first positive.
    assert known.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    similarity = torch.tensor([[0.5, 0.55, 0.9], [0.1, 0.8, 0.2]])
    assert contrastive.false_negatives(similarity, 0.1).int().tolist() == [[0, 0, 1], [0, 0, 0]]
    scores = torch.tensor([[1.0, 5.0], [0.0, 2.0]])
    alone = contrastive.ranking(scores, torch.tensor([[False, True], [False, False]]))
    assert float(alone[0]) == 0.0 < float(alone[1])
    assert contrastive.found(scores, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [0.0, 1.0]


def test_logistic_head_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    given, labels = vectors(60, 5), torch.arange(60) % 3
    given[:, 0] += labels
    given = given * torch.tensor([1, 10, 0.1, 3, 1, 1], dtype=torch.float64) + 5
    weight, bias = fit_logistic(given, labels, 3, penalty=2.0)
    scaled = ((given - given.mean(0)) / given.std(0, correction=0)).numpy()
    theirs = linear.LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(scaled, labels.numpy())
    expected = torch.from_numpy(theirs.predict_proba(scaled))
    torch.testing.assert_close((given @ weight.T + bias).softmax(-1), expected, atol=1e-5, rtol=1e-4)
