"""What a run will need, said before it starts and after its first updates, and held against what happened."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trivium.artifacts.writer import JsonLines
from trivium.core.callbacks import Callback
from trivium.core.plan import Forecast, Held, forecast, measure
from trivium.core.progress import readable_bytes, readable_count, readable_seconds

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer
    from trivium.drivers.run_folder import RunFolder
    from trivium.drivers.session import Session

PROBE_FROM, PROBE_TO = 3, 8
"""Updates that are timed for the forecast; the ones before them include compilation and first touches of memory."""


def session_forecast(session: Session, *, seconds_per_update: float | None = None) -> Forecast:
    """The forecast for an open session."""
    from trivium.drivers.roles import held_by, shares_weights

    roles, resolved = session.trainer.engine.roles, session.resolved
    policy, trainable = roles["policy"].module, 0
    sizes = {name: sum(p.numel() for p in role.module.parameters()) for name, role in roles.items()}
    for role in roles.values():
        trainable += sum(p.numel() for p in role.module.parameters() if p.requires_grad)
    frozen = {name: size for name, size in sizes.items() if not roles[name].trainable}
    wanted = session.trainer.method.roles()
    copies = {name: size for name, size in frozen.items() if not shares_weights(resolved, name, wanted[name])}
    whole, held = session.config.parameters(), held_by(policy) if resolved.transforms else Held()
    return forecast(
        session.config,
        session.recipe,
        steps=session.total,
        machine=session.machine,
        fill=session.loader.packing_efficiency,
        trained_share=trained_share(session),
        held=replace(held, trainable=trainable, virtual=held.virtual * session.loader.sequences_per_row),
        frozen_roles=sum(frozen.values()) / whole,
        frozen_copies=sum(copies.values()) / whole,
        source_share=source_share(session),
        ranks=session.processes.world,
        sequence_tokens=float(session.train_data.lengths.mean()),
        validation_tokens=validation_tokens(session),
        seconds_per_update=seconds_per_update,
    )


def validation_tokens(session: Session) -> int:
    """Tokens in one validation, of the part of the held-out data that `train.validation_batches` leaves."""
    held_out, recipe = session.validation_data, session.recipe
    if held_out is None:
        return 0
    whole, wanted = int(held_out.lengths.sum()), recipe.train.validation_batches
    micro = recipe.train.micro_rows or recipe.train.batch_size
    return min(whole, wanted * micro * recipe.data.sequence_length) if wanted else whole


def source_share(session: Session) -> float:
    """Share of the tokens of the first update that are read by an encoder, half of them without one."""
    if session.config.kind != "encoder_decoder":
        return 0.5
    counts = [(batch.tokens, batch.source.layout.tokens) for batch in session.loader.update(0) if batch.source]
    sources = sum(source for _, source in counts)
    return sources / max(1, sources + sum(target for target, _ in counts)) if counts else 0.5


def trained_share(session: Session) -> float:
    """Share of the tokens in the rows that a run counts; where a method makes its own examples, of the first update."""
    method, data, loader = session.trainer.method, session.train_data, session.loader
    if method.example is None:
        return float(data.table.trained_counts().sum() / data.lengths.sum())
    counted = sum(method.weights(batch).get("tokens", 0.0) for batch in loader.update(0))
    rows = len(range(loader.rank, loader.rows, loader.world))
    return float(counted / (rows * loader.sequence_length * loader.packing_efficiency)) if rows else 1.0


def describe(plan: Forecast) -> str:
    """The forecast in one line."""
    parts = [
        f"{readable_count(plan.parameters)} parameters",
        f"{plan.steps} updates",
        f"{readable_count(plan.tokens)} tokens",
        f"{readable_bytes(plan.memory.peak)} memory",
        f"{readable_bytes(plan.disk_bytes)} disk",
        f"{plan.flops:.1e} operations",
    ]
    if plan.seconds is not None:
        parts.append(f"{readable_seconds(plan.seconds)} to the end")
    return ", ".join(parts)


class Forecasting(Callback):
    """Times the first updates, writes `forecast.json`, and adds the facts when the run is done."""

    def __init__(self, session: Session, folder: RunFolder, progress: Any) -> None:
        self.session = session
        self.folder = folder
        self.progress = progress
        self.seconds: list[float] = []
        self.last = 0.0
        self.plan: dict[str, Any] | None = folder.read_json("forecast.json").get("forecast")

    def start(self, trainer: Trainer) -> None:
        """The clock of the first update."""
        self.last = time.perf_counter()

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """Measures until there is enough for a forecast."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        if self.plan is None and (len(self.seconds) >= PROBE_TO or trainer.progression.step == trainer.total):
            typical = statistics.median(self.seconds[PROBE_FROM:] or self.seconds)
            plan = session_forecast(self.session, seconds_per_update=typical)
            self.plan = plan.as_dict()
            self.folder.write_json("forecast.json", {"forecast": self.plan})
            self.progress.note(f"forecast: {describe(plan)}")

    def finish(self) -> None:
        """The facts, once the run has gone to its end and its model is written."""
        if self.plan is None:
            return
        session, progression = self.session, self.session.trainer.progression
        timings = JsonLines(self.folder.path / "timings.jsonl").read()
        fact = measure(
            self.folder.path,
            parameters=sum(p.numel() for p in session.trainer.engine.roles["policy"].module.parameters()),
            steps=progression.step,
            tokens=progression.tokens,
            seconds=sum(line["seconds"] for line in timings),
            keep=session.recipe.train.keep_checkpoints,
            device=session.device.type,
        )
        self.folder.write_json("forecast.json", {"forecast": self.plan, "fact": fact})
