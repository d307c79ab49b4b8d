"""Losses that compare vectors of texts with each other; each is given all vectors of an update at once.

Shapes: N texts or pairs, M candidates, D width. Nothing is divided by a batch size here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Similarity = Literal["cosine", "dot"]


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1."""
    normed: Tensor = torch.nn.functional.normalize(vectors, dim=-1)
    return normed


def similarities(first: Tensor, second: Tensor, kind: Similarity = "cosine") -> Tensor:
    """[N, D], [M, D] -> [N, M]."""
    return unit(first) @ unit(second).T if kind == "cosine" else first @ second.T


def of_pairs(first: Tensor, second: Tensor, kind: Similarity = "cosine") -> Tensor:
    """[N, D], [N, D] -> [N], each with its partner."""
    return (unit(first) * unit(second)).sum(1) if kind == "cosine" else (first * second).sum(1)


def supervised(vectors: Tensor, labels: Tensor, *, temperature: float, hardness: float = 0.0) -> Tensor:
    """[N]: minus the mean log-probability of the other texts of the same label, among all other texts.

    Khosla et al. 2020 (arXiv:2004.11362), equation 2: the mean stands outside of the logarithm. 0 for a text whose
    label no other text has.

    hardness: a negative n counts exp(hardness * s_n / temperature) times in the denominator, scaled so that the mean
              over the negatives is 1 (Robinson et al. 2021, arXiv:2010.04592, without their correction for unknown
              labels); 0: all count alike.
    """
    logits = similarities(vectors, vectors) / temperature
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    same = (labels[:, None] == labels[None]) & ~itself
    lowest = torch.finfo(logits.dtype).min
    below = logits
    if hardness:
        others = ~same & ~itself
        heavy = hardness * logits
        count = others.sum(1).clamp(min=1).to(logits.dtype)
        mean = heavy.masked_fill(~others, lowest).logsumexp(1) - count.log()
        below = torch.where(others, logits + heavy - mean[:, None], logits)
    log_probability = logits - below.masked_fill(itself, lowest).logsumexp(1, keepdim=True)
    return -log_probability.masked_fill(~same, 0.0).sum(1) / same.sum(1).clamp(min=1)


def ranking(scores: Tensor, ignored: Tensor | None = None, *, symmetric: bool = False) -> Tensor:
    """[N]: minus the log-probability of candidate i for anchor i, among the M candidates of all anchors.

    scores:    [N, M] similarity over temperature; the own candidates are the first N.
    ignored:   [N, M] candidates that do not count for an anchor; never the own one.
    symmetric: the mean of this and of anchor i for candidate i, among all anchors.

    InfoNCE (van den Oord et al. 2018, arXiv:1807.03748), multiple negatives ranking (Henderson et al. 2017,
    arXiv:1705.00652).
    """
    if ignored is not None:
        scores = scores.masked_fill(ignored, torch.finfo(scores.dtype).min)
    own = torch.arange(len(scores), device=scores.device)
    loss = torch.nn.functional.cross_entropy(scores, own, reduction="none")
    if not symmetric:
        return loss
    back = torch.nn.functional.cross_entropy(scores[:, : len(scores)].T, own, reduction="none")
    return (loss + back) / 2


def found(similarity: Tensor, ignored: Tensor) -> Tensor:
    """[N] 1 where the own candidate is the most alike; arguments as of `ranking`."""
    best = similarity.detach().masked_fill(ignored, -torch.inf).argmax(1)
    right: Tensor = (best == torch.arange(len(best), device=best.device)).to(similarity.dtype)
    return right


def false_negatives(similarity: Tensor, margin: float) -> Tensor:
    """[N, M] candidates that are more like the anchor than its own one by over `margin`: likely no negatives.

    Zhang et al. 2025 (arXiv:2506.05176), section 3, with a margin of 0.1.
    """
    return similarity.detach() > similarity.detach().diagonal()[:, None] + margin


def order(similarity: Tensor, target: Tensor, *, temperature: float) -> Tensor:
    """Scalar: log(1 + sum over i, j with target i > target j of exp((s_j - s_i) / temperature)); all [N].

    CoSENT (Su 2022): only the order of the targets counts.
    """
    difference = (similarity[None, :] - similarity[:, None]) / temperature
    wrong = difference.masked_fill(target[:, None] <= target[None, :], torch.finfo(difference.dtype).min)
    return torch.cat([difference.new_zeros(1), wrong.flatten()]).logsumexp(0)


def known_pairs(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """[N, M] candidates that belong to an anchor without being its own: the same text, or of the same anchor.

    Given are numbers that are equal for equal texts: [N], [N], [M - N].
    """
    candidates = torch.cat([positives, negatives])
    same = positives[:, None] == candidates[None]
    same[:, : len(anchors)] |= anchors[:, None] == anchors[None]
    return same.fill_diagonal_(False)
