"""A run with a curriculum, token budgets and limits, killed again and again, ends bit-identical to a calm one."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path

import pytest

from tests.crash.kills import fingerprint, finish, make_world

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]


def experiment(
    kills: int, seed: int = 0
) -> tuple[dict[str, str], list[dict[str, str]], int, list[list[dict[str, object]]]]:
    """(fingerprint of the calm run, of the disturbed ones, kills, what each said about its sources)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_world(folder, "clm")
        rng = random.Random(2)
        other = folder / "other.jsonl"
        rows = [{"text": "".join(rng.choices("abcdefghij ", k=rng.randrange(20, 200)))} for _ in range(60)]
        other.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe["data"].update(
            train=[recipe["data"]["train"], {"path": str(other), "max_epochs": 0.8}],
            curriculum={"scorer": "rarity", "start": 0.2, "until": 0.7},
        )
        finish({**recipe, "name": "warm", "train": {**recipe["train"], "steps": 1}}, 0, seed)
        began = time.perf_counter()
        finish({**recipe, "name": "calm"}, 0, seed)
        died = finish(recipe, kills, seed, lifetime=time.perf_counter() - began)
        runs = Path(recipe["runs"])
        disturbed = [path for path in sorted(runs.iterdir()) if path.name.startswith("killed")]
        said = [
            json.loads((path / "data.json").read_text())["train"]["sources"] for path in (runs / "calm", *disturbed)
        ]
        return fingerprint(runs / "calm"), list(map(fingerprint, disturbed)), died.total(), said


def check(kills: int, seed: int) -> None:
    calm, disturbed, died, said = experiment(kills, seed)
    assert died == kills
    assert disturbed and all(run == calm for run in disturbed)
    assert all(sources == said[0] for sources in said), "the account of the sources is that of the calm run"
    assert said[0][1]["epochs"] <= 0.8


def test_killed_runs_end_bit_identical() -> None:
    check(4, 0)


@pytest.mark.slow
def test_a_hundred_kills() -> None:
    check(100, 1)
