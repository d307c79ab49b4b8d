"""`train.micro_batch_size: auto`: the most rows in one forward pass that fit into the memory.

The update stays what it is, so the gradient does (the engine divides by counts over the whole update). The forecast of
`core/plan.py` gives the number; on a GPU one real update then proves it, with half as many rows each time memory runs
out. A run that is continued keeps its number where it still fits, so that it ends bit-identical.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trivium.config import ResolvedRecipe
from trivium.core.plan import out_of_memory
from trivium.errors import TriviumError
from trivium.marked_yaml import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from trivium.drivers.session import Session


def with_micro_batch(resolved: ResolvedRecipe, fitting: int) -> ResolvedRecipe:
    """The recipe with a number instead of `auto`: that of an earlier call, if it still fits."""
    before = earlier(resolved)
    rows = before if before is not None and before <= fitting else fitting
    train = resolved.recipe.train.model_copy(update={"micro_batch_size": rows})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"train": train}))


def earlier(resolved: ResolvedRecipe) -> int | None:
    """The number that the run was started with, if it was started."""
    recipe = resolved.recipe
    try:
        found = read_yaml(Path(recipe.runs) / recipe.name / "config.yaml").plain()["train"]["micro_batch_size"]
    except (TriviumError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def open_fitting(resolved: ResolvedRecipe, open_session: Callable[[ResolvedRecipe], Session]) -> Session:
    """A session whose updates fit: on one GPU that is tried with a real one, which is thrown away with its session."""
    session = open_session(resolved)
    wanted = resolved.recipe.train.micro_batch_size
    if wanted != "auto" or session.device.type != "cuda" or session.processes.world > 1:
        return session
    rows = session.loader.micro_rows
    while True:
        fits = update_fits(session)
        session.close()
        del session
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if fits or rows == 1:
            return open_session(with_micro_batch(resolved, rows))
        rows //= 2
        session = open_session(with_micro_batch(resolved, rows))


def update_fits(session: Session) -> bool:
    """Whether one real update finds the memory it needs."""
    session.trainer.callbacks = []
    try:
        session.trainer.fit(until=1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True
