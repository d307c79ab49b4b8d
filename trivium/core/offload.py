"""Memory of the processor in the place of the accelerator's: for optimisers, and for what a backward pass needs.

`Twins` are copies of the parameters in the processor's memory. The optimiser moves them there, with its state beside
them; each update fetches the gradients and brings the weights back (Ren et al. 2021, arXiv 2101.06840).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 14
"""Numbers of a tensor from which moving it is worth the trouble."""


class Twins:
    """Parameters in the processor's memory, by the names of those they stand for."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.originals = named
        self.named = {name: nn.Parameter(_beside(one.detach())) for name, one in named.items()}
        self.read()

    @torch.no_grad()
    def read(self) -> None:
        """Takes the weights of the originals."""
        for name, twin in self.named.items():
            twin.copy_(self.originals[name])

    def take_gradients(self) -> None:
        """Takes the gradients of the originals."""
        for name, twin in self.named.items():
            gradient = self.originals[name].grad
            twin.grad = None if gradient is None else _beside(gradient).copy_(gradient)

    @torch.no_grad()
    def give_weights(self) -> None:
        """Gives the originals the weights."""
        for name, twin in self.named.items():
            self.originals[name].copy_(twin, non_blocking=True)
            twin.grad = None


def _beside(tensor: Tensor) -> Tensor:
    """Room for a tensor in the processor's memory, from which an accelerator reads fast."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda")


def activations_beside() -> AbstractContextManager[Any]:
    """Inside, what the backward pass needs waits in the processor's memory; weights stay where they are."""

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        base = tensor if tensor._base is None else tensor._base
        if isinstance(base, nn.Parameter) or tensor.numel() < SMALLEST:
            return tensor.device, tensor
        return tensor.device, _beside(tensor).copy_(tensor)

    def unpack(kept: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = kept
        return tensor.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def recompute(module: nn.Module) -> None:
    """Makes a module keep its inputs only, and compute the rest again in the backward pass."""
    original = module.forward

    def forward(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*given, **named)
        return torch.utils.checkpoint.checkpoint(original, *given, use_reentrant=False, **named)

    module.forward = forward


def idle_offload(offload: str, device: torch.device) -> str | None:
    """A warning if there is nothing to offload from, else None."""
    if offload == "none" or device.type != "cpu":
        return None
    return f"train.offload={offload} saves nothing on a CPU, whose memory it is that would be used"
