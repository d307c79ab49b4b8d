"""Losses on hidden states: the only place where logits over the whole vocabulary exist, a chunk at a time.

Full logits [T, V] and their gradient are most of the memory of a training step, and nothing but one number for each
token is wanted from them. Both functions walk over chunks of tokens small enough to stay in the processor's cache.
Positions without a target never reach the matrix product. Softmax is computed in float32 at least.

Shapes: T tokens, N trained tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trivium.data.batch import IGNORE
from trivium.models import native_elementwise as native
from trivium.models.heads import LanguageHead
from trivium.models.products import linear, product

CHUNKS = {"cpu": (256, 1 << 21), "cuda": (1024, 1 << 27)}
"""Least number of tokens in a chunk, and the number of logits it is filled up to, by kind of device.

On a CPU the chunk should stay in the cache, on a GPU fill the machine; with fewer tokens than the least, the time
goes into reading the weights again and again.
"""


def token_loss(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    measures: Tensor | None = None,
) -> Tensor:
    """Sum over trained positions of -log p(target), each times its weight; a scalar in float32 (or float64).

    hidden:  [T, D]. head: the output layer, `weight` [V, D] and an optional `bias` [V]; see `trivium.models.heads` for
             its optional `transform` of the hidden states and `softcap` on the logits.
    targets: [T] int64, IGNORE where nothing is trained. weights: [T] constants (no gradient flows into them).
    label_smoothing: share e of the target that is spread over the vocabulary: -(1 - e) log p(target) - e mean(log p)
             (Szegedy et al. 2016, arXiv:1512.00567, as in torch's cross-entropy).
    z_loss:   factor of the square of log(sum of exp of the logits), which keeps logits from drifting (Chowdhery et al.
              2022, arXiv:2204.02311); weighted as the rest.
    measures: [3] sums over the trained positions are added to it, without their weights: -log p(target), whether the
              target is the likeliest token, and the entropy of the prediction in nats.

    The gradient is computed together with the value, in one pass over the logits, and only scaled in the backward
    pass. With nothing trained the result is 0, still attached to the graph.
    """
    if _transforms(head):
        trained = targets != IGNORE
        hidden, targets = head.transform(hidden[trained]), targets[trained]  # type: ignore[operator]
        weights = None if weights is None else weights[trained]
    matrix, bias = _matrix(head)
    wanted = torch.is_grad_enabled()
    need = tuple(wanted and x is not None and x.requires_grad for x in (hidden, matrix, bias))
    settings = _Settings(need, getattr(head, "softcap", None), label_smoothing, z_loss, measures)
    loss: Tensor = _TokenLoss.apply(hidden, matrix, bias, targets, weights, settings)  # type: ignore[no-untyped-call]
    return loss


def token_logprobs(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """[T] log p(target) of each position, 0 where the target is IGNORE; float32 (or float64).

    Any gradient may come back; the logits are computed a second time for it. Arguments as in `token_loss`.
    """
    if _transforms(head):
        trained = (targets != IGNORE).nonzero().squeeze(1)
        some = _logprobs(head.transform(hidden[trained]), head, targets[trained])  # type: ignore[operator]
        return some.new_zeros(targets.shape).index_copy(0, trained, some)
    return _logprobs(hidden, head, targets)


def _logprobs(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    result: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, *_matrix(head), targets, getattr(head, "softcap", None)
    )
    return result


def _transforms(head: nn.Module) -> bool:
    """Whether the head changes the hidden states first; only the trained ones need that."""
    return bool(getattr(head, "has_transform", False))


def _matrix(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight = head.matrix if isinstance(head, LanguageHead) else head.weight
    bias = getattr(head, "bias", None)
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    return weight, bias


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the matrix products: autocast's inside of an autocast region."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def trained_chunks(targets: Tensor, vocabulary: int) -> Iterator[Tensor]:
    """Places of the trained tokens, a chunk at a time."""
    least, logits = CHUNKS.get(targets.device.type, CHUNKS["cpu"])
    index = (targets != IGNORE).nonzero().squeeze(1)
    return iter(torch.split(index, max(least, logits // vocabulary))) if len(index) else iter(())


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """([N, V] logits, their derivative where they are bounded, else None)."""
    logits = linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))
    if softcap is None:
        return logits, None
    bounded = torch.tanh(logits / softcap)
    return bounded * softcap, 1 - bounded.square()


class _Softmax(NamedTuple):
    """chances: [N, V] probabilities. picked: [N, 1] log-probability of each goal. right: [N, 1] whether no other token
    is likelier. entropy: of all rows together, in nats; None where it was not asked for."""

    chances: Tensor
    picked: Tensor
    right: Tensor
    entropy: Tensor | None


def _softmax(logits: Tensor, goal: Tensor, *, keep: bool = False, measured: bool = False) -> _Softmax:
    """In float32 at least. Where they need not be kept it is written over the logits [N, V]: fresh memory costs more.

    goal: [N, 1]. measured: the entropy is wanted.
    """
    if not keep and native.suits(logits):
        picked, right, entropies = native.softmax_(logits, goal)
        return _Softmax(logits, picked, right, entropies.sum())
    wide = torch.promote_types(logits.dtype, torch.float32)
    top = logits.amax(1, keepdim=True)
    wanted = logits.gather(1, goal)
    overwrites = not (keep or measured) and logits.dtype == wide and logits.device.type == "cpu"
    chances = torch.softmax(logits, dim=-1, dtype=wide, out=logits if overwrites else None)
    picked = (wanted.to(wide) - top.to(wide)) + chances.amax(1, keepdim=True).log()
    entropy = None
    if measured:
        logsum = wanted.to(wide) - picked
        entropy = logsum.sum() - torch.dot(chances.flatten(), logits.to(wide).flatten())
    return _Softmax(chances, picked, wanted >= top, entropy)


def _changed(
    picked: Tensor, logits: Tensor, goal: Tensor, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor | None]:
    """([N, 1] log-probability with smoothing and without a drift, [N, 1] factor of the probabilities in its slope)."""
    logsum = logits.gather(1, goal).to(picked.dtype) - picked
    value = picked
    if smoothing:
        value = value * (1 - smoothing) + (logits.mean(1, keepdim=True, dtype=picked.dtype) - logsum) * smoothing
    return (value - z_loss * logsum.square(), 1 + 2 * z_loss * logsum) if z_loss else (value, None)


class _Gradients:
    """Sums of the gradients wanted, over the chunks."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, need: tuple[bool, ...]) -> None:
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = torch.zeros_like(hidden) if need[0] else None
        self.like = weight if need[1] else None
        self.weight: Tensor | None = None
        self.bias = bias.new_zeros(bias.shape, dtype=self.wide) if need[2] and bias is not None else None

    def add(self, index: Tensor, logits: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor | None = None) -> None:
        """Account for one chunk: `logits` [N, V] is the gradient of the logits, `hidden` [N, D] their input.

        scale: [N, 1] what the gradient is still to be multiplied by.
        """
        narrow = logits.to(weight.dtype)
        if self.hidden is not None:
            passed = product(narrow, weight)
            self.hidden[index] = (passed if scale is None else passed * scale).to(self.hidden.dtype)
        if self.like is not None:
            scaled = hidden if scale is None else (hidden * scale).to(hidden.dtype)
            if self.weight is None:
                self.weight = (narrow.t() @ scaled).to(self.wide)
            elif self.wide == weight.dtype:
                self.weight.addmm_(narrow.t(), scaled)
            else:
                self.weight += narrow.t() @ scaled
        if self.bias is not None:
            self.bias += logits.sum(0) if scale is None else (logits * scale).sum(0)

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.like is not None and self.weight is None:  # nothing is trained
            self.weight = torch.zeros_like(self.like, dtype=self.wide)
        return self.hidden, self.weight, self.bias


class _Settings(NamedTuple):
    """Arguments of `token_loss`; need: whether gradients of (hidden, weight, bias) are wanted."""

    need: tuple[bool, ...]
    softcap: float | None
    smoothing: float
    z_loss: float
    measures: Tensor | None


def _chunk_loss(
    inputs: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    goal: Tensor,
    scale: Tensor | None,
    at: Tensor,
    gradients: _Gradients,
    settings: _Settings,
) -> Tensor:
    """The loss of one chunk, a scalar; adds to its gradients and measures.

    inputs: [N, D]. goal: [N, 1]. scale: [N, 1] weights. at: [N] places. A function, so that the logits of a chunk are
    gone before those of the next one are made.
    """
    need, softcap, smoothing, z_loss, measures = settings
    logits, bounded = _logits(inputs, matrix, bias, softcap)
    found = _softmax(logits, goal, keep=bool(smoothing or z_loss), measured=measures is not None)
    picked = found.picked
    if measures is not None:
        assert found.entropy is not None
        measures[0] -= picked.sum()
        measures[1] += found.right.sum()
        measures[2] += found.entropy
    value, grown = picked, None
    if smoothing or z_loss:
        value, grown = _changed(picked, logits, goal, smoothing, z_loss)
    if any(need):
        slope = found.chances if grown is None else found.chances.mul_(grown)
        slope.scatter_add_(1, goal, slope.new_full(goal.shape, smoothing - 1.0))
        if smoothing:
            slope -= smoothing / slope.shape[1]
        gradients.add(at, slope if bounded is None else slope.mul_(bounded), inputs, matrix, scale)
    return -(value if scale is None else value * scale).sum()


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        gradients = _Gradients(hidden, weight, bias, settings.need)
        loss = torch.zeros((), dtype=gradients.wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for at in trained_chunks(targets, weight.shape[0]):
                inputs, goal = hidden[at].to(dtype), targets[at].unsqueeze(1)
                scale = None if weights is None else weights[at].to(loss.dtype).unsqueeze(1)
                loss += _chunk_loss(inputs, matrix, bias, goal, scale, at, gradients, settings)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.gradients = gradients.all()
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        if ctx.gradients is None:
            raise RuntimeError("the gradient of this loss was used up: pass retain_graph=True to the first backward()")
        gradients = ctx.gradients
        again = _graph_is_kept()
        if not again:
            # The gradient of a large head is scaled where it lies: a copy of it would be the peak of memory.
            ctx.gradients = None
        scaled = [
            None if gradient is None else (gradient * scale if again else gradient.mul_(scale)).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def _graph_is_kept() -> bool:
    """In a backward pass: whether another one may follow (`retain_graph`); True where torch does not say."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        ctx.dtype, ctx.softcap = _compute_dtype(hidden), softcap
        ctx.save_for_backward(hidden, weight, bias, targets)
        result = torch.zeros(
            targets.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(ctx.dtype)
            for at in trained_chunks(targets, weight.shape[0]):
                logits, _ = _logits(hidden[at].to(ctx.dtype), matrix, bias, softcap)
                result[at] = _softmax(logits, targets[at].unsqueeze(1)).picked.squeeze(1)
                del logits  # before those of the next chunk are made
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (incoming,) = upstream
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        matrix = weight.to(ctx.dtype)
        for at in trained_chunks(targets, weight.shape[0]):
            inputs, goal = hidden[at].to(ctx.dtype), targets[at].unsqueeze(1)
            logits, bounded = _logits(inputs, matrix, bias, ctx.softcap)
            slope = _softmax(logits, goal).chances
            slope.scatter_add_(1, goal, slope.new_full(goal.shape, -1.0))
            slope = slope if bounded is None else slope.mul_(bounded)
            gradients.add(at, slope, inputs, matrix, -incoming[at].unsqueeze(1))
            del logits, slope, bounded
        dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        own = [None if g is None else g.to(d) for g, d in zip(gradients.all(), dtypes, strict=True)]
        return *own, None, None
