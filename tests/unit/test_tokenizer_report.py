"""The report and the laboratory: figures that can be counted by hand, and a comparison that is fair."""

from __future__ import annotations

import json
import math

import pytest

from trivium.artifacts.writer import JsonLines
from trivium.cli.main import run
from trivium.drivers import tokenizer_lab
from trivium.drivers.tokenizer_lab import Settings, interval, laboratory, parse_candidates
from trivium.drivers.tokenizer_report import tokenizer_report, write_page
from trivium.errors import TriviumError
from trivium.tokenizers.kinds import train_kind
from trivium.tokenizers.tokenizer import Tokenizer

WORDS = ["list", "dict", "tuple", "string", "number", "file", "path", "line", "error", "value", "key", "item"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"{n}", "text": f"Return the {WORDS[n % 12]} of a {WORDS[n % 7]}. " * 12, "meta": {"language": "en"}}
        for n in range(60)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other.txt").write_text("Größe 東京")
    for kind in ("char", "byte", "wordpiece"):
        made = train_kind(kind, [row["text"] for row in rows], **({"vocab_size": 60} if kind == "wordpiece" else {}))
        (tmp_path / kind).mkdir()
        made.save(tmp_path / kind)
    return tmp_path


def test_figures_are_those_counted_by_hand(folders):
    result = tokenizer_report(["char", "byte", "wordpiece"], ["docs.jsonl", "other.txt"])
    char, byte, pieces = result["tokenizers"]
    other = byte["sources"]["other.txt"]
    assert (other["bytes"], other["characters"], other["words"], other["tokens"]) == (14, 8, 2, 14)
    assert (other["fertility"], other["bytes_per_token"], other["comes_back"]) == (7.0, 1.0, 1.0)
    lost = char["sources"]["other.txt"]
    assert lost["unknown"] == sum(letter not in char_letters() for letter in "Größe 東京")
    assert lost["comes_back"] == 0.0
    assert pieces["sources"]["docs.jsonl"]["fertility"] > 1
    assert char["sources"]["docs.jsonl"]["fertility"] > pieces["sources"]["docs.jsonl"]["fertility"]
    used = set("".join(row for row in texts())) | set("e r")
    assert byte["vocabulary"]["ordinary"] == 256
    assert byte["vocabulary"]["used"] == len({value for text in [*texts(), "Größe 東京"] for value in text.encode()})
    assert char["vocabulary"]["dead"] == len(char_letters() - used)
    assert byte["vocabulary"]["used"] + byte["vocabulary"]["dead"] == 256
    assert byte["languages"]["en"]["documents"] == 60
    whole = [each["total"]["tokens"] for each in result["tokenizers"]]
    assert whole == [sum(group["tokens"] for group in each["sources"].values()) for each in result["tokenizers"]]


def texts() -> list[str]:
    return [f"Return the {WORDS[n % 12]} of a {WORDS[n % 7]}. " * 12 for n in range(60)]


def char_letters() -> set[str]:
    return set("".join(texts()))


def test_less_text_is_read_if_asked(folders):
    result = tokenizer_report(["byte"], ["docs.jsonl"], megabytes=0.001)
    assert result["tokenizers"][0]["total"]["documents"] < 60


def test_single_bytes_are_counted(folders):
    made = train_kind("char-bpe", texts(), vocab_size=330)
    (folders / "fallback").mkdir()
    made.save(folders / "fallback")
    (each,) = tokenizer_report(["fallback"], ["other.txt"])["tokenizers"]
    assert each["total"]["single_bytes"] == len("Göß東京".encode())  # none of them is in the texts
    assert each["total"]["comes_back"] == 1.0


def test_page_and_command(folders, capsys):
    assert run(["tokenizer", "report", "char", "byte", "--on", "docs.jsonl", "--on", "other.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizers"][1]["total"]["bytes_per_token"] == 1.0
    assert run(["tokenizer", "report", "char", "byte", "--on", "docs.jsonl", "--html", "page.html"]) == 0
    assert "bytes/token" in capsys.readouterr().out
    page = (folders / "page.html").read_text()
    assert "<script" not in page
    assert "Longest tokens" in page
    with pytest.raises(TriviumError):
        tokenizer_report(["char"], ["nothing.txt"])
    assert write_page(tokenizer_report(["byte"], ["other.txt"]), folders / "b.html").exists()


# The laboratory


@pytest.mark.parametrize("names", ["bpe:4096", "char,char", "bpe:x,char", "char:100,byte", "bpq:10,char", ""])
def test_candidates_are_checked(names):
    with pytest.raises(TriviumError):
        parse_candidates([names])


def test_candidates():
    found = parse_candidates(["bpe:4096,unigram:512", "char"])
    assert [each.name for each in found] == ["bpe-4096", "unigram-512", "char"]


def test_interval():
    assert interval([1.0]) == {"mean": 1.0, "low": None, "high": None}
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] == pytest.approx(2 + 4.303 / math.sqrt(3), rel=1e-3)


SMALL = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_kv_heads": 2}


def small(**more) -> Settings:
    base = {"sources": ["docs.jsonl"], "candidates": ["bpe:300,char"], "flops": 3e8, "changes": SMALL, "seeds": 2}
    return Settings(**{**base, "held_out": 0.2, "sequence_length": 64, "batch_size": 2, **more})


@pytest.mark.timeout(200)
def test_a_laboratory(folders, monkeypatch):
    result = laboratory(small(), folders / "lab")
    by_name = {row["name"]: row for row in result["candidates"]}
    assert by_name["bpe-300"]["flops"] == pytest.approx(by_name["char"]["flops"], rel=0.1)
    assert by_name["char"]["updates"] > by_name["bpe-300"]["updates"]
    held_out = [json.loads(line)["text"] for line in (folders / "lab/held-out.jsonl").read_text().splitlines()]
    train = [json.loads(line)["text"] for line in (folders / "lab/train.jsonl").read_text().splitlines()]
    assert len(held_out) + len(train) == 60
    assert result["held_out_bytes"] == sum(len(text.encode()) for text in held_out)
    for row in result["candidates"]:
        tokenizer = Tokenizer.load(row["folder"])
        tokens = sum(len(tokenizer.encode(text)) + 1 for text in held_out)
        metrics = JsonLines(folders / "lab" / "runs" / f"{row['name']}-seed1" / "metrics.jsonl").read()
        loss = [line["loss"] for line in metrics if line["kind"] == "validation"][-1]
        assert row["runs"][1]["bits_per_byte"] == pytest.approx(loss * tokens / math.log(2) / result["held_out_bytes"])
    # The models' own figure is over the same bytes: both tokenizers give the text back.
    measured = [line["bits_per_byte"] for line in metrics if line["kind"] == "validation"][-1]
    assert by_name["char"]["runs"][1]["bits_per_byte"] == pytest.approx(measured, rel=0.02)
    best = min(result["candidates"], key=lambda row: row["mean"])
    assert result["recommended"] == best["name"]
    assert (folders / "lab" / "lab.html").exists()

    monkeypatch.setattr("trivium.drivers.single.train", lambda *given: pytest.fail("a finished run was repeated"))
    assert laboratory(small(), folders / "lab") == result
    with pytest.raises(TriviumError, match="another seeds"):
        laboratory(small(seeds=3), folders / "lab")


def test_candidates_that_lose_text_are_not_recommended():
    runs = [{"seed": 0, "bits_per_byte": 1.0}, {"seed": 1, "bits_per_byte": 1.1}]
    higher = [{"seed": 0, "bits_per_byte": 1.5}, {"seed": 1, "bits_per_byte": 1.61}]
    rows = [
        {"name": "word", "runs": runs, "mean": 1.05, "comes_back": 0.0, "passes": 1.0, "updates": 500},
        {"name": "bpe", "runs": higher, "mean": 1.55, "comes_back": 1.0, "passes": 9.0, "updates": 500},
        {
            "name": "byte",
            "runs": [{**run, "bits_per_byte": 3.0} for run in runs],
            "mean": 3.0,
            "comes_back": 1.0,
            "passes": 1,
            "updates": 500,
        },
    ]
    found = tokenizer_lab._judged(rows)
    assert (found["recommended"], found["as_good"]) == ("bpe", [])
    assert len(found["remarks"]) == 2
