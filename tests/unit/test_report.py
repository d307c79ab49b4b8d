from __future__ import annotations

import json
import math
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.browser.invented_runs import PROMPTS, XSS, age, hostile_run, invented_run, write_lines
from trivium.errors import ArtifactError
from trivium.report import (
    Bar,
    Bars,
    Comparison,
    Figure,
    Link,
    Stage,
    Table,
    write_pipeline_report,
    write_report,
)
from trivium.report.curves import run_plots
from trivium.report.plot import Series, curves, downsample, histogram, nice_ticks, running_median
from trivium.report.record import read_record
from trivium.report.render import safe_link

LIMIT = 2_000_000


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would take them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.pieces.append(data)


def report_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.stat().st_size <= LIMIT
    return Page(path)


def test_a_finished_run_is_told_whole(tmp_path: Path) -> None:
    page = report_of(invented_run(tmp_path / "docs"))
    sections = {"curves", "samples", "data", "settings", "lineage", "forecast", "environment"}
    assert sections <= page.ids
    for words in (
        "Finished", "800 updates of clm", "bits for each byte", "Loss", "Learning rate", "Gradient norm",
        "Tokens per second", "Memory", "near duplicate", "Rows filled", "96.2", "train.lr", "0.003", "0.0003",
        "Peak memory", "+3.8", "2.13.0+cpu", "trivium train recipes/clm.yaml",
    ):  # fmt: skip
        assert words in page.text, words
    for prompt in PROMPTS:
        assert " ".join(prompt.split()) in page.text
    assert "before training" in page.text
    assert "update 800" in page.text


def test_the_page_needs_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = report_of(invented_run(tmp_path / "docs"))
    assert "script" not in page.tags
    assert "default-src 'none'" in page.source
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            assert value.startswith(("#", "data:,")), (tag, name, value)
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_every_link_inside_the_page_leads_somewhere(tmp_path: Path) -> None:
    page = report_of(invented_run(tmp_path / "docs"))
    assert {value[1:] for _, name, value in page.attributes if name == "href" and value[0] == "#"} <= page.ids


def test_plots_have_words_for_those_who_cannot_see_them(tmp_path: Path) -> None:
    page = report_of(invented_run(tmp_path / "docs"))
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert any("training goes from" in label and "at update 800" in label for label in labels)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("finished", "Finished"),
        ("running", "Running"),
        ("interrupted", "Stopped, and saved"),
        ("crashed", "Crashed"),
        ("diverged", "Diverged"),
    ],
)
def test_the_state_and_its_reason_are_said(tmp_path: Path, state: str, words: str) -> None:
    page = report_of(
        invented_run(tmp_path / "run", state=state, steps=123, reason="a reason of its own", lineage=False)
    )
    assert words in page.text
    assert ("a reason of its own" in page.text) == (state != "running")
    goes_on = state in ("interrupted", "crashed")
    assert ("The same command continues from step-00000123: trivium train recipes/clm.yaml" in page.text) == goes_on
    assert "123 of 800 updates" in page.text or state == "finished"


def test_a_killed_run_is_recognised_by_its_silence(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", state="running", steps=50)
    age(folder, 7300)
    page = report_of(folder)
    assert "Probably killed" in page.text
    assert "2 h 0" in page.text


def test_a_torn_last_line_is_no_damage_but_a_broken_one_is_counted(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=50)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 51, "lo')
    record = read_record(folder)
    assert len(record.train) == 50
    assert record.unreadable == []
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[7] = "\x00\x00\x00"
    lines[9] = "[1, 2]"
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    record = read_record(folder)
    assert len(record.train) == 48
    assert record.unreadable == ["2 damaged lines of metrics.jsonl were left out"]


def test_a_run_that_died_before_its_first_update(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    status = {"state": "crashed", "step": 0, "reason": "no disk", "command": "trivium train x.yaml"}
    (folder / "status.json").write_text(json.dumps(status))
    page = report_of(folder)
    assert "No update was made yet." in page.text
    assert "There is no checkpoint yet; the same command starts again: trivium train x.yaml" in page.text


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_very_short_runs(tmp_path: Path, steps: int) -> None:
    folder = invented_run(tmp_path / "run", steps=steps, lineage=False)
    assert (f"{steps} of 800 updates" in report_of(folder).text) == (steps > 0)


@pytest.mark.parametrize(
    "name",
    ["status.json", "config.yaml", "metrics.jsonl", "timings.jsonl", "data.json", "environment.json", "forecast.json",
     "differences.json", "samples", "checkpoints", "final"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise", "wrong shape"])
def test_any_one_file_may_be_missing_or_damaged(tmp_path: Path, name: str, damage: str) -> None:
    folder = invented_run(tmp_path / "run", steps=30, total=100)
    target = folder / name
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    for path in files:
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            shape = b'[{"step": "x"}, null, 3]'
            path.write_bytes(
                {"empty": b"", "cut": whole[: len(whole) // 2], "noise": bytes(range(256)) * 9}.get(damage, shape)
            )
    assert "run" in report_of(folder).text


def test_wrong_types_inside_the_files_do_no_harm(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=30, total=100)
    for name in ("status", "data", "environment", "forecast", "differences"):
        content = json.loads((folder / f"{name}.json").read_text())
        for wrong in (None, True, [1, [2]], "text", -1e400, {"a": {"b": None}}):
            (folder / f"{name}.json").write_text(json.dumps(dict.fromkeys(content, wrong)))
            report_of(folder)
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_not_finite_numbers_and_skipped_updates(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=30, total=100, lineage=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if line["step"] in (4, 5) and line["kind"] == "train":
            line.update(loss="NaN", grad_norm="Infinity")
        if line["kind"] == "train":
            line["skipped"] = 2 if number > 4 else 0
    write_lines(folder / "metrics.jsonl", lines)
    assert "2 updates were skipped" in report_of(folder).text


def test_a_model_that_memorises_is_noticed(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=30, total=100, lineage=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "validation", "step": 30, "loss": 99.0}) + "\n")
    assert "since then the model memorises" in report_of(folder).text


def test_measures_of_the_method_are_drawn_but_not_what_repeats_the_loss(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=30, total=100, lineage=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [{**line, "reward_margin": line["step"] / 100} for line in lines])
    page = report_of(folder)
    assert "Reward margin" in page.text
    assert "Nll" not in page.text


def test_nothing_is_drawn_twice(tmp_path: Path) -> None:
    titles = [plot.title for plot in run_plots(read_record(invented_run(tmp_path / "run", lineage=False)))]
    assert titles == ["Loss", "Bits per byte", "Learning rate", "Gradient norm", "Tokens per second", "Memory"]


def test_two_players_have_two_curves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"kind": "train", "step": n, "loss": 1.0 + n % 2, "player": ("attack", "defend")[n % 2]} for n in range(40)
    ]
    write_lines(folder / "metrics.jsonl", lines)
    text = report_of(folder).text
    assert "training, attack" in text
    assert "training, defend" in text


def test_no_text_becomes_part_of_the_page(tmp_path: Path) -> None:
    plain = report_of(invented_run(tmp_path / "plain", steps=40, total=400))
    hostile = report_of(hostile_run(tmp_path / "hostile"))
    assert hostile.tags <= plain.tags | {"u", "em"}
    names = {(tag, name) for tag, name, _ in hostile.attributes}
    assert not {name for _, name in names if name.startswith("on") or name in ("srcdoc", "autofocus", "action")}
    assert XSS[0] in hostile.text
    assert "{{ 7*7 }}" in hostile.text


def test_no_text_becomes_part_of_a_pipeline_page(tmp_path: Path) -> None:
    everything = " ".join(XSS)
    stage = Stage(
        everything,
        what=everything,
        why=everything,
        figures=[Figure(everything, everything, everything)],
        tables=[Table(everything, XSS[:3], [XSS[3:6], XSS[6:9]], everything)],
        bars=[Bars(everything, [Bar(payload, 1.0) for payload in XSS], everything, everything)],
        comparisons=[Comparison(XSS[:2], [(payload, XSS[:2]) for payload in XSS], everything)],
        links=[Link(payload, payload) for payload in XSS],
        run=hostile_run(tmp_path / "hostile"),
    )
    page = Page(
        write_pipeline_report([stage], tmp_path / "report.html", title=everything, over=everything, lead=everything)
    )
    assert "script" not in page.tags
    assert not page.tags & {"iframe", "object", "embed", "form", "base", "input", "video", "img"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert XSS[0] in page.text


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("final/", True),
        ("../a/report.html#x", True),
        ("https://example.org/x", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)", False),
        (" java\tscript:alert(1)", False),
        ("\x01javascript:alert(1)", False),
        ("data:text/html,<script>1</script>", False),
        ("vbscript:x", False),
        ("file:///etc/passwd", False),
        ("//example.org/x", False),
    ],
)
def test_links_lead_to_pages_only(target: str, kept: bool) -> None:
    assert (safe_link(target) == target) == kept
    assert kept or safe_link(target) == "#"


def test_secrets_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    folder = invented_run(tmp_path / "run", steps=5, total=50, lineage=False)
    for name in ("status", "environment", "differences"):
        content = json.loads((folder / f"{name}.json").read_text())
        content.update(hub_token="canary-abc", reason="canary-0123456789 failed", x=["hf_" + "a" * 30, None])
        (folder / f"{name}.json").write_text(json.dumps(content))
    with (folder / "config.yaml").open("a") as file:
        file.write("hub_token: canary-abc\nnote: canary-0123456789\n")
    page = report_of(folder)
    assert "canary" not in page.source
    assert "hf_aaa" not in page.source


def test_a_page_stays_small_whatever_the_run(tmp_path: Path) -> None:
    """20,000 updates, forty measures, a hundred long prompts at fifty moments, long reasons and settings."""
    folder = invented_run(tmp_path / "run", steps=20, total=100, reason="<&>\"'" * 50_000, lineage=False)
    measures = {f"measure_{n}": 0.5 for n in range(40)}
    write_lines(
        folder / "metrics.jsonl",
        [{"kind": "train", "step": n, "loss": 3 + n % 7, "lr": 1e-3, "grad_norm": n % 5} for n in range(1, 20_001)]
        + [{"kind": "train", "step": 20_000 + n, "loss": 1.0, **{k: n % 9 for k in measures}} for n in range(1, 1000)],
    )
    samples = [{"prompt": f"{n} " + "<p>&" * 5000, "completion": "\"'<&>" * 5000} for n in range(100)]
    for step in range(50):
        content = json.dumps({"step": step, "samples": samples[: 100 if step % 10 == 0 else 2]})
        (folder / "samples" / f"step-{step:08d}.json").write_text(content)
    (folder / "differences.json").write_text(json.dumps({f"key.{n}": ["&" * 5000, "'" * 5000] for n in range(100)}))
    (folder / "environment.json").write_text(json.dumps({f"key{n}": "<" * 9000 for n in range(100)}))
    split = json.loads((folder / "data.json").read_text())["train"]
    split["dropped"] = {"&" * 900 + str(n): n for n in range(300)}
    (folder / "data.json").write_text(json.dumps({f"split {n}": split for n in range(10)}))
    start = time.thread_time()
    page = report_of(folder)
    assert time.thread_time() - start < 20
    assert "more characters" in page.text


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = invented_run(tmp_path / "run", steps=5, total=50, lineage=False)
    before = {path.name for path in folder.iterdir()}
    write_report(folder)
    write_report(folder)
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run is here"):
        write_report(tmp_path)
    with pytest.raises(ArtifactError):
        write_report(tmp_path / "missing")


def test_a_pipeline_shows_its_stages_and_their_runs(tmp_path: Path) -> None:
    run = invented_run(tmp_path / "runs" / "pretrain")
    write_report(run)
    stages = [
        Stage("Documents", what="Read.", why="Because.", figures=[Figure("Documents", "11,240")]),
        Stage("Pretraining", run=run),
        Stage(
            "Evaluation",
            bars=[Bars("Bits per byte", [Bar("model", 1.84, own=True), Bar("xz -9e", 2.31)])],
            comparisons=[Comparison(["before", "after"], [("What does dedent do?", ["noise", "It removes."])])],
        ),
        Stage("Serving", state="waiting"),
    ]
    path = write_pipeline_report(stages, tmp_path / "runs" / "report.html", title="All of it")
    page = Page(path)
    assert path.stat().st_size <= LIMIT
    for words in ("All of it", "Because.", "11,240", "Validation loss", "xz -9e", "2.31", "It removes.", "waiting"):
        assert words in page.text, words
    links = [value for _, name, value in page.attributes if name == "href" and not value.startswith(("#", "data:"))]
    assert links == ["pretrain/report.html"]
    assert (path.parent / links[0]).is_file()


def test_a_pipeline_page_is_written_before_its_runs_exist(tmp_path: Path) -> None:
    stages = [Stage("Pretraining", state="running", run=tmp_path / "not yet")]
    assert "Pretraining" in Page(write_pipeline_report(stages, tmp_path / "report.html")).text


def test_a_failed_run_of_a_pipeline_says_why(tmp_path: Path) -> None:
    run = invented_run(tmp_path / "run", state="crashed", steps=9, total=90, reason="the disk is full", lineage=False)
    assert "the disk is full" in Page(write_pipeline_report([Stage("A", run=run)], tmp_path / "report.html")).text


# The plots


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_downsampling_keeps_ends_extremes_and_order(values: list[float]) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = downsample(points, 100)
    assert len(kept) <= 100
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)
    assert (min(y for _, y in kept), max(y for _, y in kept)) == (min(values), max(values))


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(3, 8))
def test_ticks_are_round_few_and_cover_the_range(low: float, spread: float, about: int) -> None:
    high = low + spread
    ticks = nice_ticks(low, high, about)
    assert 2 <= len(ticks) <= 2 * about + 3
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * max(1.0, abs(low)) + 1e-8 * spread
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300), st.integers(0, 20))
def test_the_running_median_is_the_median_of_its_window(values: list[float], half: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    medians = running_median(points, 2 * half + 1)
    assert [x for x, _ in medians] == [x for x, _ in points]
    for place, (_, median) in enumerate(medians):
        reach = min(half, place, len(values) - 1 - place)
        assert median == sorted(values[place - reach : place + reach + 1])[reach]


def test_a_spike_does_not_flatten_the_curve_and_is_counted() -> None:
    points = [(float(x), 2.0 + 0.01 * (x % 10)) for x in range(200)]
    points[100] = (100.0, 1e6)
    plot = curves("Loss", [Series("training", points)], words=str)
    assert plot is not None
    assert float(plot.y_ticks[-1].label) < 10
    assert "1 value lies above the frame" in plot.note


def test_everything_drawn_lies_in_the_frame() -> None:
    plot = curves("x", [Series("a", [(float(x), math.sin(x)) for x in range(500)])], words=str, floor=0.0)
    assert plot is not None
    numbers = [float(part) for pair in plot.paths[0].d[1:].split("L") for part in pair.split()]
    assert all(0 <= number <= 1000 for number in numbers)
    assert all(0 <= tick.at <= 100 for tick in plot.x_ticks + plot.y_ticks)
    assert plot.bands[0].left == 0
    assert plot.bands[-1].left + plot.bands[-1].width == pytest.approx(100)


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, math.inf), (2.0, -math.inf)]])
def test_nothing_to_draw_is_no_plot(points: list[tuple[float, float]]) -> None:
    assert curves("x", [Series("a", points)], words=str) is None


def test_constant_and_single_values_can_be_drawn() -> None:
    for points in ([(5.0, 0.0)], [(1.0, 3.0), (2.0, 3.0)], [(7.0, -1e-12)]):
        assert curves("x", [Series("a", points)], words=str) is not None


def test_an_empty_histogram_is_no_plot() -> None:
    assert histogram("x", {}, x_label="tokens", unit="rows") is None
    assert histogram("x", {"1": 0}, x_label="tokens", unit="rows") is None
    assert histogram("x", {"1": 3}, x_label="tokens", unit="rows") is not None
