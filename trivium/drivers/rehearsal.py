"""Before a run: `--dry-run` measures a few real updates, `--preflight` proves that the data can be learnt."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivium.core.callbacks import Callback
from trivium.core.method import Update
from trivium.core.progress import memory_bytes, readable_bytes
from trivium.data.batch import IGNORE, Batch, make_batch
from trivium.data.labelled import LabelledDataset
from trivium.drivers.forecasting import describe, session_forecast
from trivium.errors import ConfigError, DataError
from trivium.lazy import torch
from trivium.optim.groups import describe_groups

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.trainer import Trainer
    from trivium.data.samples import Sample
    from trivium.drivers.session import Session

DRY_UPDATES = 3
ROWS = 8
MOST_TOKENS = 256
"""Longest sequence of the rows that are overfitted, so that large models stay within the minute."""
SECONDS = 50.0
"""Time given to overfitting."""
LEARNT = 0.2
"""Share of the first loss below which the rows count as learnt."""


class _Clock(Callback):
    """Seconds and loss of each update; ends the loop by its own rules."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens = 0
        self.last = time.perf_counter()

    def start(self, trainer: Trainer) -> None:
        self.last = time.perf_counter()

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.losses.append(result.loss)
        self.tokens = tokens
        self.last = now


def dry_run(session: Session) -> dict[str, Any]:
    """A few real updates that are thrown away; prints and returns speed, memory, disk and time to the end."""
    clock = _Clock()
    trainer = session.trainer
    trainer.callbacks = [clock]
    trainer.fit(until=min(DRY_UPDATES, session.total))
    typical = statistics.median(clock.seconds[1:] or clock.seconds)
    plan = session_forecast(session, seconds_per_update=typical)
    measured = {
        "seconds_per_update": typical,
        "tokens_per_second": clock.tokens / typical,
        "peak_memory_bytes": memory_bytes(session.device.type).peak,
        "loss": clock.losses[-1],
    }
    for line in describe_groups(trainer.engine.groups()):
        print(line)
    print(f"the whole run: {describe(plan)}")
    print(
        f"measured: {measured['tokens_per_second']:.0f} tokens/s, {readable_bytes(measured['peak_memory_bytes'])} "
        f"peak memory, loss {measured['loss']:.4f}; nothing was saved"
    )
    return {"forecast": plan.as_dict(), "measured": measured}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is right, and what was seen."""

    name: str
    good: bool
    seen: str


def preflight(session: Session) -> list[Check]:
    """Overfits eight rows and looks at masks, end of text and template; raises DataError if a check fails."""
    if session.trainer.method.data_kind == "prompts":
        raise ConfigError(
            "a preflight overfits rows of data, and this method makes its own from prompts",
            where="method.name",
            value=session.resolved.method.name,
            fix="use --dry-run",
        )
    if session.trainer.method.example is not None:
        batch = made_batch(session)
        checks = [check_targets(batch), check_learning(session, batch)]
    elif isinstance(session.train_data, LabelledDataset):
        batch = made_batch(session)
        checks = [check_labels(session, batch), check_learning(session, batch)]
    else:
        samples = [session.train_data.sample(number) for number in range(min(ROWS, len(session.train_data)))]
        checks = [
            check_masks(samples),
            check_end(session, samples),
            *check_template(session),
            check_learning(session, rows_batch(samples)),
        ]
    if session.trainer.method.data_kind == "instructions":
        show_first_row(session)
    for check in checks:
        print(f"{'ok  ' if check.good else 'FAIL'} {check.name}: {check.seen}")
    failed = [check for check in checks if not check.good]
    if failed:
        raise DataError(
            f"the preflight failed: {', '.join(check.name for check in failed)}",
            where="data.train",
            fix="look at the rows with `trivium data inspect RECIPE`",
        )
    return checks


def show_first_row(session: Session) -> None:
    """The first row as text, with what is trained of it coloured."""
    from rich.console import Console

    from trivium.data.inspect import inspect_rows, print_text

    rows = inspect_rows(session.train_data, session.tokenizer, count=1)
    print_text(rows, Console(), tokenizer=session.tokenizer)


def check_masks(samples: list[Sample]) -> Check:
    """Every row must have something to learn."""
    counts = [sum(sum(sequence.trained[1:]) for sequence in sample.sequences) for sample in samples]
    totals = [sum(len(sequence.ids) - 1 for sequence in sample.sequences) for sample in samples]
    share = sum(counts) / max(1, sum(totals))
    return Check("mask", all(counts), f"trained tokens in the rows {counts}, {share:.0%} of all")


def check_end(session: Session, samples: list[Sample]) -> Check:
    """A model that never sees a trained end token never stops."""
    ends = set(session.tokenizer.stop_ids)
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    trained = sum(
        any(flag and token in ends for token, flag in zip(sequence.ids, sequence.trained, strict=True))
        for sequence in sequences
    )
    whole = session.trainer.method.data_kind == "documents"  # pieces of a long document need not end
    seen = f"{trained} of {len(sequences)} sequences train an end token"
    return Check("end of text", whole or trained == len(sequences), seen)


def check_template(session: Session) -> list[Check]:
    """What is served must be a beginning of what was trained."""
    tokenizer = session.tokenizer
    if session.trainer.method.data_kind == "documents" or not tokenizer.files.templates:
        return []
    question = {"role": "user", "content": "What is a preflight?"}
    whole = tokenizer.encode_chat([question, {"role": "assistant", "content": "A look before the start."}]).ids
    prompt = tokenizer.encode_prompt([question])
    same = list(whole[: len(prompt)]) == list(prompt)
    return [
        Check("template", same, f"the prompt's {len(prompt)} ids {'begin' if same else 'do not begin'} the dialogue")
    ]


def check_targets(batch: Batch) -> Check:
    """Every example that a method made must have something to learn."""
    counts = [int((batch.targets[start:end] != IGNORE).sum()) for start, end in batch.layout.spans()]
    share = sum(counts) / max(1, batch.tokens)
    return Check("mask", all(counts), f"trained tokens in the examples {counts[:ROWS]}, {share:.0%} of all")


def check_labels(session: Session, batch: Batch) -> Check:
    """The rows must have labels."""
    counts = session.trainer.engine.counted(Update([batch], player=next(iter(session.trainer.engine.players))))
    seen = ", ".join(f"{count:g} {unit}" for unit, count in counts.items())
    return Check("labels", all(counts.values()), f"{seen} with a label in {batch.layout.sequences} rows")


def check_learning(session: Session, batch: Batch) -> Check:
    """Loss on a few rows, seen again and again, must fall to a fraction of what it was."""
    engine = session.trainer.engine
    before = {name: tensor.clone() for name, tensor in engine.weights("policy").items()}
    losses: list[float] = []
    began = time.perf_counter()
    update = Update([batch], player=next(iter(engine.players)))
    counts = engine.count(update)
    while time.perf_counter() - began < SECONDS and (not losses or losses[-1] > LEARNT * losses[0]):
        losses.append(engine.run(update, counts, step=len(losses), lr=max(session.recipe.train.lr, 1e-3)).loss)
    engine.load_weights("policy", before)
    seen = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} updates, {time.perf_counter() - began:.0f} s"
    return Check("learning", losses[-1] <= LEARNT * losses[0], seen)


def made_batch(session: Session) -> Batch:
    """The first rows, as the method makes examples of them for validation: with the same noise in each update."""
    rows = max(1, ROWS * MOST_TOKENS // (4 * session.recipe.data.sequence_length))
    return next(session.loader.evaluation(min(rows, ROWS)))


def rows_batch(samples: list[Sample]) -> Batch:
    """The samples in one micro-batch, cut to MOST_TOKENS (preferences stay in pairs)."""
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    weights = [weight for sequence in sequences for weight in (sequence.weights or ())[1:MOST_TOKENS]]
    batch = make_batch(
        [list(sequence.ids[:MOST_TOKENS]) for sequence in sequences],
        [list(sequence.trained[:MOST_TOKENS]) for sequence in sequences],
        fields={"weights": torch.tensor(weights, dtype=torch.float32)} if weights else None,
        sample_ids=[sample.id for sample in samples],
    )
    if not int((batch.targets != IGNORE).sum()):
        raise DataError(
            f"the first {len(samples)} samples have no trained token within {MOST_TOKENS} tokens",
            where="data.train",
            fix="look at the rows with `trivium data inspect RECIPE`",
        )
    return batch
