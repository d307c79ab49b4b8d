"""An exponential moving average of the policy's weights (Polyak & Juditsky 1992), kept beside those that train.

    average <- decay * average + (1 - decay) * weights,   decay = min(decay, (1 + n) / (10 + n)) in update n

It observes: training is the same with or without it. Validation, samples and `final` can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trivium.core.callbacks import Callback
from trivium.core.distributed import by_layout, shard_like

if TYPE_CHECKING:
    from trivium.core.engine import Engine, StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer
    from trivium.recipe import EmaSettings


class MovingAverage(Callback):
    """Follows the weights of the policy; part of the run's state."""

    def __init__(self, settings: EmaSettings, engine: Engine) -> None:
        """`engine` is asked for the weights that train, and given the average for its validations."""
        self.settings = settings
        self.engine = engine
        self.player, self.named = next(
            (name, {key: one for key, one in player.named.items() if key.startswith("policy.")})
            for name, player in engine.players.items()
            if any(key.startswith("policy.") for key in player.named)
        )
        self.weights: dict[str, Tensor] = {name: one.detach().clone() for name, one in self.named.items()}
        self.updates = 0
        self.whole: dict[str, Any] = {}
        engine.moving_average = self

    @torch.no_grad()
    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """Moves the average; skipped updates, and those of other players, move nothing."""
        self.whole = {}
        if not result.finite or update.player != self.player:
            return
        self.updates += 1
        decay = self.settings.decay
        if self.settings.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        for names in by_layout(self.weights):
            averages, weights = ([tensors[name] for name in names] for tensors in (self.weights, self.named))
            torch._foreach_lerp_(averages, [one.detach() for one in weights], 1 - decay)

    def averages(self, use: str) -> dict[nn.Parameter, Tensor]:
        """The averages by the parameters that they stand for, if they are wanted for this use."""
        wanted = {"validation": self.settings.validation, "final": self.settings.final}
        if not wanted.get(use, False):
            return {}
        return {self.named[name]: average for name, average in self.weights.items()}

    def before_save(self, trainer: Trainer) -> None:
        """Gathers the shards, which every rank must do."""
        self.whole = self.engine.collected(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The average by name, whole; in one process also without `before_save`."""
        return {"updates": self.updates, "weights": self.whole or self.engine.collected(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.updates = state["updates"]
        for name, average in self.weights.items():
            average.copy_(shard_like(state["weights"][name], average))
