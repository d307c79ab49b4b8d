from __future__ import annotations

import io
import random
import time

import pytest

from trivium.core.progress import (
    Pace,
    Progress,
    matrix_peak,
    memory_bytes,
    printable,
    readable_bytes,
    readable_count,
    readable_seconds,
    say,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (812, "812"),
        (0.125, "0.125"),
        (999.6, "1k"),
        (12_400, "12.4k"),
        (10_500_000, "10.5M"),
        (8.03e9, "8.03B"),
    ],
)
def test_counts_are_short(number: float, text: str) -> None:
    assert readable_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (1023.9, "1.00 KiB"),
        (812 << 20, "812 MiB"),
        (5 << 40, "5.00 TiB"),
    ],
)
def test_bytes_are_binary(number: float, text: str) -> None:
    assert readable_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.85, "850 ms"),
        (0.9999, "1.0 s"),
        (4.2, "4.2 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (187_300, "2 d 4 h"),
    ],
)
def test_durations_never_show_sixty_of_anything(number: float, text: str) -> None:
    assert readable_seconds(number) == text


def simulated_run(
    steps: int,
    *,
    step: float,
    noise: float = 0.0,
    pause_every: int = 0,
    pause: float = 0.0,
    stop_at: int = 0,
    stop: float = 0.0,
) -> list[float]:
    """The clock at the end of each step."""
    generator, now, clock = random.Random(0), 100.0, []
    for number in range(1, steps + 1):
        now += step * (1 + noise * generator.uniform(-1, 1))
        if pause_every and number % pause_every == 0:
            now += pause
        if number == stop_at:
            now += stop
        clock.append(now)
    return clock


@pytest.mark.parametrize(
    "run",
    [
        {"step": 0.1},
        {"step": 0.1, "noise": 0.6},
        {"step": 0.1, "pause_every": 10, "pause": 2.0},
        {"step": 0.1, "noise": 0.3, "stop_at": 25, "stop": 3600.0},
    ],
    ids=["steady", "noisy", "validations", "suspended laptop"],
)
def test_time_left_is_within_ten_percent_after_a_twentieth_of_the_run(run: dict[str, float]) -> None:
    clock = simulated_run(1000, **run)  # type: ignore[arg-type]
    pace = Pace()
    for step, now in enumerate(clock[:60], 1):
        pace.add(step, now)
    left = pace.seconds_left(1000)
    assert left is not None
    assert left == pytest.approx(clock[-1] - clock[59], rel=0.1)


def test_time_left_follows_a_change_of_speed() -> None:
    pace, now = Pace(), 0.0
    for step in range(1, 600):
        now += 0.1 if step < 300 else 0.2
        pace.add(step, now)
    assert pace.seconds_left(1000) == pytest.approx(401 * 0.2, rel=0.1)


def test_time_left_is_unknown_at_first_and_zero_at_the_end() -> None:
    pace = Pace()
    assert pace.seconds_left(10) is None
    pace.add(5, 0.0)
    assert pace.seconds_left(10) is None
    pace.add(10, 1.0)
    assert pace.seconds_left(10) == 0


def test_plain_lines_come_every_few_seconds_and_at_the_end() -> None:
    out = io.StringIO()
    with Progress(1000, "clm", every=0.05, stream=out) as progress:
        end = time.perf_counter() + 0.3
        step = 0
        while time.perf_counter() < end:
            step += 1
            progress.update(step, loss=2.5, lr=3e-4, tokens_per_second=12_400.0, memory_bytes=2.0**30, margin=0.25)
            time.sleep(0.002)
        progress.note("saved checkpoint\x1b[31m")
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 9
    assert "loss 2.500, lr 3.00e-04, 12.4k tokens/s, 1.00 GiB, margin 0.25" in lines[0]
    assert "left" in lines[1]
    assert lines[-2] == "  saved checkpoint [31m"
    assert lines[-1].startswith(f"clm {step}/1,000")
    assert "\x1b" not in out.getvalue()


def test_the_last_line_is_not_said_twice() -> None:
    out = io.StringIO()
    with Progress(1, "clm", every=0.0, stream=out) as progress:
        progress._next = 0.0
        progress.update(1, loss=1.0)
    assert out.getvalue().count("\n") == 1


def test_matrix_peak_share_is_shown() -> None:
    progress = Progress(10, "clm", tty=False, flops_per_token=1e6, peak_flops=1e9, stream=io.StringIO())
    progress.update(1, tokens_per_second=500.0)
    assert "50% of matrix peak" in progress.line()


def test_work_without_a_known_end() -> None:
    progress = Progress(None, "read", tty=False, stream=io.StringIO())
    progress.update(1200)
    assert progress.line() == "read 1,200"
    assert progress.seconds_left is None


def test_live_line_is_drawn_on_a_terminal_and_notes_stand_above_it() -> None:
    out = io.StringIO()
    with Progress(100, "clm", tty=True, stream=out) as progress:
        progress.update(1, loss=3.0)
        progress.note("[red]validation[/red] 2.9")
        progress.update(100, loss=2.0)
    text = out.getvalue()
    assert "[red]validation[/red] 2.9" in text
    assert text.index("validation") < text.index("loss 2.000")
    assert text.endswith("\x1b[?25h")  # the cursor is visible again


def test_live_line_survives_an_exception() -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(100, "clm", tty=True, stream=out) as progress:
        progress.update(7, loss=3.0)
        raise KeyboardInterrupt
    assert "7/100" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()


@pytest.mark.parametrize("tty", [False, True])
def test_overhead_is_at_most_half_a_percent(tty: bool) -> None:
    """Steps of 10 ms: the smallest model on the smallest batch."""
    with Progress(10**6, "clm", tty=tty, stream=io.StringIO()) as progress:
        spent, steps = 0.0, 0
        start = time.perf_counter()
        while time.perf_counter() - start < 2.5:
            time.sleep(0.01)
            steps += 1
            before = time.thread_time()  # not what other processes take meanwhile
            progress.update(steps, loss=2.5, lr=3e-4, tokens_per_second=12_400.0, memory_bytes=1.0)
            spent += time.thread_time() - before
    assert spent / 2.5 < 0.005


def test_say_names_the_step_and_the_reason() -> None:
    out = io.StringIO()
    say("2/8 Tokenizer", "Words become numbers.\x1b]0;title\x07", stream=out)
    assert out.getvalue() == "\n2/8 Tokenizer\n  Words become numbers. ]0;title \n"


def test_printable_keeps_text_of_every_language() -> None:
    assert printable("Grüße 你好\nx\u202e\x00") == "Grüße 你好\nx  "


def test_memory_grows_with_what_is_held() -> None:
    before = memory_bytes()
    block = bytearray(64 << 20)
    after = memory_bytes()
    assert after.current - before.current > 60 << 20
    assert after.peak >= after.current
    del block


def test_matrix_peak_is_measured_once() -> None:
    first = matrix_peak(seconds=0.05)
    assert 1e8 < first < 1e14
    assert matrix_peak(seconds=0.05) == first
