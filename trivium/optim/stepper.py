"""A torch optimiser around the update rule of a component: it keeps the state and hands over lists of tensors.

A rule changes all tensors of a list by a few kernels (`torch._foreach_*`), which on a GPU saves launches. The list is
cut into pieces, so that what a rule computes in between stays small, and on a CPU in its cache.

Weights may be sharded (FSDP2): what a rule does to each number alone needs no care; norms and means need `whole`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from trivium.lazy import is_sharded, torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

PIECE = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Numbers of one piece of the list, about."""

State = dict[str, Any]
Kind = TypeVar("Kind", bound="Optimizer")


class Rule(Protocol):
    """An update rule: a component that says how its state begins, and what one update does."""

    def start(self, parameter: Tensor) -> State:
        """The state of a parameter before its first update."""
        ...

    def update(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> None:
        """Changes parameters and states in place; `lr` and the rest of the settings are in the group.

        A rule with a method `average(parameter, state)` trains other weights than those to use: the average.
        """
        ...


def make_stepper(rule: Rule, groups: list[dict[str, Any]], *, lr: float) -> Optimizer:
    """The optimiser of a rule; `state[parameter]["step"]` counts the updates of each parameter from 1."""
    made: Optimizer = _stepper()(rule, groups, lr)
    return made


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """One of torch's optimisers that does not import torch's compiler, which takes a second and 70 MiB.

    They import it to tell it what it must not look into. Nothing here compiles an optimiser.
    """
    add_group, step = inspect.unwrap(kind.add_param_group), inspect.unwrap(kind.step)
    made = type(kind.__name__, (kind,), {"add_param_group": add_group, "step": torch.no_grad()(step)})
    return cast("type[Kind]", made)


@cache
def _stepper() -> Any:
    """The class, made when torch is there."""

    class Stepper(without_compiler(torch.optim.Optimizer)):  # type: ignore[misc]
        def __init__(self, rule: Rule, groups: list[dict[str, Any]], lr: float) -> None:
            super().__init__(groups, {"lr": lr})
            self.rule = rule

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            """One update of everything that has a gradient."""
            for group in self.param_groups:
                for parameters in pieces([p for p in group["params"] if p.grad is not None]):
                    for parameter in parameters:
                        state = self.state[parameter]
                        if not state:
                            state.update(step=0, **self.rule.start(parameter))
                        state["step"] += 1
                    gradients = [parameter.grad for parameter in parameters]
                    self.rule.update(list(parameters), gradients, [self.state[p] for p in parameters], group)  # type: ignore[arg-type]

        @property
        def averaging(self) -> bool:
            """Whether the rule trains other weights than those to use."""
            return hasattr(self.rule, "average")

        def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
            """The weights to use."""
            for parameter, state in self.state.items():
                yield parameter, self.rule.average(parameter, state)  # type: ignore[attr-defined]

    return Stepper


def pieces(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The list in pieces, in order, each of one data type on one device."""
    piece: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        most = PIECE.get(parameter.device.type, PIECE["cuda"])
        other = piece and (piece[0].device, piece[0].dtype) != (parameter.device, parameter.dtype)
        if piece and (other or size + parameter.numel() > most):
            yield piece
            piece, size = [], 0
        piece.append(parameter)
        size += parameter.numel()
    if piece:
        yield piece


def own(tensors: list[Tensor]) -> list[Tensor]:
    """This rank's parts of tensors, which share their memory; those that are not sharded stay as they are.

    For kernels that torch 2.11 has for whole tensors only, and what they do to each number alone. The gradient and the
    state of a parameter are sharded as it is.
    """
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; a collective call there, and nothing elsewhere."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """This rank's part of a whole tensor that all ranks have, laid out like `pattern`."""
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = pattern.device_mesh
    replicated = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, pattern.placements)
