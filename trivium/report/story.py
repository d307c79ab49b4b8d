"""What a run comes down to: its state and what to do about it, a summary, the key figures, and what deserves a look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.core.plan import score
from trivium.core.progress import readable_bytes, readable_count, readable_seconds
from trivium.report.record import Record, is_number
from trivium.report.render import percent


@dataclass(frozen=True)
class Figure:
    """A number that matters, with its label above and a remark below."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class State:
    """How the run stands: a word, its tone (good, busy, warn, bad), and what to do about it."""

    word: str
    tone: str
    explanation: str = ""
    advice: str = ""
    command: str = ""


def run_state(record: Record) -> State:
    """The state in words, and the command that goes on where there is one."""
    command, reason = record.command, str(record.status.get("reason") or "")
    again = "There is no checkpoint yet; the same command starts again:"
    if record.checkpoints:
        again = f"The same command continues from {record.checkpoints[-1]}:"
    match record.state:
        case "finished":
            return State("Finished", "good", reason)
        case "running":
            moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.touched))
            return State("Running", "busy", f"This page shows the run as it was on {moment}; write it again for more.")
        case "interrupted":
            return State("Stopped, and saved", "warn", reason, again, command)
        case "diverged":
            advice = "The last good checkpoint is kept. Lower the learning rate or clip harder, under a new name:"
            return State("Diverged", "bad", reason, advice, command)
        case "killed":
            silent = readable_seconds(time.time() - record.touched)
            words = f"The run calls itself running, but nothing was written for {silent}: it was probably killed."
            return State("Probably killed", "bad", words, again, command)
        case "crashed":
            return State("Crashed", "bad", reason, again, command)
        case _:
            return State("State unknown", "warn", "There is no readable status.json in this run.", again, command)


def lead(record: Record) -> str:
    """The run in a sentence or two."""
    total = _total(record)
    steps = f"{record.step:,} of {total:,} updates" if total and total != record.step else f"{record.step:,} updates"
    if not record.step:
        return "No update was made yet."
    method = _component(record.setting("method"))
    seconds = sum(row["seconds"] for row in record.train if is_number(row.get("seconds")))
    words = [f"{steps} of {method}" if method else steps, f" in {readable_seconds(seconds)}." if seconds else "."]
    losses = [row["loss"] for row in record.train if is_number(row.get("loss"))]
    if len(losses) > 1:
        words.append(f" The training loss went from {losses[0]:.3f} to {_recent(losses):.3f}.")
    held_out = [row for row in record.validation if is_number(row.get("loss"))]
    if held_out:
        words.append(f" On held-out data it is {held_out[-1]['loss']:.3f}")
        size = held_out[-1].get("bits_per_byte")
        words.append(f", or {size:.3f} bits for each byte of text." if is_number(size) else ".")
    return "".join(words)


def key_figures(record: Record) -> list[Figure]:
    """The figures one asks for first, as far as they are known."""
    found: list[Figure] = []
    losses = [row["loss"] for row in record.train if is_number(row.get("loss"))]
    if losses:
        found.append(Figure("Training loss", f"{_recent(losses):.3f}", f"from {losses[0]:.3f}"))
    held_out = [(row["loss"], row["step"]) for row in record.validation if is_number(row.get("loss"))]
    if held_out:
        best, step = min(held_out)
        found.append(Figure("Validation loss", f"{held_out[-1][0]:.3f}", f"best {best:.3f} at update {step:,}"))
    sizes = [row["bits_per_byte"] for row in record.validation if is_number(row.get("bits_per_byte"))]
    if sizes:
        found.append(Figure("Bits per byte", f"{sizes[-1]:.3f}", "held-out text"))
    forgetting = record.probe.get("forgetting")
    if is_number(forgetting):
        words = f"bits per byte on general text, from {record.probe.get('before', 0.0):.3f}"
        found.append(Figure("Forgotten", f"{forgetting:+.3f}".replace("-", "\u2212"), words))
    tokens = [row["tokens"] for row in record.train if is_number(row.get("tokens"))]
    if tokens:
        found.append(Figure("Tokens trained", readable_count(tokens[-1])))
    parameters = record.fact.get("parameters") or record.forecast.get("parameters")
    if is_number(parameters):
        found.append(Figure("Parameters", readable_count(parameters)))
    return [*found, *_cost_figures(record)]


def _cost_figures(record: Record) -> Iterator[Figure]:
    seconds = [row["seconds"] for row in record.train if is_number(row.get("seconds"))]
    if seconds:
        yield Figure("Time", readable_seconds(sum(seconds)))
    speeds = sorted(row["tokens_per_second"] for row in record.train if is_number(row.get("tokens_per_second")))
    if speeds:
        yield Figure("Speed", readable_count(speeds[len(speeds) // 2]), "tokens a second (median)")
    memory = record.fact.get("peak_memory_bytes") or max(
        (row["memory_bytes"] for row in record.train if is_number(row.get("memory_bytes"))), default=None
    )
    if is_number(memory):
        yield Figure("Peak memory", readable_bytes(memory))


def notices(record: Record) -> Iterator[str]:
    """What deserves a look, if anything does."""
    yield from record.unreadable
    skipped = record.train[-1].get("skipped") if record.train else None
    if is_number(skipped) and skipped:
        yield f"{skipped:,} updates were skipped because loss or gradient was not finite."
    held_out = [(row["loss"], row["step"]) for row in record.validation if is_number(row.get("loss"))]
    if held_out and min(held_out)[0] < 0.99 * held_out[-1][0]:
        best, step = min(held_out)
        yield f"Held-out data was predicted best at update {step:,} ({best:.3f}); since then the model memorises."
    limit = record.setting("train.clip")
    norms = [row["grad_norm"] for row in record.train[len(record.train) // 2 :] if is_number(row.get("grad_norm"))]
    if is_number(limit) and len(norms) >= 20:
        share = sum(norm > limit for norm in norms) / len(norms)
        if share > 0.9:
            yield f"The gradient was clipped in {percent(share)} of the later updates: try a smaller learning rate."
    for row in score(record.forecast, record.fact):
        if row.error is not None and abs(row.error) > 0.25:
            yield f"{row.label}: the forecast was {percent(abs(row.error))} too {'high' if row.error > 0 else 'low'}."


def _total(record: Record) -> int | None:
    """Updates of the whole run, if they are known."""
    for value in (record.forecast.get("steps"), record.setting("train.steps")):
        if isinstance(value, int):
            return value
    return record.step if record.state == "finished" else None


def _component(value: Any) -> str:
    return str(value.get("name", "")) if isinstance(value, Mapping) else str(value or "")


def _recent(losses: list[float]) -> float:
    """The mean of the last twentieth: one batch says little."""
    last = losses[-max(1, len(losses) // 20) :]
    return sum(last) / len(last)
