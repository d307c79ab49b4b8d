"""Logistic regression on vectors that do not change any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def fit_logistic(features: Tensor, labels: Tensor, classes: int, *, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """(weight [classes, D], bias [classes]) for features [N, D] and labels [N], both in the features' type.

    Minimises the summed cross-entropy plus penalty / 2 times the squared weights of standardised features, in float64
    by L-BFGS; the same minimum as scikit-learn's LogisticRegression with C = 1 / penalty on standardised features.
    """
    given = features.detach().double()
    mean, spread = given.mean(0), given.std(0, correction=0).clamp(min=1e-8)
    scaled = (given - mean) / spread
    weight = torch.zeros(classes, given.shape[1], dtype=torch.float64, device=given.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=given.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        loss = torch.nn.functional.cross_entropy(scaled @ weight.T + bias, labels, reduction="sum")
        loss = loss + penalty / 2 * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return float(loss.detach())

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    plain = weight.detach() / spread
    return plain.to(features.dtype), (bias.detach() - plain @ mean).to(features.dtype)
