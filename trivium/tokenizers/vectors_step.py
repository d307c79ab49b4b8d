"""One update of skip-gram or CBOW with negative sampling (Mikolov et al., 2013, arXiv 1301.3781 and 1310.4546).

For each centre word o and context word i in its window skip-gram minimises, and CBOW for the mean of the context,

    -log sigmoid(x_i . y_o) - sum over K words n ~ noise, n != o, of log sigmoid(-x_i . y_n)

A batch is made of S streams that read S places of the corpus: [S, T] centres with w words of context on each side.
Two changes make it products of matrices instead of single vectors; neither changes the expected gradient:

* Inputs of many streams share M noise words, each with the weight K / M. Inputs that share come from different places
  of the corpus, so their sum is close to what it is over the whole corpus.
* A noise word that happens to be the centre is not looked for: the gradient it adds on average is subtracted instead.

Shapes: S streams, T centres, R = T + 2w rows, D width, V words, G groups that share M noise words each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Rates = Callable[[Tensor], Tensor]
"""[n] word numbers -> [n] the learning rate of each."""

GROUP = 128
"""Centres that share noise words in CBOW. Skip-gram shares them among the rows at the same place of their stream."""


@dataclass(frozen=True)
class Step:
    """One batch.

    rows:      [S, R] word numbers of the inputs.
    centres:   [S, T] word numbers of the centres.
    pairs:     [S, T, R] 1 where the row is in the window of the centre, else 0.
    negatives: [G, M] noise words.
    """

    rows: Tensor
    centres: Tensor
    pairs: Tensor
    negatives: Tensor


def shared(architecture: str, negatives: int, streams: int, centres: int, rows: int) -> tuple[int, int]:
    """(G, M): how many noise words a batch draws; three for each one wanted are enough for an accurate sum."""
    groups = rows if architecture == "skipgram" else max(1, streams * centres // GROUP)
    return groups, 3 * negatives + 1


def skipgram(inputs: Tensor, outputs: Tensor, step: Step, hits: Tensor, *, negatives: int, rates: Rates) -> None:
    """Update `inputs` [V, D] and `outputs` [V, D] in place.

    hits: [V] how many of the `negatives` noise words of a pair are, on average, each word.
    """
    streams, rows = step.rows.shape
    centres, width = step.centres.shape[1], inputs.shape[1]
    row, centre, noise = step.rows.reshape(-1), step.centres.reshape(-1), step.negatives.view(-1)
    x = inputs.index_select(0, row).view(streams, rows, width)
    y = outputs.index_select(0, centre).view(streams, centres, width)
    n = outputs.index_select(0, noise).view(*step.negatives.shape, width)
    less = (1 - hits).index_select(0, centre).view(streams, centres, 1)
    # Gradients with respect to the scores.
    g = torch.bmm(y, x.transpose(1, 2)).sigmoid_().mul_(less).sub_(1).mul_(step.pairs)
    across = x.transpose(0, 1)
    weight = step.pairs.sum(1).t().unsqueeze(2) * (negatives / n.shape[1])
    h = torch.bmm(across, n.transpose(1, 2)).sigmoid_().mul_(weight)
    change = torch.bmm(g.transpose(1, 2), y).add_(torch.bmm(h, n).transpose(0, 1))
    _descend(outputs, centre, torch.bmm(g, x), rates)
    _descend(outputs, noise, torch.bmm(h.transpose(1, 2), across), rates)
    _descend(inputs, row, change, rates)


def cbow(inputs: Tensor, outputs: Tensor, step: Step, hits: Tensor, *, negatives: int, rates: Rates) -> None:
    """As `skipgram`. The gradient of a mean is shared among its words, so it is the gradient of the loss above.

    (The original program adds the whole of it to each word; Irsoy et al., 2021, show what that costs.)
    """
    streams, centres = step.centres.shape
    width, groups = inputs.shape[1], step.negatives.shape[0]
    row, centre, noise = step.rows.reshape(-1), step.centres.reshape(-1), step.negatives.view(-1)
    x = inputs.index_select(0, row).view(streams, -1, width)
    y = outputs.index_select(0, centre)
    n = outputs.index_select(0, noise).view(*step.negatives.shape, width)
    size = step.pairs.sum(2, keepdim=True)
    share = step.pairs / size.clamp(min=1)
    there = (size > 0).to(x.dtype).view(-1)
    mean = torch.bmm(share, x).view(-1, width)
    g = torch.linalg.vecdot(mean, y).sigmoid_().mul_((1 - hits).index_select(0, centre)).sub_(1).mul_(there)
    grouped = mean.view(groups, -1, width)
    weight = there.view(groups, -1, 1) * (negatives / n.shape[1])
    h = torch.bmm(grouped, n.transpose(1, 2)).sigmoid_().mul_(weight)
    change = torch.baddbmm(y.mul_(g[:, None]).view(groups, -1, width), h, n).view(streams, centres, width)
    _descend(outputs, noise, torch.bmm(h.transpose(1, 2), grouped), rates)
    _descend(outputs, centre, mean.mul_(g[:, None]), rates)
    _descend(inputs, row, torch.bmm(share.transpose(1, 2), change), rates)


def _descend(table: Tensor, words: Tensor, gradient: Tensor, rates: Rates) -> None:
    """Add up the changes of each word; `gradient` is used up."""
    change = gradient.view(len(words), -1).mul_(rates(words).neg_()[:, None])
    table.index_add_(0, words, change)


STEPS = {"skipgram": skipgram, "cbow": cbow}


def loss(architecture: str, inputs: Tensor, outputs: Tensor, step: Step, hits: Tensor, *, negatives: int) -> Tensor:
    """What the update descends, summed over the batch: its gradient is that of the step, exactly."""
    x = inputs[step.rows]
    y, n = outputs[step.centres], outputs[step.negatives]
    h = hits[step.centres]
    if architecture == "skipgram":
        score = torch.einsum("srd,std->str", x, y)
        positive = -logsigmoid(score) + h.unsqueeze(2) * logsigmoid(-score)
        noise = -logsigmoid(-torch.einsum("srd,rmd->srm", x, n)).mean(2) * step.pairs.sum(1)
        return (positive * step.pairs).sum() + negatives * noise.sum()
    size = step.pairs.sum(2)
    mean = torch.einsum("str,srd->std", step.pairs, x) / size.clamp(min=1).unsqueeze(2)
    there = (size > 0).to(x.dtype)
    score = (mean * y).sum(2)
    positive = -logsigmoid(score) + h * logsigmoid(-score)
    grouped = mean.reshape(len(n), -1, mean.shape[2])
    noise = -logsigmoid(-torch.einsum("gcd,gmd->gcm", grouped, n)).mean(2)
    return (positive * there).sum() + negatives * (noise.view_as(there) * there).sum()


def predictions(architecture: str, step: Step) -> float:
    """Terms in `loss`: pairs of skip-gram, centres with a context of CBOW."""
    counted = step.pairs if architecture == "skipgram" else step.pairs.sum(2) > 0
    return float(counted.sum())
