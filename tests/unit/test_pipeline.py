"""A pipeline gives the same files however it is run, accounts for every document, and says what is wrong with it."""

from __future__ import annotations

import gzip
import json
import random
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from trivium.artifacts.manifest import content_hash, verify
from trivium.artifacts.record import read_record
from trivium.data.intake import Intake
from trivium.data.pipeline import resolve_pipeline, run_pipeline
from trivium.data.pipeline import run as running
from trivium.data.pipeline.dry import dry_run, shown
from trivium.data.pipeline.engines import RayEngine
from trivium.data.pipeline.errors import WorkerFailed
from trivium.data.pipeline.units import plan_units
from trivium.data.pipeline.why import as_text, why
from trivium.errors import ConfigError, DataError, TriviumError
from trivium.recipe import Source

STEPS = "tests.unit.pipeline_steps"
WORDS = ["", "", "", "", "drop", "bad", "none", "two"]


def rows(count: int = 120) -> list[dict]:
    draw = random.Random(0)
    found = []
    for number in range(count):
        text = "".join(draw.choices("abcdefgh", k=draw.randrange(30, 300)))
        found.append({"id": f"{number}-{draw.choice(WORDS)}", "text": text, "meta": {"date": "2020-01-01"}})
    return found


def write(path: Path, found: list[dict], *, bad: bool = True) -> Path:
    lines = [json.dumps(row) for row in found]
    lines[7:7] = ["no json", '{"words": 3}'] if bad else []
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts and units of a few kB."""
    monkeypatch.setattr(running, "UNIT_BYTES", 8_000)
    monkeypatch.setattr(running, "PART_BYTES", 5_000)


@pytest.fixture
def pages(tmp_path) -> Path:
    """A large file in parts, a packed one that is read alone, small files, and one that is left out."""
    folder = tmp_path / "pages"
    (folder / "small").mkdir(parents=True)
    found = rows()
    write(folder / "large.jsonl", found)
    write(folder / "packed.jsonl.gz", [{**row, "id": f"p{row['id']}"} for row in rows(100)])
    for number in range(20):
        (folder / "small" / f"{number:02}.txt").write_text(f"text {number} " * 30)
    (folder / "image.png").write_bytes(b"x")
    return folder


def pipeline(pages: Path, output: Path, **more) -> dict:
    steps = ["clean", f"{STEPS}:Odd", {"name": f"{STEPS}:Same", "letters": 3}, "clean"]
    return {"output": str(output), "sources": [str(pages)], "steps": steps, "workers": 1, **more}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_account_closes_for_every_step_and_each_document_has_its_reason(pages, tmp_path):
    done = run_pipeline(pipeline(pages, tmp_path / "out"))
    report = done.report
    verify(done.folder)
    kept = lines_of(done.folder / "documents.train.jsonl")
    assert report["kept"] == {"train": len(kept)}
    assert report["input"] == 120 + 100 + 20 + 4
    assert report["skipped"] == {"unknown extension .png": 1}
    assert report["formats"] == {"jsonl": 2, "txt": 20}
    out = {name: sum(report[name].values()) for name in ("dropped", "merged", "quarantined")}
    assert report["input"] + report["added"] == len(kept) + sum(out.values())
    assert [step["name"] for step in report["steps"]] == ["read", "clean", f"{STEPS}:Odd", f"{STEPS}:Same", "clean"]
    for before, step in zip(report["steps"], report["steps"][1:], strict=False):
        assert step["in"] == before["kept"]
        left = sum(sum(step[name].values()) for name in out)
        assert step["in"] + step["added"] == step["kept"] + left
    odd, same = report["steps"][2:4]
    ends = [row["id"].rpartition("-")[2] for row in [*rows(), *rows(100)]]
    assert odd["dropped"] == {"too odd": ends.count("drop"), "nothing took its place": ends.count("none")}
    assert odd["quarantined"] == {"the document is bad": ends.count("bad")}
    assert odd["added"] == ends.count("two") > 5
    assert same["merged"]["same begin"] > 10

    decided = lines_of(done.folder / "steps" / "02-Odd" / "decisions.jsonl")
    outcomes = {"dropped", "quarantined", "added"}
    assert {row["outcome"] for row in decided} == outcomes
    assert len(decided) == odd["added"] + sum(odd["dropped"].values()) + sum(odd["quarantined"].values())
    assert (done.folder / "steps" / "03-Same" / "seen.txt").read_text()
    assert all(row["meta"]["sha256"] and row["source"] for row in kept)
    assert kept[0]["meta"]["date"] == "2020-01-01"
    order = [row["id"] for row in kept if row["id"][0] != "p" and "'" not in row["id"] and "-" in row["id"]]
    assert order == sorted(order, key=lambda name: int(name.partition("-")[0]))
    record = read_record(done.folder)
    assert (record.kind, [parent.role for parent in record.parents]) == ("documents", ["documents"])
    assert set(done.seconds) == {"01-clean", "02-Odd", "03-Same", "04-clean"}
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_the_files_do_not_depend_on_the_workers_nor_on_deaths(pages, tmp_path):
    one = content_hash(run_pipeline(pipeline(pages, tmp_path / "one")).folder)
    for workers in (2, 4):
        found = run_pipeline(pipeline(pages, tmp_path / f"{workers}", workers=workers))
        assert content_hash(found.folder) == one
        assert found.seconds
    deadly = {"name": f"{STEPS}:Deadly", "id": rows()[50]["id"], "once": str(tmp_path / "died")}
    more = [deadly, *pipeline(pages, tmp_path)["steps"]]
    died = run_pipeline(pipeline(pages, tmp_path / "died-once", workers=2, steps=more))
    assert (tmp_path / "died").exists()
    assert died.report["kept"] == json.loads((tmp_path / "one" / "report.json").read_text())["kept"]


def test_a_worker_that_always_dies_and_a_defect_end_the_run(pages, tmp_path):
    deadly = [{"name": f"{STEPS}:Deadly", "id": rows()[50]["id"]}]
    with pytest.raises(DataError, match=r"died 3 times(.|\n)*signal 9"):
        run_pipeline(pipeline(pages, tmp_path / "out", steps=deadly, workers=2))
    with pytest.raises(WorkerFailed, match="a defect of this step"):
        run_pipeline(pipeline(pages, tmp_path / "out", steps=[f"{STEPS}:Broken"], workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_reach_the_user_as_they_are(pages, tmp_path, workers):
    with pytest.raises(DataError) as caught:
        run_pipeline(pipeline(pages / "large.jsonl", tmp_path / "out", steps=[], on_error="error", workers=workers))
    assert "large.jsonl:8" in caught.value.where
    assert caught.value.problem == "the row is not valid JSON"
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_sketched_is_set_aside(pages, tmp_path):
    found = rows()
    found[5]["id"] = "unsketchable-"
    write(pages / "large.jsonl", found)
    report = run_pipeline(pipeline(pages, tmp_path / "out")).report
    assert report["steps"][3]["quarantined"] == {"nothing can be known of this document": 1}
    rehearsed = dry_run(pipeline(pages, tmp_path / "dry"), documents=1000)["steps"][3]
    assert all(rehearsed[name] == report["steps"][3][name] for name in ("in", "kept", "merged", "quarantined"))
    alone = write(tmp_path / "alone.jsonl", found[5:6], bad=False)
    steps = {"steps": [f"{STEPS}:Same"], "on_error": "error"}
    with pytest.raises(DataError, match="nothing can be known"):
        dry_run(pipeline(alone, tmp_path / "dry", **steps), documents=20)


def test_a_second_run_does_nothing_and_other_settings_replace(pages, tmp_path, monkeypatch):
    first = run_pipeline(pipeline(pages, tmp_path / "out"))
    replaced = run_pipeline(pipeline(pages, tmp_path / "out"), ["steps.2.letters=1"])
    assert replaced.report != first.report
    with monkeypatch.context() as patched:
        patched.setattr(running, "_Run", None)
        again = run_pipeline(pipeline(pages, tmp_path / "out"), ["steps.2.letters=1", "workers=2"])
    assert (again.report, again.seconds) == (replaced.report, {})
    write(pages / "large.jsonl", rows(20))
    assert run_pipeline(pipeline(pages, tmp_path / "out")).report["input"] == first.report["input"] - 100


def test_splits_and_hashes_of_earlier_pipelines_are_kept(tmp_path):
    found = [{"id": f"{n}", "text": f"text {n}", "meta": {"split": "test" if n < 3 else "train"}} for n in range(9)]
    write(tmp_path / "a.jsonl", found, bad=False)
    first = run_pipeline({"output": str(tmp_path / "one"), "sources": [str(tmp_path / "a.jsonl")], "workers": 1})
    assert first.report["kept"] == {"test": 3, "train": 6}
    train = first.folder / "documents.train.jsonl"
    second = run_pipeline(
        {"output": str(tmp_path / "two"), "sources": [str(train)], "steps": [f"{STEPS}:Odd"], "workers": 1}
    )
    hashes = [[row["meta"]["sha256"] for row in lines_of(x.folder / "documents.train.jsonl")] for x in (first, second)]
    assert hashes[0] == hashes[1]
    write(tmp_path / "a.jsonl", [{"text": "x", "meta": {"split": "../x"}}], bad=False)
    with pytest.raises(DataError, match="cannot name a file"):
        run_pipeline({"output": str(tmp_path / "one"), "sources": [str(tmp_path / "a.jsonl")], "workers": 1})


def test_units_are_cut_by_the_input(pages):
    units = plan_units([Source(path=str(pages))], Intake(), size=8000)
    assert sum(unit.span is not None for unit in units) > 1
    assert [unit.files[0][1] for unit in units if unit.alone] == ["packed.jsonl.gz"]
    assert max(len(unit.files) for unit in units) == 20
    covered = [unit.span[:2] for unit in units if unit.span]
    assert all(one[1] == other[0] for one, other in pairwise(covered))


def test_nothing_to_read_and_nothing_left(pages, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match="holds no documents"):
        run_pipeline(pipeline(pages, tmp_path / "out", sources=[str(pages), str(empty)]))
    with pytest.raises(DataError, match=r"no document is left(.|\n)*too short: 240"):
        run_pipeline(pipeline(pages, tmp_path / "out", steps=[{"name": "clean", "least_characters": 10**6}]))
    assert not (tmp_path / "out").exists()


# Why, and what would be


def test_why(pages, tmp_path):
    out = run_pipeline(pipeline(pages, tmp_path / "out")).folder
    bad = next(row["id"] for row in rows() if row["id"].endswith("-bad"))
    assert [row["outcome"] for row in why(out, bad)] == ["quarantined"]
    merged = lines_of(out / "steps" / "03-Same" / "decisions.jsonl")[0]
    found = why(out, merged["id"])
    assert found[-1]["into"] == merged["into"]
    assert "03-Same: merged: same begin" in as_text(found)
    kept = lines_of(out / "documents.train.jsonl")[0]
    assert why(out, kept["id"])[-1] == why(out, kept["meta"]["sha256"])[-1]
    assert "kept; read from" in as_text(why(out, kept["id"]))
    with pytest.raises(DataError, match="did you mean"):
        why(out, bad + "d")
    with pytest.raises(DataError, match=r"no document like this"):
        why(out, "qqqqqqqqqqqqqqqqqqqqqq")


def test_a_dry_run_shows_what_goes_and_why_and_writes_nothing(pages, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = dry_run(pipeline(pages, tmp_path / "out"), documents=50)
    assert sorted(tmp_path.rglob("*")) == before
    assert [step["name"] for step in found["steps"]][1:3] == ["clean", f"{STEPS}:Odd"]
    assert found["steps"][0]["kept"] == 50
    assert found["steps"][2]["dropped"]["too odd"] > 1
    text = shown(found)
    assert "dropped: too odd" in text
    assert "odd: " in text
    assert "same begin" in text


# The file


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("output: o\nsources: p\nsteps: [clean, minhassh]\n", ["there is no step 'minhassh'", ":3", "minhash"]),
        (
            "output: o\nsources: p\nsteps:\n  - clean\n  - {name: minhash, treshold: 0.8}\n",
            ["unknown key steps.1.treshold", ":5", "steps.1.threshold"],
        ),
        ("output: o\nsources: p\nsteps: [clean]\nworker: 3\n", ["unknown key worker", ":4", "workers"]),
        ("sources: p\nsteps: [clean]\n", ["output is missing"]),
        ("output: o\nsources: []\n", ["sources"]),
        ("output: o\nsources: [{path: p, weight: 2}]\n", ["sources.0.weight is for training"]),
        ("output: o\nsources: p\nengine: rai\n", ["engine", "ray"]),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, wanted):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve_pipeline(tmp_path / "a.yaml")
    message = str(caught.value)
    assert all(word in message for word in wanted), message
    assert message.count("\n") < 5


def test_a_wrong_file_is_refused_soon_and_without_torch(tmp_path):
    (tmp_path / "a.yaml").write_text("output: o\nsources: p\nsteps: [clean, minhassh]\n")
    code = (
        "import sys; from trivium.cli.main import run; c = run(['data', 'run', sys.argv[1]]); "
        "sys.exit(9 if 'torch' in sys.modules else c)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.yaml"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "there is no step" in done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1


def test_a_cluster_that_does_not_start_is_no_defect_of_the_program(monkeypatch):
    closed = []

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup")

    broken = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: closed.append(True))
    monkeypatch.setitem(sys.modules, "ray", broken)
    with pytest.raises(TriviumError, match="Ray did not start") as caught:
        RayEngine(2)
    assert "timed out" in str(caught.value) and "engine: local" in str(caught.value)
    assert closed == [True]
