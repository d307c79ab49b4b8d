"""Derivatives written out by hand equal those of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trivium.models import kernels


def random(*shape: int) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).requires_grad_()


def test_rms_norm() -> None:
    x, weight = random(5, 8), random(8)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), plain)
    assert torch.autograd.gradcheck(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), (x, weight))


def test_rms_norm_with_a_frozen_weight_or_input() -> None:
    x, weight = random(5, 8), random(8)
    upstream = torch.ones(5, 8, dtype=torch.float64)
    both = torch.autograd.grad(kernels.rms_norm(x, weight, 1e-5), [x, weight], upstream)
    only_x = torch.autograd.grad(kernels.rms_norm(x, weight.detach(), 1e-5), [x], upstream)
    only_weight = torch.autograd.grad(kernels.rms_norm(x.detach(), weight, 1e-5), [weight], upstream)
    assert torch.equal(both[0], only_x[0])
    assert torch.equal(both[1], only_weight[0])


def test_rotate() -> None:
    x, angles = random(5, 3, 8), random(5, 1, 4).detach()
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), angles.sin()
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(kernels.rotate(x, cos, sin), torch.cat((pairs.real, pairs.imag), -1))
    assert torch.autograd.gradcheck(lambda x: kernels.rotate(x, cos, sin), (x,))


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
def test_gated(activation: str) -> None:
    gate, up = random(5, 8), random(8, 5).detach().T.contiguous().requires_grad_()
    torch.testing.assert_close(kernels.gated(gate, up, activation), kernels.ACTIVATIONS[activation](gate) * up)
    assert torch.autograd.gradcheck(lambda gate, up: kernels.gated(gate, up, activation), (gate, up))
