"""Results that are made again in the backward pass, from what is kept anyway, rather than kept for it too.

A norm keeps its input. The layers that read its result would keep that as well, for the gradients of their weights:
two of the ten or so tensors that a block keeps. Made again they cost one pass over the input, and each norm once: the
first layer of a backward pass that wants the result makes it, and the backward pass of the norm, which comes after
all of them, lets it go.

Only functions of ours that were told so ask for it (`kept`); for every other reader the result is a tensor like any.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_NAME = "trivium_made_from"


class Again:
    """Makes a result from its sources by `make`, once for all who ask until it is forgotten."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        self.made: Tensor | None = None

    def __call__(self, *sources: Tensor) -> Tensor:
        """The result; without a derivative, so called from backward passes only."""
        if self.made is None:
            self.made = self.make(*sources)
        return self.made

    def forget(self) -> None:
        """Lets the result go."""
        self.made = None


def mark(result: Tensor, again: Again, *sources: Tensor | None) -> Tensor:
    """`result`, which `again` makes of `sources`: what is kept instead of it, so it should be kept anyway.

    The backward pass of the function that gave `result` calls `again.forget`. What needs no gradient has none, and is
    not marked.
    """
    if result.requires_grad:
        setattr(result, _NAME, (again, sources, result._version))
    return result


def is_marked(x: Tensor) -> bool:
    """Whether x can be made again: it has not been written to since."""
    found = getattr(x, _NAME, None)
    return found is not None and found[2] == x._version


def kept(x: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """(function, tensors): what to keep for the backward pass instead of x, and what makes x of it."""
    if not is_marked(x):
        return _same, (x,)
    again, sources, _ = getattr(x, _NAME)
    return again, sources


def _same(x: Tensor) -> Tensor:
    return x
