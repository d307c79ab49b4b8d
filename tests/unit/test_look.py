"""A first look: what it counts is right, it stays small, and the page shows everything as text."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trivium.cli.data import app
from trivium.data.look.gather import Findings, look, odd_about
from trivium.data.look.measures import Draw, Frequent, Lengths, Repeated, key_of, short
from trivium.recipe import Source
from trivium.report.data_look import as_dict, as_page, as_text

pytest.importorskip("py3langid")

PROSE = "The harbour lay quiet that morning, and the boats of the night were tied up to the wall number {}."


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def looked(path: Path, **settings: Any) -> Findings:
    return look([Source(path=str(path))], **settings)


def test_lengths() -> None:
    lengths = Lengths()
    numbers = [random.Random(0).randrange(10_000) for _ in range(5000)]
    for number in numbers:
        lengths.add(number)
    ordered = sorted(numbers)
    for share in (0.05, 0.5, 0.95):
        assert lengths.quantile(share) == pytest.approx(ordered[int(share * 5000)], rel=0.02)
    assert (lengths.number, lengths.total, lengths.longest, lengths.shortest) == (
        5000, sum(numbers), ordered[-1], ordered[0],
    )  # fmt: skip
    bars = lengths.bars()
    assert sum(bars.values()) == 5000 and bars["7k"] == pytest.approx(
        sum(7000 <= n < 10_000 for n in numbers), rel=0.03
    )
    assert short(1500) == "1.5k" and short(12) == "12"


def test_draws_do_not_depend_on_the_order() -> None:
    names = [f"entry {number}" for number in range(1000)]
    drawn = []
    for seed in range(2):
        random.Random(seed).shuffle(names)
        draw: Draw[str] = Draw(10)
        for name in names:
            if draw.wants(key_of(name)):
                draw.add(key_of(name), name)
        drawn.append(draw.drawn())
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 10
    assert not Draw(0).wants(1)


def test_what_does_not_fit_is_counted_from_a_sample() -> None:
    repeated = Repeated(capacity=500)
    for number in range(20_000):
        repeated.add(key_of(str(number % 16_000)), str(number))
    assert repeated.share == pytest.approx(0.2, abs=0.05) and repeated.share_looked_at < 0.1
    small = Repeated()
    for name in "abcab":
        small.add(key_of(name), name)
    assert (small.share, small.most(5)) == (
        0.4,
        [("a", 2), ("b", 2)] if key_of("a") < key_of("b") else [("b", 2), ("a", 2)],
    )
    frequent = Frequent(capacity=100)
    for number in range(5000):
        frequent.add(["often", f"once {number}"])
    assert frequent.most(1) == [("often", 5000)] and frequent.rough


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("short", "shorter than 20 characters"),
        ("bad \ufffd character in an otherwise fine line", "unreadable characters (U+FFFD)"),
        ("a bell \x07 rings in this line of text", "control characters"),
        ("caf\u00c3\u00a9 au lait is what we all drink", "characters decoded in a wrong way (\u00c3\u00a9 for \u00e9)"),
        ("<div class='x'>so it begins and goes on</div>", "HTML tags"),
        ("x" * 1001, "a word longer than 1000 characters"),
        ("1234 5678 9012 3456 7890", "no letters"),
        ("THIS IS A TEXT THAT SHOUTS AND SHOUTS AND DOES NOT EVER STOP SHOUTING", "mostly capitals"),
        ("a " * 500_001, "longer than 1,000,000 characters"),
    ],
)
def test_odd_texts(text: str, what: str) -> None:
    assert what in [*odd_about(text)]
    assert [*odd_about("A plain sentence of the usual kind, with nothing odd about it.")] == []


def test_documents(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": f"d{n}", "text": PROSE.format("x" * n), "license": "CC0", "meta": {"url": f"https://a.example/{n}"}}
        for n in range(30)
    ]
    rows += [{"id": "again", "text": rows[0]["text"]}, {"id": "none", "text": ""}]
    path = write(tmp_path / "in.jsonl", rows)
    with path.open("a") as file:
        file.write("broken\n")
    found = looked(path, samples=5)
    assert (found.entries, dict(found.shapes), sum(found.problems.values())) == (32, {"text": 32}, 1)
    assert found.repeated.share == pytest.approx(1 / 31)
    assert found.near_share is not None and found.near_share > 0.5
    assert found.languages is not None and found.languages["en"] == 31
    assert found.from_where["licence"].most(3) == [("CC0", 30)]
    assert found.from_where["host"].most(3) == [("a.example", 30)]
    assert found.odd == {"empty": 1} and len(found.samples) == 5
    assert found.characters.total == sum(len(row["text"]) for row in rows)
    assert json.loads(json.dumps(as_dict(found)))["entries"] == 32
    assert "32 documents" in as_text(found)


def test_rows_of_other_shapes(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."},
        {"prompt": "Why?", "responses": ["a", "b", "c"], "ranking": [[0, 1], [2]]},
        {"text": "Fine.", "label": "good"},
        {"nothing": "known"},
    ]
    found = looked(write(tmp_path / "in.jsonl", rows))
    assert dict(found.shapes) == {"messages": 1, "preferences": 1, "ranked": 1, "labels": 1, "not readable": 1}
    assert found.facts["the better answer is longer"] == 1 and found.facts["with a tie"] == 1
    assert found.labels.most(1) == [("good", 1)] and found.turns[1] == 1
    assert "1 conversations" in as_text(found)


def test_steps_are_tried_alone(tmp_path: Path) -> None:
    from trivium.registry import component

    rows = [{"id": "a", "text": PROSE.format(1)}, {"id": "b", "text": "Short one.\nNo end here"}]
    cls = component("data/steps", "c4")
    steps = [("c4", cls(cls.Config(least_sentences=1)))]
    found = looked(write(tmp_path / "in.jsonl", rows), steps=steps)
    assert found.tried[0].seen == 2 and found.tried[0].reasons == {"too few sentences": 1}
    assert found.tried[0].examples["too few sentences"][0][0] == "b"
    assert b"c4 leaves out 1 of 2" in as_page(found)
    odd = component("data/steps", "tests.unit.pipeline_steps:Odd", outside=True)
    path = write(tmp_path / "bad.jsonl", [{"id": "a-bad", "text": PROSE}, {"id": "b", "text": PROSE}])
    assert looked(path, steps=[("odd", odd(odd.Config()))]).tried[0].reasons == {"the document is bad": 1}


def test_a_pipeline_folder_shows_what_was_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "steps" / "01-clean").mkdir(parents=True)
    write(folder / "documents.train.jsonl", [{"id": "a", "text": PROSE.format(1)}])
    write(folder / "documents.validation.jsonl", [{"id": "b", "text": PROSE.format(2)}])
    steps = [
        {"name": "read", "in": 3, "added": 0, "kept": 3, "dropped": {}, "merged": {}, "quarantined": {}},
        {
            "name": "clean",
            "in": 3,
            "added": 0,
            "kept": 2,
            "dropped": {"empty text": 1},
            "merged": {},
            "quarantined": {},
        },
    ]
    (folder / "report.json").write_text(json.dumps({"steps": steps}))
    write(folder / "steps" / "01-clean" / "decisions.jsonl", [
        {"id": "gone", "outcome": "dropped", "reason": "empty text", "evidence": "0 characters"}
    ])  # fmt: skip
    found = looked(folder)
    assert found.entries == 2 and found.flow is not None
    assert found.flow.steps[1].examples == {"empty text": [("gone", "0 characters")]}
    page = as_page(found).decode()
    assert "What the pipeline did" in page and "empty text" in page and "gone" in page


def test_the_page_shows_texts_and_runs_none(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> and then some more plain words \u202e"
    found = looked(write(tmp_path / "<b>in.jsonl", [{"id": evil, "text": evil}, {"id": "2", "text": evil}]))
    page = as_page(found).decode()
    assert "<script" not in page and "<img" not in page and "<b>in" not in page
    assert "default-src 'none'" in page and "&lt;script&gt;" in page


def test_nothing_to_see(tmp_path: Path) -> None:
    found = looked(write(tmp_path / "in.jsonl", [1, 2]))
    assert found.entries == 0 and "Nothing here can be read" in as_page(found).decode() and as_text(found)


def test_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"id": str(n), "text": PROSE.format(n)} for n in range(5)])
    runner = CliRunner()
    result = runner.invoke(app, ["look", str(path), "--html", str(tmp_path / "page.html"), "--step", "gopher_quality"])
    assert result.exit_code == 0, result.output
    assert "too few words" in result.stdout and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    result = runner.invoke(app, ["look", str(path), "--json", "--step", "{name: c4, least_sentences: 1}"])
    assert json.loads(result.stdout)["tried"][0]["left_out"] == {}
    assert "whole corpus" in str(runner.invoke(app, ["look", str(path), "--step", "boilerplate"]).exception)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        with (tmp_path / "in.jsonl").open("w") as file:
            for number in range(rows):
                text = " ".join(random.Random(number).choices(["alpha", "beta", "gamma", "delta"], k=200))
                file.write(json.dumps({"id": str(number), "text": f"{text}\n{number % 50}"}) + "\n")
        tracemalloc.start()
        looked(tmp_path / "in.jsonl")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(3000) < peak(750) * 2 + 4_000_000
