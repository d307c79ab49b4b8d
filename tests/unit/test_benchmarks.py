"""The harness of the benchmarks: what it keeps, compares and draws. What they measure is never a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = {
    "ours": [{"seconds": 2.0, "memory": 100.0}, {"seconds": 1.0, "memory": 100.0}, {"seconds": 4.0, "memory": 100.0}],
    "peer": [{"seconds": 3.0, "memory": 200.0}, {"seconds": 4.0, "memory": 200.0}, {"seconds": 4.0, "memory": 50.0}],
    "other": [{"seconds": 1.0}, {"seconds": 1.0}, {"seconds": 1.0}],
}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import record

    return record


def saved(record, folder: Path, **settings):
    better = {"seconds": "less", "memory": "less"}
    return record.save(BENCHMARKS / "shelf.py", RUNS, better=better, out=folder / "shelf.json", **settings)


def test_a_record_has_every_measurement_the_machine_and_the_ratios(record, tmp_path: Path) -> None:
    saved(record, tmp_path, variant="large", settings={"steps": 3}, note="busy")
    kept = json.loads((tmp_path / "shelf.json").read_text())
    assert kept["workload"] == "shelf-large"
    assert kept["settings"] == {"steps": 3}
    assert kept["note"] == "busy"
    assert kept["machine"]["cores"] >= 1
    assert kept["versions"]["ours"]["torch"].startswith("2.")
    assert [(each["side"], each["number"]) for each in kept["measurements"]][:4] == [
        ("ours", 0),
        ("peer", 0),
        ("other", 0),
        ("ours", 1),
    ]
    assert len(kept["measurements"]) == 9
    seconds, memory, other = kept["ratios"]
    assert (seconds["ratio"], seconds["least"], seconds["most"], seconds["pairs"]) == (0.5, 0.25, 1.0, 3)
    assert (memory["ratio"], memory["least"], memory["most"]) == (0.5, 0.5, 2.0)
    assert (other["peer"], other["figure"], other["ratio"]) == ("other", "seconds", 2.0)


def test_peers_are_compared_with_the_best_setting_of_ours(record) -> None:
    runs = {
        "ours": [{"rate": 2.0}, {"rate": 2.0}],
        "ours_compiled": [{"rate": 3.0}, {"rate": 5.0}],
        "peer": [{"rate": 2.0}, {"rate": 2.0}],
    }
    (row,) = record.ratios(runs, {"rate": "more"})
    assert (row["side"], row["peer"], row["ratio"], row["least"], row["most"]) == ("ours_compiled", "peer", 2, 1.5, 2.5)
    (row,) = record.ratios(runs, {"rate": "less"})
    assert (row["side"], row["ratio"]) == ("ours", 1)
    assert record.ratios(runs, {}) == []


def test_what_is_published_names_no_folder_of_a_machine(record) -> None:
    found = record.read(record.RESULTS)
    assert found
    for each in found:
        assert not [word for word in each["command"] if word.startswith("/")], each["workload"]
        assert each["ratios"]


def test_the_table_and_the_plot_show_them(record, tmp_path: Path) -> None:
    one = saved(record, tmp_path)
    assert "| shelf | peer | seconds, less is better | 2 | 4 | 0.50 (0.25 to 1.00) | 3 |" in record.table([one])
    drawing = record.plot([one])
    texts = [element.text for element in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert "shelf: seconds, peer" in texts
    assert "2.00" in texts, "half the seconds is twice as good"
    assert "0.50" in texts, "twice the seconds is half as good"


def test_the_newest_of_a_workload_counts(record, tmp_path: Path) -> None:
    first = saved(record, tmp_path)
    for name, date, note in (("a", "2026-02-01", "new"), ("b", "2026-01-01", "old")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**first, "date": date, "note": note}))
    (tmp_path / "shelf.json").unlink()
    assert [each["note"] for each in record.read(tmp_path)] == ["new"]


def test_every_script_declares_how_it_is_started(record) -> None:
    import peers

    known = {"peers", "apart", "environment", "unpinned", "together", "data", "arguments"}
    found = {name: peers.declared(script) for name, script in peers.workloads().items()}
    assert {"pretrain", "sft", "dedup", "pipeline"} <= set(found)
    assert not {name: set(each) - known for name, each in found.items() if set(each) - known}
    pinned = {line.partition("==")[0].lower() for line in (BENCHMARKS.parent / "constraints.txt").read_text().split()}
    shared = {
        name for each in found.values() if each.get("environment", "peers") == "peers" for name in each.get("peers", ())
    }
    assert shared <= pinned, "whoever shares an environment has a version that everybody has"


def test_a_constraint_that_conflicts_is_left_out_of_its_environment(record) -> None:
    import peers

    assert "xxhash==" in peers._constraints(())
    assert "xxhash==" not in peers._constraints(["xxhash"])


def test_an_unknown_workload_is_refused_by_name() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS), "stf"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no workload stf" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "attention over several lengths",
        "fused loss",
        "activation checkpointing",
        "greedy decoding by CUDA graphs",
    ],
)
def test_the_checks_of_the_gpu_pass_where_there_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    import checks

    off, limit, _ = checks.CHECKS[name](torch.device("cpu"))
    assert off <= limit


def test_fp8_is_checked_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it has none: that is said, and counts as no failure; asked for, it is imitated."""
    pytest.importorskip("torchao")
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    import checks

    name = "FP8 arithmetic, float32 weights"
    monkeypatch.setattr(checks, "CHECKS", {name: checks.CHECKS[name], "a run in fp8": checks.CHECKS["a run in fp8"]})
    monkeypatch.delenv("TRIVIUM_FP8_EMULATE", raising=False)
    left_out = checks.run_checks("cpu")
    assert [(check.good, check.left_out, check.note) for check in left_out] == [
        (True, True, "the device has no FP8")
    ] * 2
    checks.float32(torch.device("cpu"))
    monkeypatch.setenv("TRIVIUM_FP8_EMULATE", "1")
    off, limit, note = checks.CHECKS[name](torch.device("cpu"))
    assert 0.02 < off <= limit and "21 of 22 linear layers" in note


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu(tmp_path: Path) -> None:
    """All parts of it, with a tiny model: the figures mean nothing, but every side is measured."""
    command = [sys.executable, str(BENCHMARKS / "gpu"), "--device", "cpu", "--small", "--out", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    kept = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(kept) == {"x-training", "x-tuning", "x-decoding-1", "x-decoding-16"}
    assert {row["peer"] for row in kept["x-training"]["ratios"]} >= {"eager"}
    assert {row["figure"] for row in kept["x-training"]["ratios"]} == {"tokens_per_second", "memory", "utilisation"}
    assert {row["peer"] for row in kept["x-decoding-1"]["ratios"]} == {"dynamic", "static"}
    assert all(check["good"] for check in kept["x-training"]["result"]["checks"])
