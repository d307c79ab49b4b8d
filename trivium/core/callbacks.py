"""Callbacks observe and schedule: log, validate, save, sample. They never touch gradients."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.writer import JsonLines, write_file
from trivium.core.progress import Progress, memory_bytes

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer
    from trivium.data.batch import Batch
    from trivium.recipe import SamplePrompt


class Callback:
    """Base of all callbacks; every hook is optional."""

    def start(self, trainer: Trainer) -> None:
        """Before the first update of this process; the state may come from a checkpoint."""

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """After each update, skipped ones included; `tokens` were trained on all ranks."""

    def before_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written."""

    def end(self, trainer: Trainer) -> None:
        """When the loop is left for whatever reason."""


def due(step: int, every: int | None, total: int) -> bool:
    """Whether something that happens every `every` updates (default: a tenth of the run) happens after `step`."""
    return step % (every or max(1, total // 10)) == 0 or step == total


class Metrics(Callback):
    """Writes metrics.jsonl (what must be bit-identical after a resume) and timings.jsonl (what cannot be)."""

    def __init__(self, folder: Path, every: int, mirror: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`mirror` gets a copy of every line (TensorBoard); its failures never stop a run."""
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.timings = JsonLines(folder / "timings.jsonl")
        self.every = every
        self.mirror = mirror
        self.began = time.perf_counter()
        self.seconds = 0.0
        self.tokens = 0

    def start(self, trainer: Trainer) -> None:
        """Cuts both files back to the state that is resumed."""
        step = trainer.progression.step
        self.metrics.cut_back(lambda line: line["step"] <= step)
        self.timings.cut_back(lambda line: line["step"] <= step)
        self.began = time.perf_counter()

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """One line each."""
        now = time.perf_counter()
        self.seconds, self.tokens = self.seconds + now - self.began, self.tokens + tokens
        self.began = now
        progression = trainer.progression
        if progression.step % self.every and progression.step != trainer.total:
            return
        self.write(
            {
                "kind": "train",
                "step": progression.step,
                "loss": result.loss,
                "lr": trainer.lr,
                "grad_norm": result.grad_norm,
                "tokens": progression.tokens,
                "skipped": progression.skipped,
                "player": update.player,
                **result.terms,
                **trainer.context.feed.measures(),
                "samples": fingerprint(trainer.context.feed.consumed()),
            }
        )
        self.timings.append(
            {
                "step": progression.step,
                "seconds": self.seconds,
                "tokens_per_second": self.tokens / self.seconds,
                "memory_bytes": memory_bytes().current,
            }
        )
        self.seconds, self.tokens = 0.0, 0

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line and mirrors it."""
        self.metrics.append(line)
        if self.mirror is not None:
            self.mirror(line)

    def before_save(self, trainer: Trainer) -> None:
        """Nothing that the checkpoint counts on may be lost after it."""
        self.metrics.sync()
        self.timings.sync()


def fingerprint(sample_ids: Iterable[str]) -> str:
    """Twelve hexadecimal digits that stand for the consumed samples, in order."""
    digest = hashlib.sha256()
    for sample in sample_ids:
        digest.update(sample.encode() + b"\0")
    return digest.hexdigest()[:12]


class Validate(Callback):
    """Validation loss and bits per byte at intervals."""

    def __init__(self, batches: Callable[[], Iterable[Batch]], every: int | None, write: Callable[..., None]) -> None:
        self.batches = batches
        self.every = every
        self.write = write

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """Validates when it is time."""
        step = trainer.progression.step
        if due(step, self.every, trainer.total):
            trainer.validation = trainer.engine.evaluate(self.batches())
            if trainer.processes.main:
                self.write({"kind": "validation", "step": step, **trainer.validation})


def shown_prompt(prompt: SamplePrompt) -> str:
    """A prompt as text: of a dialogue, who says what."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message.get('content') or message.get('tool_calls')}" for message in prompt)


class Sample(Callback):
    """Continues fixed prompts at intervals, greedily, so that progress can be read side by side."""

    def __init__(self, folder: Path, prompts: list[SamplePrompt], tokens: int, every: int | None) -> None:
        self.folder = folder / "samples"
        self.prompts = prompts
        self.tokens = tokens
        self.every = every

    def start(self, trainer: Trainer) -> None:
        """Samples of the untrained model, for the comparison."""
        if trainer.progression.step == 0:
            self.write(trainer)

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """Samples when it is time; a model that has just gone wrong has nothing to say."""
        if due(trainer.progression.step, self.every, trainer.total) and result.finite:
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """samples/step-XXXXXXXX.json."""
        import json

        with trainer.engine.averaged("validation"):
            completions = trainer.sample(self.prompts, self.tokens)
        if not trainer.processes.main:
            return
        step = trainer.progression.step
        pairs = [
            {"prompt": shown_prompt(prompt), "completion": text}
            for prompt, text in zip(self.prompts, completions, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(
            self.folder / f"step-{step:08d}.json",
            json.dumps({"step": step, "samples": pairs}, ensure_ascii=False, indent=1),
        )


class Show(Callback):
    """The progress line."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.recent: deque[tuple[float, int]] = deque(maxlen=64)

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """Moves the line on; says that updates are skipped, the first time and each time there are twice as many."""
        skipped = trainer.progression.skipped
        if not result.finite and skipped & (skipped - 1) == 0:
            why = "loss or gradient is not finite"
            if result.overflow:
                why = "fp16 overflowed; the loss scale is lowered, which a few times at the start is nothing"
            self.progress.note(f"update {trainer.progression.step} was skipped, {skipped} by now: {why}")
        self.recent.append((time.perf_counter(), trainer.progression.tokens))
        (began, before), (now, after) = self.recent[0], self.recent[-1]
        self.progress.update(
            trainer.progression.step,
            loss=result.loss,
            lr=trainer.lr,
            tokens=after,
            tokens_per_second=(after - before) / (now - began) if now > began else None,
            memory_bytes=memory_bytes(trainer.engine.device.type).current,
        )
