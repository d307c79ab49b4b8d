"""`trivium sweep`: what it refuses, what samplers and pruners do, and whole sweeps with real trials."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trivium as tv
from tests.crash.kills import fingerprint, make_world
from trivium.artifacts.lineage import read_lineage, render_text
from trivium.artifacts.manifest import verify
from trivium.cli.main import run
from trivium.config import resolve
from trivium.errors import ConfigError, TriviumError
from trivium.marked_yaml import dump_yaml
from trivium.search_space import Goal, Search, read_search

pytest.importorskip("optuna")
pytestmark = pytest.mark.timeout(600)
Changed = Callable[..., dict[str, Any]]

LR = {"low": 1e-5, "high": 1e-1, "log": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data, tokenizer and recipe of runs that take a second."""
    recipe = make_world(tmp_path_factory.mktemp("sweep"), "clm")
    recipe["model"] = {"preset": "llama-1m", "config": {"vocab_size": 400, "num_layers": 1, "hidden_size": 32}}
    recipe["data"]["sequence_length"] = 32
    recipe["train"] = {"steps": 10, "batch_size": 4, "lr": 1e-3, "validation_batches": 2, "checkpoint_every": 5}
    recipe["train"]["threads"] = 1
    return recipe


@pytest.fixture
def changed(world: dict[str, Any], request: pytest.FixtureRequest) -> Changed:
    """The recipe under the name of the test, with a search."""

    def make(space: dict[str, Any], train: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        name = re.sub(r"\W+", "-", request.node.name)[:50]
        train = {**world["train"], **(train or {})}
        return {**world, "name": name, "train": train, "sweep": {"space": space, **settings}}

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is refused

REFUSED = [
    ([], None, "nothing to search"),
    (["sweep.space.train.lrr=[1,2]"], "train.lrr", "did you mean train.lr?"),
    (["sweep.space.train.lr={low: 1, hihg: 2}"], "hihg", "did you mean sweep.space.train.lr.high?"),
    (["sweep.space.train.lr={low: 2, high: 1}"], "low must be less than high", "exchange"),
    (["sweep.space.train.lr={low: 0, high: 1, log: true}"], "must begin above 0", "raise low"),
    (["sweep.space.train.lr={low: 1, high: 2, log: true, step: 1}"], "exclude each other", "as a list"),
    (["sweep.space.train.lr={low: 1}"], "needs low and high", "list"),
    (["sweep.space.train.lr=[1,1]"], "several different values", "twice"),
    (["sweep.space.train.lr={low: -1, high: 2}"], "must be greater than 0", "greater than 0"),
    (["sweep.space.train.lr=3e-4"], "one value, not a space", "write train.lr in the recipe"),
    (["sweep.space.train.warmup_steps=[1,20]"], "larger than the run", "smaller"),
    (["sweep.space.train.decay_fraction=[0.1,0.2]"], "has no effect: the schedule is cosine", "wsd"),
    (["sweep.space.method.beta=[1,2]"], "unknown key method.beta", "the keys here are"),
    (["sweep.space.name=[a,b]"], "name cannot be searched", "delete"),
    (["sweep.space.train.clip={low: 1, high: 2, when: {train.lr: 1}}"], "not searched above", "above"),
    (["sweep.space.train.batch_size=[4,2]", "sweep.space.train.micro_batch_size=[2,4]"], "do not go together", "when"),
    (["sweep.space.train.lr=[1,2]", "train.lr=1e-3"], "it is searched", "leave it out"),
    (["sweep.space.train.lr=[1,2]", "sweep.trails=3"], "unknown key sweep.trails", "sweep.trials"),
    (["sweep.space.train.lr=[1,2]", "sweep.sampler=tp"], "not one of the allowed", "did you mean tpe?"),
    (["sweep.space.train.lr={low: 1, high: 2}", "sweep.sampler=grid"], "cannot count", "step"),
    (["sweep.space.train.lr=[1,2]", "sweep.sampler=cmaes"], "moves numbers", "tpe"),
    (["sweep.space.train.lr=[1,2]", "sweep.sampler={name: random, population: 9}"], "no effect", "cmaes"),
    (["sweep.space.train.lr=[1,2]", "sweep.pruner={name: asha, warmup: 3}"], "no effect", "median"),
    (["sweep.space.train.lr=[1,2]", "sweep.pruner=asha", "sweep.goals=seconds"], "at the end of a run only", "none"),
    (["sweep.space.train.lr=[1,2]", "sweep.goals=[validation.loss, seconds]", "sweep.pruner=asha"], "several", "none"),
    (
        ["sweep.space.train.lr=[1,2]", "sweep.goals=[validation.loss, seconds]", "sweep.sampler=cmaes"],
        "one goal",
        "tpe",
    ),
    (["sweep.space.train.lr=[1,2]", "sweep.goals=validation.accuracy"], "more or less", "maximize"),
    (["sweep.space.train.lr=[1,2]", "sweep.goals=loss"], "no metric loss", "validation.loss"),
    (["sweep.space.train.lr=[1,2]", "data.validation=[]", "sweep.goals=validation.loss"], "there is none", "FILE"),
    (["sweep.space.train.lr=[1,2]", "sweep.goals=evaluation.loss"], "no evaluation", "validation.loss"),
    (["sweep.space.train.lr=[1,2]", "engine.name=ddp"], "in one process each", "single"),
]


@pytest.mark.parametrize(("overrides", "problem", "fix"), REFUSED, ids=[str(row[0])[:60] for row in REFUSED])
def test_refused_before_any_work(world: dict[str, Any], overrides: list[str], problem: str | None, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_search(world, overrides)
    said = str(caught.value)
    assert (problem or fix) in said and fix in said, said
    assert len(said.splitlines()) <= 5


@pytest.mark.parametrize(("sampler", "package"), [("gp", "scipy"), ("cmaes", "cmaes"), ("tpe", "optuna")])
def test_packages_that_are_missing_are_named(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, sampler: str, package: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(ConfigError, match=f"needs the package {package}") as caught:
        read_search(changed({"train.lr": LR}, sampler=sampler))
    assert "pip install 'trivium[sweep]'" in str(caught.value)


def test_train_says_what_to_do_with_a_search(changed: Changed) -> None:
    recipe = changed({"train.lr": LR})
    with pytest.raises(ConfigError, match="trivium sweep"):
        resolve(recipe)
    assert resolve(recipe, ["sweep=null"]).recipe.train.lr == 1e-3


# The space


def test_keys_may_be_nested_and_numbers_take_the_type_of_the_setting(changed: Changed) -> None:
    search = read_search(changed({"train": {"clip": {"low": 1, "high": 2}, "warmup_steps": {"low": 0, "high": 9}}}))
    clip, warmup = search.axes
    assert (clip.key, clip.whole, warmup.key, warmup.whole) == ("train.clip", False, "train.warmup_steps", True)
    assert read_search(search.dump()).dump() == search.dump()


CONDITIONAL = {
    "train.schedule": ["cosine", "wsd"],
    "train.decay_fraction": {"low": 0.1, "high": 0.3, "step": 0.1, "when": {"train.schedule": "wsd"}},
    "train.clip": [1.0, None],
}


def test_a_grid_holds_each_combination_once_and_conditions_count(changed: Changed) -> None:
    search = read_search(changed(CONDITIONAL, sampler="grid"))
    grid = search.grid()
    assert len(grid) == search.trials == 2 * (1 + 3)
    assert all(("train.decay_fraction" in values) == (values["train.schedule"] == "wsd") for values in grid)
    asked = [one.values for one in told(search, None)]
    assert asked == grid
    assert resolve(search.recipe(grid[-1])).recipe.train.decay_fraction == pytest.approx(0.3)


# Samplers and pruners, with a formula for a trial


def loss(values: dict[str, Any]) -> float:
    """Least at lr = 1e-3 and 30 steps of warm-up."""
    return (math.log10(values["train.lr"]) + 3) ** 2 + ((values["train.warmup_steps"] - 30) / 30) ** 2


SPACE = {"train.lr": LR, "train.warmup_steps": {"low": 0, "high": 60}}


def told(search: Search, objective: Callable[[dict[str, Any]], float] | None, *, reopen: int = 0) -> list[Any]:
    """The trials of a study whose values come from a formula; in a file that is opened again after `reopen` trials."""
    import optuna

    from trivium.drivers import sweep_study

    search.folder.mkdir(parents=True, exist_ok=True)
    file = search.folder / f"{len(list(search.folder.iterdir()))}.db"
    with pytest.MonkeyPatch.context() as patch:
        if not reopen:  # a file costs more than the sampling
            patch.setattr(sweep_study, "open_storage", lambda file: optuna.storages.InMemoryStorage())
        study = sweep_study.Study(search, file)
    for count in range(search.trials):
        number, values = study.ask()
        if reopen and count % reopen == reopen - 1:
            study = sweep_study.Study(search, file)
            assert study.unfinished() == [(number, values)]
        study.tell(number, "complete", goals=[objective(values) if objective else 0.0])
    return study.trials()


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes", "random"])
def test_a_sampler_proposes_the_same_however_often_it_is_stopped(changed: Changed, sampler: str) -> None:
    count = 12 if sampler == "gp" else 16
    recipe = changed(SPACE, {"steps": 100}, sampler=sampler, trials=count)
    calm = [one.values for one in told(read_search(recipe), loss)]
    assert calm == [one.values for one in told(read_search(recipe), loss, reopen=4)]
    assert len({one["train.lr"] for one in calm}) == count
    assert all(1e-5 <= one["train.lr"] <= 1e-1 and 0 <= one["train.warmup_steps"] <= 60 for one in calm)
    other = read_search({**recipe, "sweep": {**recipe["sweep"], "seed": 1, "trials": 3}})
    assert [one.values for one in told(other, loss)] != calm[:3]


def test_samplers_that_learn_beat_chance(changed: Changed) -> None:
    """The median over five seeds of the best of 30 trials."""
    medians = {}
    for sampler in ("tpe", "cmaes", "random"):
        best = []
        for seed in range(5):
            recipe = changed(SPACE, {"steps": 100}, sampler=sampler, trials=30, seed=seed)
            best.append(min(one.goals[0] for one in told(read_search(recipe), loss)))
        medians[sampler] = sorted(best)[2]
    assert medians["tpe"] < medians["random"] and medians["cmaes"] < medians["random"], medians


def test_startup_and_population_change_what_is_proposed(changed: Changed) -> None:
    def proposed(sampler: dict[str, Any]) -> list[Any]:
        return [
            one.values for one in told(read_search(changed(SPACE, {"steps": 100}, sampler=sampler, trials=12)), loss)
        ]

    assert proposed({"name": "tpe"}) != proposed({"name": "tpe", "startup_trials": 3})
    assert proposed({"name": "cmaes"}) != proposed({"name": "cmaes", "population": 4})


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "random"])
def test_conditions_lists_and_sections_can_be_sampled(changed: Changed, sampler: str) -> None:
    optimizers = [{"name": "adamw", "beta2": 0.95}, {"name": "adamw", "beta2": 0.99}]
    search = read_search(changed({**CONDITIONAL, "train.optimizer": optimizers}, sampler=sampler, trials=12))
    trials = told(search, lambda values: float(values["train.schedule"] == "wsd"))
    assert {json.dumps(one.values["train.optimizer"]) for one in trials} == {json.dumps(one) for one in optimizers}
    assert {one.values["train.clip"] for one in trials} == {1.0, None}
    for one in trials:
        assert ("train.decay_fraction" in one.values) == (one.values["train.schedule"] == "wsd")
        resolve(search.recipe(one.values))


PRUNERS = [
    ({"name": "none"}, 0),
    ({"name": "median", "startup_trials": 2}, 4),
    ({"name": "percentile", "startup_trials": 2, "percentile": 50}, 4),
    ({"name": "median", "startup_trials": 2, "warmup": 9}, 0),
    ({"name": "asha", "reduction": 2}, 3),
    ({"name": "hyperband", "reduction": 2}, 1),
]


@pytest.mark.parametrize(("pruner", "least"), PRUNERS, ids=lambda value: str(value))
def test_a_pruner_ends_worse_trials(changed: Changed, pruner: dict[str, Any], least: int, tmp_path: Path) -> None:
    from trivium.drivers.sweep_study import Study

    search = read_search(changed({"train.lr": LR}, pruner=pruner, trials=8, sampler="random"))
    study, ended = Study(search, tmp_path / "study.db"), {}
    for worse in range(8):  # each trial is worse than the one before
        number, _ = study.ask()
        at = next((step for step in range(1, 9) if study.report(number, step, worse + 1 / step)), None)
        study.tell(number, "pruned" if at else "complete", goals=[] if at else [worse + 1 / 8])
        if at:
            ended[number] = at
    assert len(ended) == least if least == 0 else len(ended) >= least, ended
    assert 0 not in ended and all(step < 8 for step in ended.values())
    assert [one.state for one in study.trials()] == ["pruned" if n in ended else "complete" for n in range(8)]


def test_a_front_holds_what_none_beats_and_importance_finds_what_counts(changed: Changed) -> None:
    from trivium.drivers.sweep_study import Study, Trial, front

    goals = [Goal(metric="validation.loss"), Goal(metric="tokens_per_second")]
    figures = [(3.0, 10.0), (2.0, 5.0), (2.0, 7.0), (4.0, 9.0), (1.0, 1.0)]
    trials = [Trial(number, "complete", {}, goals=list(both)) for number, both in enumerate(figures)]
    assert [one.number for one in front(trials, goals)] == [4, 2, 0]
    assert [
        one.number for one in front([Trial(0, "complete", {}, [2.0]), Trial(1, "complete", {}, [1.0])], goals[:1])
    ] == [1]
    assert front([Trial(0, "failed", {})], goals) == []
    search = read_search(changed(SPACE, {"steps": 100}, sampler="random", trials=24))
    told(search, lambda values: math.log10(values["train.lr"]) + 1e-3 * values["train.warmup_steps"], reopen=30)
    how, shares = Study(search, search.folder / "0.db").importances()
    assert how and shares["train.lr"] > 0.8 and sum(shares.values()) == pytest.approx(1.0)


# Whole sweeps


def test_a_sweep_leaves_everything_and_goes_on(changed: Changed, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = changed({"train.lr": [1e-2, 1e-3], "train.clip": [1.0, 0.5]}, sampler="grid", trials=3)
    found = tv.sweep(recipe)
    assert [one.state for one in found.trials] == ["complete"] * 3
    assert found.best is found.front[0] and found.best.goals == [min(one.goals[0] for one in found.trials)]
    place = found.folder / "trials" / f"{found.best.number:04d}"
    last = [line for line in lines(place / "metrics.jsonl") if line["kind"] == "validation"][-1]
    assert found.best.goals[0] == last["loss"] and found.best.measures["parameters.trained"] > 1000
    assert [value for _, value in found.best.seen][-1] == last["loss"] and len(found.best.seen) == 10
    assert not list((place / "checkpoints").iterdir()) and (place / "report.html").exists()
    verify(place / "final")
    assert "training data" in render_text(read_lineage(place / "final"))
    told_ = capfd.readouterr().err
    assert "best so far" in told_ and "3/3" in told_

    # The best recipe is a recipe, and gives the same model, bit for bit.
    best = tv.train(found.recipe)
    assert best.folder.name == f"{recipe['name']}-best" and best.final is not None
    assert (best.final / "model.safetensors").read_bytes() == (place / "final" / "model.safetensors").read_bytes()

    # The same command trains nothing again; more trials are more of the same.
    before = {path: path.stat().st_mtime_ns for path in found.folder.glob("trials/*/metrics.jsonl")}
    assert [one.goals for one in tv.sweep(recipe).trials] == [one.goals for one in found.trials]
    more = tv.sweep(recipe, ["sweep.trials=4"])
    assert len(more.trials) == 4 and more.trials[:3] == found.trials and more.seconds > found.seconds
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ConfigError, match=r"this sweep was started with another train\.batch_size"):
        tv.sweep(recipe, ["train.batch_size=2"])
    page = more.report.read_text(encoding="utf-8")
    for words in ("Importance", "All settings of each trial", "validation.loss by train.lr", "The best recipe", "<svg"):
        assert words in page, words
    assert "<script" not in page and "http://" not in page


FAILING = '''
import os, signal
from trivium.methods.clm import CausalLanguageModelling
from trivium.config import StrictModel

class Failing(CausalLanguageModelling):
    """Next-token prediction that fails by its learning rate."""

    class Config(CausalLanguageModelling.Config):
        """The same settings."""

    def loss(self, batch):
        lr = self.context.recipe.train.lr
        if lr == 2e-3:
            os.kill(os.getpid(), signal.SIGKILL)
        if lr == 3e-3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        if lr == 4e-3:
            raise AssertionError("a defect")
        return super().loss(batch)
'''


@pytest.mark.slow
def test_bad_trials_are_recorded_and_the_sweep_goes_on(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_method.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = changed({"train.lr": [1e30, 2e-3, 3e-3, 1e-3]}, {"max_nonfinite": 0}, sampler="grid", keep="best")
    recipe["method"] = "failing_method:Failing"
    found = tv.sweep(recipe)
    assert [one.state for one in found.trials] == ["failed", "failed", "failed", "complete"]
    reasons = [one.reason for one in found.trials]
    assert "not finite" in reasons[0] and "SIGKILL" in reasons[1] and "out of memory" in reasons[2]
    page = found.report.read_text(encoding="utf-8")
    assert "SIGKILL, mostly too little memory" in page
    with pytest.raises(TriviumError, match="none of 1 trials went to its end"):
        tv.sweep({**recipe, "name": "all-fail"}, ["sweep.trials=1"])
    with pytest.raises(RuntimeError, match="a defect"):
        tv.sweep({**recipe, "name": "defect"}, ["sweep.space.train.lr=[4e-3,1e-3]"])


@pytest.mark.slow
def test_a_goal_that_is_not_measured_ends_the_sweep_at_the_first_validation(changed: Changed) -> None:
    goal = {"metric": "validation.beauty", "direction": "maximize"}
    recipe = changed({"train.lr": [1e-3, 2e-3]}, goals=goal, trials=2)
    with pytest.raises(ConfigError, match="do not measure") as caught:
        tv.sweep(recipe)
    assert "validation.loss" in str(caught.value)
    (run_,) = (Path(recipe["runs"]) / f"{recipe['name']}-sweep" / "trials").glob("*/metrics.jsonl")
    assert len([line for line in lines(run_) if line["kind"] == "validation"]) == 1


def test_a_pruned_trial_really_stops(changed: Changed) -> None:
    space = {"train.lr": [1e-2, 1e-6, 1e-7]}
    found = tv.sweep(changed(space, sampler="grid", pruner={"name": "median", "startup_trials": 1}, keep="all"))
    assert [one.state for one in found.trials] == ["complete", "pruned", "pruned"]
    for one in found.trials[1:]:
        place = found.folder / "trials" / f"{one.number:04d}"
        steps = [line["step"] for line in lines(place / "metrics.jsonl") if line["kind"] == "train"]
        assert steps[-1] < 10 and not (place / "final").exists() and len(one.seen) == steps[-1]
        status = json.loads((place / "status.json").read_text())
        assert status["state"] == "interrupted" and "pruner" in status["reason"]


@pytest.mark.slow
def test_several_goals_seeds_and_processes(changed: Changed) -> None:
    space = {"model.config.num_layers": [1, 3], "train.lr": [1e-2, 1e-6]}
    goals = ["validation.loss", "parameters"]
    recipe = changed(space, sampler="grid", goals=goals, seeds=2, processes=2, keep="best")
    found = tv.sweep(recipe)
    assert [one.state for one in found.trials] == ["complete"] * 4
    small = [one for one in found.trials if one.values["model.config.num_layers"] == 1]
    large = [one for one in found.trials if one.values["model.config.num_layers"] == 3]
    assert small[0].goals[1] == small[0].measures["parameters.trained"] < large[0].goals[1]
    assert small[0].measures["memory"] > 1 << 27 and small[0].measures["bytes"] < large[0].measures["bytes"]
    numbers = {one.number for one in found.front}
    assert numbers == {one.number for one in found.trials if one.values["train.lr"] == 1e-2}
    places = found.folder / "trials"
    for one in found.trials:
        names = [f"{one.number:04d}-seed{seed}" for seed in (0, 1)]
        losses = [
            [x for x in lines(places / n / "metrics.jsonl") if x["kind"] == "validation"][-1]["loss"] for n in names
        ]
        assert losses[0] != losses[1] and one.goals[0] == pytest.approx(sum(losses) / 2)
        assert one.spread == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2))
        assert all((places / name / "final").exists() == (one.number in numbers) for name in names)
        if one.number in numbers:
            resolved = resolve(found.folder / "front" / f"{one.number:04d}.yaml")
            assert resolved.recipe.train.lr == one.values["train.lr"]
    assert "What is given up for what" in found.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_minutes_end_a_sweep(changed: Changed) -> None:
    found = tv.sweep(changed({"train.lr": LR}, trials=50, minutes=0.01))
    assert len(found.trials) == 1


def start(recipe: dict[str, Any], file: Path) -> subprocess.Popen[str]:
    file.write_text(dump_yaml(recipe))
    command = [sys.executable, "-m", "trivium", "sweep", str(file), "--json"]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.crash
@pytest.mark.slow
def test_a_killed_or_stopped_sweep_goes_on_as_if_nothing_had_happened(changed: Changed, tmp_path: Path) -> None:
    recipe = changed(
        {"train.lr": LR}, {"steps": 120, "checkpoint_every": 10, "validate_every": 20}, trials=3, keep="all"
    )
    calm = tv.sweep({**recipe, "name": "calm"})
    trials = Path(recipe["runs"]) / f"{recipe['name']}-sweep" / "trials"

    killed = start(recipe, tmp_path / "sweep.yaml")
    wait_for(lambda: (trials / "0000" / "latest").exists())
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    stopped = start(recipe, tmp_path / "sweep.yaml")
    wait_for(lambda: (trials / "0001" / "latest").exists())
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate()[1]
    assert stopped.returncode == 5 and "everything is saved" in said, said
    last = start(recipe, tmp_path / "sweep.yaml")
    out, said = last.communicate()
    assert last.returncode == 0, said
    result = json.loads(out)
    assert [one["values"] for one in result["trials"]] == [one.values for one in calm.trials]
    assert [one["goals"] for one in result["trials"]] == [one.goals for one in calm.trials]
    for number in range(3):
        name = f"{number:04d}"
        assert fingerprint(trials / name) == fingerprint(calm.folder / "trials" / name)
    assert "continuing" in (trials / "0000.log").read_text() + (trials / "0001.log").read_text()


def test_the_command_prints_forecasts_and_explains(
    changed: Changed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(dump_yaml(changed({"train.lr": LR, "train.batch_size": [2, 4]}, trials=7)))
    assert run(["sweep", str(file), "--print", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweep"]["trials"] == 7
    assert run(["sweep", str(file), "--dry-run", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert run(["sweep", str(file), "--dry-run", "--json", "sweep.seeds=2", "sweep.trials=14"]) == 0
    four = json.loads(capsys.readouterr().out)
    assert one["trials"] == 7 and four["seconds"] > 3 * one["seconds"] > 0 and one["memory_bytes"] > 1 << 27
    assert run(["sweep", str(file), "--dry-run"]) == 0
    assert "7 trials: " in capsys.readouterr().out
    assert run(["sweep", str(file), "--dry-run", "--print"]) == 2
    assert run(["config", "explain", "sweep.pruner.reduction"]) == 0
    assert not (Path(changed({})["runs"]) / "x-sweep").exists()
