"""The report in a real browser: wide and narrow, light and dark, and with texts that try to become code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.invented_runs import XSS, age, hostile_run, invented_run, invented_sweep
from trivium.report import Bar, Bars, Comparison, Figure, Link, Stage, Table, write_pipeline_report, write_report
from trivium.report.sweep import write_sweep_report

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const c = numbers(getComputedStyle(element).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('main *, nav *')) {
    if (element.closest('svg')) continue;
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.tagName + ' ' + element.className);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """One browser with an empty profile; each test gets a context of its own."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield started
        started.close()


@contextmanager
def opened(browser: Any, file: Path, *, width: int, dark: bool = False) -> Iterator[tuple[Any, list[str]]]:
    """(page, everything that went wrong on it: messages of the console, errors, requests beyond the file itself)."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    try:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append("a dialog opened"), dialog.dismiss()))
        address = file.resolve().as_uri()
        page.on("request", lambda request: request.url == address or wrong.append(f"request: {request.url}"))
        page.goto(address)
        yield page, wrong
    finally:
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a finished, a killed, an empty and a hostile run, and of a pipeline."""
    runs = tmp_path_factory.mktemp("runs")
    finished = invented_run(runs / "finished")
    killed = invented_run(runs / "killed", state="running", steps=333, spikes=True)
    age(killed, 7300)
    empty = runs / "empty"
    empty.mkdir()
    (empty / "status.json").write_text('{"state": "crashed", "step": 0, "reason": "FileNotFoundError"}')
    found = {run.name: write_report(run) for run in (finished, killed, empty, hostile_run(runs / "hostile"))}
    stages = [
        Stage("Documents", what="Read.", why="Because.", figures=[Figure("Documents", "11,240")]),
        Stage("Pretraining", run=finished, tables=[Table("Sizes", ["kind", "count"], [["docstrings", "9,804"]])]),
        Stage("Evaluation", bars=[Bars("Bits per byte", [Bar("model", 1.84, own=True), Bar("xz -9e", 2.31)])]),
        Stage("Hostile", comparisons=[Comparison(XSS[:3], [(payload, XSS[:3]) for payload in XSS])],
              links=[Link(payload, payload) for payload in XSS]),
    ]  # fmt: skip
    return found | {
        "sweep": write_sweep_report(invented_sweep(), runs / "sweep.html"),
        "pipeline": write_pipeline_report(stages, runs / "report.html", figures=[Figure("Path", "a/" * 40)]),
    }


NAMES = ("finished", "killed", "empty", "hostile", "pipeline", "sweep")


@pytest.mark.parametrize("width", [1400, 768, 375])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_goes_wrong_and_nothing_scrolls_sideways(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    with opened(browser, pages[name], width=width) as (page, wrong):
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_timeout(200)
        assert wrong == []
        assert page.title() != "executed"


@pytest.mark.parametrize("name", ["hostile", "pipeline"])
def test_no_payload_is_executed_even_when_everything_is_touched(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    with opened(browser, pages[name], width=1400) as (page, wrong):
        title = page.title()
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.evaluate(
            """document.querySelectorAll('body *').forEach(one => {
                 for (const kind of ['mouseover', 'focus', 'toggle', 'error', 'load'])
                   one.dispatchEvent(new Event(kind, {bubbles: true}));
               })"""
        )
        for link in page.locator("main a").all():
            assert not (link.get_attribute("href") or "").startswith("javascript")
        page.wait_for_timeout(200)
        assert page.title() == title
        assert "executed" not in title or title.count("<script>") > 1  # the name of the run, shown as text
        assert wrong == []


def test_the_policy_of_the_page_stops_scripts_that_would_get_in(
    browser: Any, tmp_path: Path, pages: dict[str, Path]
) -> None:
    """Even with a hole in the escaping nothing would run."""
    source = pages["finished"].read_text(encoding="utf-8")
    holed = tmp_path / "holed.html"
    holed.write_text(source.replace("</main>", f"{XSS[0]}{XSS[1]}{XSS[2]}</main>"), encoding="utf-8")
    with opened(browser, holed, width=1400) as (page, wrong):
        page.wait_for_timeout(200)
        assert page.title() != "executed"
        assert any("Content Security Policy" in message for message in wrong)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["finished", "killed", "pipeline"])
def test_text_stands_out_from_its_ground(browser: Any, pages: dict[str, Path], name: str, dark: bool) -> None:
    with opened(browser, pages[name], width=1400, dark=dark) as (page, _):
        assert page.evaluate(CONTRAST) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground.strip("rgb()").split(",")[0]) < 60) == dark


def test_values_appear_under_the_pointer(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"], width=1400) as (page, _):
        area = page.locator(".area").first
        assert not area.locator("span:visible").count()
        box = area.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        shown = area.locator("span:visible")
        assert shown.count() == 1
        assert "update 4" in shown.inner_text()
        assert "validation" in shown.inner_text()


def test_headings_form_an_outline(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"], width=1400) as (page, _):
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(one => one.ariaLabel.length > 20)")


def test_the_page_prints_without_what_only_works_on_a_screen(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["finished"], width=794) as (page, _):
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 794
        assert len(page.pdf(format="A4")) > 10_000
