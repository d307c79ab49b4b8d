"""The loop: every training method runs through `Trainer.fit`, and none needs a branch in it.

One turn is one optimiser update: count the units over the whole update, let the engine run it, advance the state, tell
the callbacks, save if it is time. A run is saved only at update boundaries (`Update.boundary`).

Stopping (SIGTERM, Ctrl-C) has one rule: a rollout that is being prepared has changed nothing and is abandoned; the
updates of a finished rollout are completed; then the state is saved and the loop is left with `Interrupted`.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trivium.core.callbacks import Callback, due
from trivium.core.distributed import Processes
from trivium.core.engine import Engine, StepResult
from trivium.core.method import Context, Method, RolloutAbandoned, Update
from trivium.core.state import Progression, RunState
from trivium.errors import DataError, Interrupted, TrainingDiverged
from trivium.optim.schedule import learning_rate
from trivium.recipe import SamplePrompt, TrainSection


class Trainer:
    """Runs a bound method on an engine from the state it is given to the end of the run.

    total:  updates of the whole run; the schedule is a function of it.
    save:   commits a checkpoint of the current state; called by every rank.
    sample: continues prompts with the policy; called by every rank.
    """

    def __init__(
        self,
        method: Method,
        engine: Engine,
        context: Context,
        *,
        total: int,
        callbacks: Sequence[Callback] = (),
        save: Callable[[Trainer], None] = lambda trainer: None,
        sample: Callable[[list[SamplePrompt], int], list[str]] = lambda prompts, tokens: [],
        resume_hint: str = "run the same command again; it continues from the last checkpoint",
    ) -> None:
        self.method = method
        self.engine = engine
        self.context = context
        self.total = total
        self.callbacks = list(callbacks)
        self.save = save
        self.sample = sample
        self.resume_hint = resume_hint
        self.state = RunState()
        self.state.register("progression", context.progression)
        self.state.register("method", method)
        self.validation: dict[str, float] = {}
        self.lr = 0.0
        self.stop_signal: str | None = None
        self.saved_step = -1
        method.bind(context)
        context.stop_requested = self.stop_during_rollout

    @property
    def progression(self) -> Progression:
        """Where the run is."""
        return self.context.progression

    @property
    def processes(self) -> Processes:
        """This process among those of the run."""
        return self.engine.processes

    @property
    def settings(self) -> TrainSection:
        """The `train` section of the recipe."""
        return self.context.recipe.train

    def fit(self, *, until: int | None = None) -> None:
        """Runs updates until `until` (default: the end of the run) at the next boundary.

        Raises Interrupted after a stop signal, TrainingDiverged after too many non-finite updates.
        """
        end = self.total if until is None else min(until, self.total)
        if self.progression.step >= end:
            return
        with self.signals(), self.observed():
            try:
                for update in self.updates():
                    self.advance(update)
                    if not update.boundary:
                        continue
                    stop = self.processes.any(self.stop_signal is not None, self.engine.device)
                    done = self.progression.step >= end
                    good = not self.progression.consecutive
                    if (
                        stop
                        or done
                        or (good and due(self.progression.step, self.settings.checkpoint_every, self.total))
                    ):
                        self.commit()
                    if done:
                        return
                    if stop:
                        self.leave()
            except RolloutAbandoned:
                self.commit()
                self.leave()

    def updates(self) -> Iterator[Update]:
        """The method's updates; what it draws between two of them depends on the update only, not on a resume."""
        updates = self.method.updates()
        while True:
            torch.manual_seed(self.context.seed("updates"))
            update = next(updates, None)
            if update is None:
                return
            yield update

    def advance(self, update: Update) -> None:
        """One update: count, run, advance the state, tell the callbacks."""
        progression = self.progression
        counts = self.engine.count(update)
        self.lr = learning_rate(progression.step, self.settings, self.total)
        if any(counts.values()):
            result = self.engine.run(update, counts, step=progression.step, lr=self.lr)
        else:
            result = StepResult(0.0, {}, 0.0, finite=True)
            progression.empty += 1
        tokens = int(counts.get("tokens", sum(batch.tokens for batch in update.batches)))
        progression.step += 1
        progression.tokens += tokens
        progression.skipped += not result.finite
        progression.consecutive = 0 if result.finite or result.overflow else progression.consecutive + 1
        for callback in self.callbacks:
            callback.update_end(self, update, result, tokens)
        self.refuse_nonsense(result)

    def refuse_nonsense(self, result: StepResult) -> None:
        """Stops a run that learns nothing, before it overwrites what was good."""
        progression = self.progression
        if progression.consecutive > self.settings.max_nonfinite:
            cause = "the loss" if not math.isfinite(result.loss) else "the gradient"
            raise TrainingDiverged(
                f"{cause} was not finite in {progression.consecutive} updates in a row, to update {progression.step}",
                where="train.max_nonfinite",
                value=self.settings.max_nonfinite,
                fix="the last good checkpoint is kept: lower train.lr or train.clip and run again under another name "
                "from its model folder",
            )
        if progression.empty > max(10, progression.step // 2):
            raise DataError(
                f"{progression.empty} of {progression.step} updates held no trained token",
                where="data.train",
                fix="look at the rows with `trivium data inspect`; the loss mask leaves nothing to learn",
            )

    def commit(self) -> None:
        """Saves the current state, once."""
        if self.progression.step == self.saved_step:
            return
        for callback in self.callbacks:
            callback.before_save(self)
        self.save(self)
        self.saved_step = self.progression.step

    def leave(self) -> None:
        """Ends the loop after a stop signal; everything is saved."""
        raise Interrupted(
            f"stopped by {self.stop_signal or 'a signal to another rank'} after update "
            f"{self.progression.step} of {self.total}; everything is saved",
            fix=self.resume_hint,
        )

    def stop_during_rollout(self) -> bool:
        """Whether a rollout should be abandoned now; several ranks can only agree at the end of an update."""
        return self.stop_signal is not None and self.processes.world == 1

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Starts the callbacks, and ends them however the loop is left."""
        for callback in self.callbacks:
            callback.start(self)
        try:
            yield
        finally:
            for callback in self.callbacks:
                callback.end(self)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C asks the loop to save and leave; the second one leaves at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self.stop_signal is not None:
                raise Interrupted(
                    f"left at once after a second {signal.Signals(number).name}; "
                    f"the checkpoint of update {max(self.saved_step, 0)} is the newest",
                    fix=self.resume_hint,
                )
            self.stop_signal = signal.Signals(number).name

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
