"""The proof that frozen weights kept every bit, and blocks that begin to train during the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trivium.core.callbacks import Callback

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer
    from trivium.models.transformer import Transformer


def frozen_hash(module: Transformer) -> tuple[int, str]:
    """(number, SHA-256) of the parameters that never train, in the order of the model."""
    digest, count = hashlib.sha256(), 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or any(t.trains_later(name, module) for t in module.transforms):
            continue
        flat = parameter.detach().to("cpu").contiguous().view(-1)
        digest.update(name.encode() + b"\0")
        digest.update(flat.view(torch.uint8).numpy().data)
        count += parameter.numel()
    return count, digest.hexdigest()


class FrozenProof(Callback):
    """Hashes what is frozen before the first update and after the last one.

    known: what an earlier process of the same run found (`parameters`, `before`); write keeps what is found.
    """

    def __init__(self, known: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        self.known = known
        self.write = write

    def start(self, trainer: Trainer) -> None:
        """Hashes what the run begins with, once."""
        if not self.known:
            count, digest = frozen_hash(trainer.engine.roles["policy"].module)
            self.known = {"parameters": count, "before": digest}
            self.write(self.known)

    def finish(self, trainer: Trainer) -> None:
        """Hashes what is there at the end; a difference is a defect of this package."""
        _, digest = frozen_hash(trainer.engine.roles["policy"].module)
        self.write({**self.known, "after": digest, "identical": digest == self.known["before"]})
        assert digest == self.known["before"], "a frozen weight has changed"


class Release(Callback):
    """Lets further parts of the model train as the run goes on (gradual unfreezing); a function of the update only."""

    def start(self, trainer: Trainer) -> None:
        """What trains in the next update."""
        self.release(trainer)

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """What trains in the next update."""
        self.release(trainer)

    def end(self, trainer: Trainer) -> None:
        """All that trains at some time trains again, for whoever comes next."""
        self.release(trainer, everything=True)

    def release(self, trainer: Trainer, *, everything: bool = False) -> None:
        """Switches the gradients of parameters that train only from some update on."""
        module, step = trainer.engine.roles["policy"].module, trainer.progression.step
        for name, parameter in module.named_parameters():
            updates = [update for t in module.transforms if (update := t.trains_from(name, module)) is not None]
            if updates:
                parameter.requires_grad_(everything or step >= min(updates))
