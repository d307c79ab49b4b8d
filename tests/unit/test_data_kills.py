"""SIGKILL at random moments while documents are cleaned, compared, split and tokenised: the files are the same."""

from __future__ import annotations

import json
import random
import time
from functools import partial
from pathlib import Path

import pytest

from tests.crash.restarts import run_with_kills, start_python
from trivium.artifacts.manifest import content_hash
from trivium.tokenizers.train import train_bpe

CHILD = """
import sys
from pathlib import Path
from trivium.data import prepare, shards
from trivium.data.pipeline import run
from trivium.recipe import Source
from trivium.tokenizers.tokenizer import Tokenizer

corpus, tokenizer, work = map(Path, sys.argv[1:])
run.PART_BYTES = run.UNIT_BYTES = 100_000
done = prepare.prepare_documents(Source(path=str(corpus)), work / "documents", validation_fraction=0.2)
found = shards.tokenise_on_disk(
    Source(path=str(done.train)), Tokenizer.load(tokenizer), on_error="error", cache=work / "cache", shard_bytes=100_000
)
print("finished", len(found.shards))
"""


def hashes(work: Path) -> dict[str, str]:
    found = {path.name: content_hash(path) for path in (work / "cache").iterdir()}
    return {**found, "documents": content_hash(work / "documents")}


@pytest.fixture
def inputs(tmp_path):
    draw = random.Random(0)
    words = [f"word{n}" for n in range(500)]
    rows = [
        {"id": f"{n}", "text": " ".join(draw.choices(words, k=200)), "meta": {"group": f"g{n % 40}"}}
        for n in range(1500)
    ]
    rows += [{**row, "id": f"copy {row['id']}"} for row in rows[::20]]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tokenizer").mkdir()
    train_bpe([" ".join(words)], vocab_size=400).save(tmp_path / "tokenizer")
    return corpus, tmp_path / "tokenizer"


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(1200)
def test_a_hundred_kills_leave_the_same_files(inputs, tmp_path):
    began = time.perf_counter()
    run_with_kills(partial(start_python, CHILD, *inputs, tmp_path / "whole"), 0, random.Random(0), 0)
    lifetime = 1.2 * (time.perf_counter() - began)
    wanted = hashes(tmp_path / "whole")
    killed = 0
    for run in range(1000):
        work = tmp_path / f"work{run}"
        draw = random.Random(run)
        killed += run_with_kills(partial(start_python, CHILD, *inputs, work), 5 + run, draw, lifetime)
        assert hashes(work) == wanted
        assert [path.name for path in work.rglob(".*") if path.name not in wanted] == []
        if killed >= 100:
            break
