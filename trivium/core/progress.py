"""Progress of long work: one live line on a terminal, plain lines elsewhere, and what it costs the machine.

Everything goes to stderr; stdout is for results. A line is drawn at most twice a second and never so often that
drawing takes more than 0.4 % of the time, whatever the terminal.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from trivium.lazy import torch

if TYPE_CHECKING:
    from rich.live import Live

_FIRST_SECONDS = 0.5
_SHARE_OF_TIME = 0.004
_BAR_WIDTH = 20


def readable_count(number: float) -> str:
    """`812`, `5k`, `12.4k`, `8.03B`: at most three significant digits above a thousand."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.0f}" if abs(number) >= 100 or float(number).is_integer() else f"{number:.3g}"


def readable_bytes(number: float) -> str:
    """`512 B`, `1.5 KiB`, `812 MiB`, `1.23 GiB`."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{_three_digits(size)} {unit}"
        size /= 1024
    return f"{_three_digits(size)} TiB"


def readable_seconds(seconds: float) -> str:
    """`850 ms`, `4.2 s`, `2 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


class Memory(NamedTuple):
    """Bytes in use now and at most so far."""

    current: int
    peak: int


def memory_bytes(device: str = "cpu") -> Memory:
    """Resident memory of this process, or tensors allocated on a CUDA device (`cuda`, `cuda:1`)."""
    if device.startswith("cuda"):
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no /proc: the peak is the best that is known
        import resource  # not on Windows

        # ru_maxrss counts kilobytes on Linux and bytes on macOS, and on Linux also the program that started this one.
        scale = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        return Memory(peak, peak)
    current = pages * os.sysconf("SC_PAGE_SIZE")
    return Memory(current, max(current, int(kilobytes) * 1024))


@functools.cache
def matrix_peak(device: str = "cpu", dtype: str = "float32", *, seconds: float = 0.2) -> float:
    """FLOP/s of a plain matrix product, the best of a short series: what "100 % of the machine" means here.

    Measured once in a process. On a shared CPU the figure itself moves with the neighbours' load.
    """
    size = 8192 if device.startswith("cuda") else 1024
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    multiply: Callable[[], Any] = functools.partial(torch.mm, left, left, out=torch.empty_like(left))
    if left.itemsize == 1:  # types of eight bits have a product of their own, with a scale for each matrix
        one = torch.ones((), device=device)
        multiply = functools.partial(
            torch._scaled_mm, left, left.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    best, end = float("inf"), time.perf_counter() + seconds
    multiply()
    while True:
        start = time.perf_counter()
        multiply()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return 2 * size**3 / best


class Pace:
    """Seconds to the end from the recent past, undisturbed by a slow start or by one long interruption.

    A step costs the median of the recent steps, plus its share of the pauses (validation, checkpoints) of the whole
    run. What came before the first reported step (compilation) is left out, and the longest pause (a suspended
    laptop) counts as much as the second longest.
    """

    def __init__(self, recent: int = 128) -> None:
        self._recent: deque[float] = deque(maxlen=recent)
        self._typical = 0.0
        self._pauses: list[float] = []
        self._intervals = 0
        self._steps = 0
        self._last: tuple[int, float] | None = None

    def add(self, step: int, now: float) -> None:
        """`step` is finished at the time `now` (seconds of any clock that never runs backwards)."""
        last, self._last = self._last, (step, now)
        if last is None or step <= last[0]:
            return
        steps = step - last[0]
        interval = (now - last[1]) / steps
        if self._intervals > 2 and interval > 3 * self._typical:
            self._pauses.append((interval - self._typical) * steps)
        self._recent.append(interval)
        # A median of 128 numbers takes microseconds; steps may take no more than that.
        if self._intervals < 16 or self._intervals % 8 == 0:
            self._typical = statistics.median(self._recent)
        self._intervals += 1
        self._steps += steps

    def seconds_left(self, total: int) -> float | None:
        """Seconds until step `total`; None before two steps are known."""
        if self._last is None or not self._steps:
            return None
        pauses = sorted(self._pauses)
        pauses[-1:] = pauses[-2:-1]
        return max(0, total - self._last[0]) * (self._typical + sum(pauses) / self._steps)


class Progress:
    """Shows how far long work is; used as a context manager.

    total:  steps of the whole work, or None where the end is not known.
    label:  one or two words that say what is going on.
    tty:    draw one live line (True) or print plain lines (False); default: what stderr is.
    every:  seconds between two plain lines.
    flops_per_token, peak_flops: with both, the line says which fraction of the machine's matrix peak is used.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        tty: bool | None = None,
        *,
        every: float = 10.0,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.label = label
        self._stream = stream or sys.stderr
        self._tty = _is_terminal(self._stream) if tty is None else tty
        self._every = _FIRST_SECONDS if self._tty else every
        self._peak_share = flops_per_token / peak_flops if flops_per_token and peak_flops else None
        self._pace = Pace()
        self._step = 0
        self._figures: dict[str, float | None] = {}
        self._shown: int | None = None
        self._next = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        # The first line comes early, so that it is seen at once that the work runs.
        self._next = time.perf_counter() + min(self._every, _FIRST_SECONDS)
        if self._tty:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream, force_terminal=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._figures and self._shown != self._step:
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, **figures: float | None) -> None:
        """`step` is finished; a figure that is None is left out.

        loss, lr, tokens, tokens_per_second and memory_bytes have formats of their own.
        """
        now = time.perf_counter()
        self._step = step
        self._figures = figures
        self._pace.add(step, now)
        if now < self._next:
            return
        self._draw()
        done = time.perf_counter()
        self._next = done + max(self._every, (done - now) / _SHARE_OF_TIME)

    def note(self, text: str) -> None:
        """A line of its own (a validation, a sample, a checkpoint) above the live line."""
        self._print(f"  {printable(text)}")

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end, or None while that is not known."""
        return None if self.total is None else self._pace.seconds_left(self.total)

    def line(self) -> str:
        """The present state in one line."""
        return ", ".join([f"{self.label} {self._position()}", *self._parts()])

    def _position(self) -> str:
        if self.total is None:
            return f"{self._step:,}"
        share = self._step / self.total if self.total else 1.0
        return f"{self._step:,}/{self.total:,} ({share:.0%})"

    def _parts(self) -> list[str]:
        parts = [_figure(name, value) for name, value in self._figures.items() if value is not None]
        speed = self._figures.get("tokens_per_second")
        if self._peak_share and speed is not None:
            parts.append(f"{speed * self._peak_share:.0%} of matrix peak")
        left = self.seconds_left
        if left is not None and self._step < (self.total or 0):
            parts.append(f"{readable_seconds(left)} left")
        return parts

    def _draw(self) -> None:
        self._shown = self._step
        if self._live is None:
            self._print(self.line())
            return
        from rich.text import Text

        done = _BAR_WIDTH if not self.total else round(_BAR_WIDTH * min(1.0, self._step / self.total))
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{self.label} ", style="bold")
        text.append("━" * done, style="cyan")
        text.append("━" * (_BAR_WIDTH - done), style="bright_black")
        text.append(f" {self._position()}  " + "  ".join(self._parts()))
        self._live.update(text, refresh=True)

    def _print(self, text: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text))
        else:
            print(text, file=self._stream, flush=True)


def say(step_title: str, why: str = "", *, stream: TextIO | None = None) -> None:
    """Announces a step of a longer job: what happens, and in a line or two why."""
    out = stream or sys.stderr
    title, reason = printable(step_title), printable(why)
    if _is_terminal(out):
        from rich.console import Console
        from rich.padding import Padding
        from rich.text import Text

        console = Console(file=out)
        console.print(Text(f"\n{title}", style="bold"))
        if reason:
            console.print(Padding(Text(reason, style="dim"), (0, 0, 0, 2)))
        return
    print(f"\n{title}" + (f"\n  {reason}" if reason else ""), file=out, flush=True)


def printable(text: str) -> str:
    """`text` without control characters: a sample or a file name must not drive the terminal."""
    return "".join(character if character == "\n" or character.isprintable() else " " for character in text)


def _figure(name: str, value: float) -> str:
    shown = _FIGURES.get(name)
    return shown(value) if shown else f"{name.replace('_', ' ')} {value:.4g}"


_FIGURES: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "lr": lambda value: f"lr {value:.2e}",
    "tokens_per_second": lambda value: f"{readable_count(value)} tokens/s",
    "tokens": lambda value: f"{readable_count(value)} tokens",
    "memory_bytes": readable_bytes,
}


def _is_terminal(stream: Any) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"
