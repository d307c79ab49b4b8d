"""The same pipeline on a real Ray cluster of several worker processes, one of which is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trivium.artifacts.manifest import content_hash
from trivium.data.pipeline import run_pipeline
from trivium.errors import DataError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(280)]

STEPS = "tests.unit.pipeline_steps"


@pytest.fixture(scope="module")
def cluster():
    """A cluster of four workers on this machine."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as environment:  # not by a runtime_env: see `RayEngine`
        environment.setenv("PYTHONPATH", path)
        environment.setenv("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> dict:
    from tests.crash.test_pipeline_kills import STEPS as CHAIN
    from tests.crash.test_pipeline_kills import make_corpus
    from trivium.data.pipeline import run

    monkeypatch.setattr(run, "UNIT_BYTES", 60_000)
    monkeypatch.setattr(run, "PART_BYTES", 40_000)
    corpus = make_corpus(tmp_path / "corpus")
    return {"output": str(tmp_path / "here"), "sources": [str(corpus)], "steps": CHAIN, "workers": 1}


def test_ray_gives_the_same_files_and_survives_a_killed_worker(cluster, pipeline, tmp_path):
    wanted = content_hash(run_pipeline(pipeline).folder)
    on_ray = {**pipeline, "engine": "ray", "workers": 4}
    assert content_hash(run_pipeline({**on_ray, "output": str(tmp_path / "ray")}).folder) == wanted

    flag = tmp_path / "died"
    deadly = {"name": f"{STEPS}:Deadly", "id": "450", "once": str(flag)}
    steps = [deadly, *pipeline["steps"]]
    died = run_pipeline({**on_ray, "output": str(tmp_path / "died-once"), "steps": steps}).folder
    assert flag.exists(), "a worker was killed with SIGKILL"
    for name in ("documents.train.jsonl", "documents.validation.jsonl"):
        assert (died / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_errors_and_endless_deaths_reach_the_user(cluster, pipeline, tmp_path):
    on_ray = {**pipeline, "engine": "ray", "workers": 2, "output": str(tmp_path / "ray")}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\nno json\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        run_pipeline({**on_ray, "sources": [str(bad)], "on_error": "error"})
    with pytest.raises(DataError, match="Ray gave up"):
        run_pipeline({**on_ray, "steps": [{"name": f"{STEPS}:Deadly", "id": "450"}]})


def test_the_engine_starts_a_cluster_of_its_own(pipeline, tmp_path):
    """In a process of its own, as the command line does."""
    pytest.importorskip("ray")
    import yaml

    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**pipeline, "steps": ["clean"], "workers": 2}))
    command = [sys.executable, "-m", "trivium", "data", "run", str(tmp_path / "a.yaml"), "--engine", "ray", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert '"kept": {"train": ' in done.stdout
