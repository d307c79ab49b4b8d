"""SIGKILL at random moments, of the process that runs a pipeline and of its workers: the files are always the same."""

from __future__ import annotations

import json
import random
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.crash.restarts import run_with_kills, start_python
from trivium.artifacts.manifest import content_hash

CHILD = """
import json, sys
from trivium.data.pipeline import run

run.UNIT_BYTES, run.PART_BYTES = 60_000, 40_000
done = run.run_pipeline(json.loads(sys.argv[1]))
print("finished", json.dumps(done.report["kept"]))
"""
STEPS = ["clean", {"name": "minhash", "threshold": 0.6}, "exact", {"name": "split", "validation": 0.2}, "clean"]


def start(pipeline: dict) -> subprocess.Popen[bytes]:
    return start_python(CHILD, json.dumps(pipeline))


def make_corpus(folder: Path) -> Path:
    """A plain file in parts, a packed one, small files; with duplicates across them."""
    import gzip

    draw = random.Random(0)
    words = [f"word{n}" for n in range(300)]
    rows = [{"id": f"{n}", "text": " ".join(draw.choices(words, k=120)), "meta": {"group": n % 40}} for n in range(900)]
    rows += [{**row, "id": f"copy {row['id']}"} for row in rows[::15]]
    lines = ["".join(json.dumps(row) + "\n" for row in part) for part in (rows[:700], rows[700:])]
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[1].encode(), mtime=0))
    for number in range(30):
        (folder / f"c{number:02}.txt").write_text(" ".join(draw.choices(words, k=150)))
    return folder


def experiment(folder: Path, kills: int) -> dict[int, int]:
    """Kills by number of workers; asserts that nothing ever differs."""
    corpus = make_corpus(folder / "corpus")
    pipeline = {"output": str(folder / "calm"), "sources": [str(corpus)], "steps": STEPS, "workers": 1}
    began = time.perf_counter()
    assert run_with_kills(partial(start, pipeline), 0, random.Random(0), 0) == 0
    lifetime = 1.2 * (time.perf_counter() - began)
    wanted = content_hash(folder / "calm")
    found = dict.fromkeys((1, 2, 4), 0)
    for number in range(10_000):
        workers = (1, 2, 4)[number % 3]
        output = folder / f"work{number}"
        given = {**pipeline, "output": str(output), "workers": workers}
        killed = run_with_kills(partial(start, given), 4 + number, random.Random(number), lifetime)
        assert content_hash(output) == wanted
        assert not [path for path in folder.iterdir() if path.name.startswith(f".work{number}.")]
        found[workers] += killed
        if sum(found.values()) >= kills and number >= 2:
            break
    return found


@pytest.mark.crash
def test_a_few_kills_leave_the_same_files(tmp_path):
    assert sum(experiment(tmp_path, 10).values()) >= 10


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_a_hundred_kills_leave_the_same_files(tmp_path):
    found = experiment(tmp_path, 100)
    assert sum(found.values()) >= 100
    print(f"kills by number of workers: {found}")
