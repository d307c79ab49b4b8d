"""Saving and restoring a run: the policy as a servable model folder, and beside it all that continues it exactly.

    model/         a Hugging Face model folder with its tokenizer
    roles/<name>/  the other trainable roles
    train/         `state` (progression, method) and `optimizer-<player>`: tensors and JSON only

Weights are stored whole and by name, so a run continues on another number of ranks or under another engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trivium.artifacts.tensors import load_state, save_state
from trivium.artifacts.writer import DiskFull
from trivium.errors import TrainingDiverged
from trivium.models.adapter_folder import adapter_values, is_adapter, save_adapters
from trivium.models.folder import load_model, save_model
from trivium.models.transform import adapters_of

if TYPE_CHECKING:
    from trivium.artifacts.checkpoints import CheckpointStore
    from trivium.artifacts.record import Parent
    from trivium.core.trainer import Trainer
    from trivium.models.transformer import Transformer


class Checkpoints:
    """Writes and reads the checkpoints of one run; called by every rank, writes on the main one."""

    def __init__(self, store: CheckpointStore, *, parents: list[Parent], config: dict[str, Any], seed: int) -> None:
        self.store = store
        self.parents = parents
        self.config = config
        self.seed = seed

    def save(self, trainer: Trainer) -> None:
        """Commits the present state; gathers sharded weights, so every rank must call it."""
        engine = trainer.engine
        optimizers = {name: engine.optimizer_state(name) for name in engine.players}
        with engine.averaged("checkpoint"):
            self.write(trainer, optimizers)
        trainer.processes.barrier()

    def write(self, trainer: Trainer, optimizers: dict[str, dict[str, Any]]) -> None:
        """Weights as they are now (they are not copied), and the states."""
        weights = {name: trainer.engine.weights(name) for name, role in trainer.engine.roles.items() if role.trainable}
        if not trainer.processes.main:
            return
        for name, tensors in weights.items():
            refuse_nonfinite(name, tensors)

        def fill(folder: Path) -> None:
            for name, tensors in weights.items():
                place = folder / "model" if name == "policy" else folder / "roles" / name
                place.mkdir(parents=True)
                write_model_files(trainer, name, tensors, place, training=True)
            (folder / "train").mkdir()
            save_state(folder / "train", "state", trainer.state.state_dict())
            for name, state in optimizers.items():
                save_state(folder / "train", f"optimizer-{name}", state)

        self.commit(trainer, fill)

    def commit(self, trainer: Trainer, fill: Callable[[Path], None]) -> None:
        """Writes the checkpoint; a full disk costs a checkpoint, not the run, while there is still a later chance."""
        step = trainer.progression.step
        try:
            self.store.save(step, fill, parents=self.parents, config=self.config, seed=self.seed)
        except DiskFull as error:
            if step >= trainer.total or trainer.stop_signal is not None:
                raise
            print(f"update {step} was not saved, training goes on: {error}", file=sys.stderr)

    def restore(self, trainer: Trainer) -> Path | None:
        """Loads the newest checkpoint that verifies, on every rank; None if there is none."""
        found: Path | None = self.store.latest() if trainer.processes.main else None
        found = trainer.processes.from_main(found)
        if found is None:
            return None
        trainer.state.load_state_dict(load_state(found / "train", "state"))
        for name, role in trainer.engine.roles.items():
            if role.trainable:
                place = found / "model" if name == "policy" else found / "roles" / name
                trainer.engine.load_weights(name, read_weights(place, role.module))
        for name in trainer.engine.players:
            trainer.engine.load_optimizer_state(name, load_state(found / "train", f"optimizer-{name}"))
        trainer.saved_step = trainer.progression.step
        return found


def write_model_files(
    trainer: Trainer, role: str, weights: dict[str, torch.Tensor], folder: Path, *, training: bool = False
) -> None:
    """Model, or its adapters, and tokenizer into a folder inside an artifact that is being written.

    training: with what only a run that continues needs.
    """
    module = trainer.engine.roles[role].module
    if adapters_of(module):
        save_adapters(folder, module, weights, training=training)
    else:
        save_model(folder, module.config, weights)
    trainer.context.tokenizer.save(folder)


def read_weights(folder: Path, model: Transformer) -> dict[str, torch.Tensor]:
    """Weights of a model folder by this package's own names; where it holds adapters of `model`, only what trains."""
    if is_adapter(folder):
        return adapter_values(folder, model)
    return dict(load_model(folder).state_dict())


def refuse_nonfinite(role: str, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint with NaN or infinity in it would only look like progress."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingDiverged(
                f"the weight {name} of {role} is not finite any more; it was not saved",
                where="train.lr",
                fix="continue from the last checkpoint's model folder with a lower train.lr",
            )
