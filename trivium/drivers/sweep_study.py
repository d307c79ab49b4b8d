"""The memory of a sweep: Optuna's study in the file `study.db`, asked for trials and told what became of them.

What a trial will be is a function of the seed, its number and the trials told before it: the sampler is made anew
for each, so a sweep that was killed proposes what it would have proposed.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.core.method import derive_seed
from trivium.drivers.sweep_cma import Member, propose
from trivium.search_space import Axis, Goal, Search

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    state:    complete, pruned (ended early), failed or running.
    values:   key of the recipe -> what was chosen.
    goals:    one figure for each goal, of a complete trial.
    spread:   standard deviation of the first goal over the seeds, where there are several.
    seen:     (number of the validation, first goal) on the way.
    measures: everything that was measured, by name; the means over the seeds.
    seconds:  from its start to its end, all calls together.
    """

    number: int
    state: str
    values: dict[str, Any]
    goals: list[float] = field(default_factory=list)
    spread: float | None = None
    seen: list[tuple[int, float]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Study:
    """Asks the sampler for trials and keeps what became of them; used by one process at a time."""

    def __init__(self, search: Search, file: Path) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search = search
        goals = search.settings.goals
        self.study = optuna.create_study(
            study_name="sweep",
            storage=open_storage(file),
            directions=["maximize" if goal.maximize else "minimize" for goal in goals],
            load_if_exists=True,
            pruner=make_pruner(search),
        )
        self.open: dict[int, optuna.trial.Trial] = {}

    def unfinished(self) -> list[tuple[int, dict[str, Any]]]:
        """Trials that were running when an earlier call ended: (number, values)."""
        from optuna.trial import Trial, TrialState

        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with self.sampling(frozen.number):
                trial = Trial(self.study, frozen._trial_id)
                found.append((frozen.number, self.suggest(trial)))
        return found

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial: (number, values)."""
        from optuna.trial import TrialState

        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        if not waiting:
            self.enqueue(number)
        with self.sampling(number):
            trial = self.study.ask()
            assert trial.number == number, "another process asks the same study"
            return number, self.suggest(trial)

    def enqueue(self, number: int) -> None:
        """Fixes the values of the next trial where they do not come from Optuna's samplers."""
        sampler = self.search.settings.sampler
        if sampler.name == "grid":
            self.study.enqueue_trial(labelled(self.search.axes, self.search.grid()[number]))
        if sampler.name == "cmaes":
            sign = -1 if self.search.settings.goals[0].maximize else 1
            finished = [
                Member(int(frozen.user_attrs["generation"]), frozen.params, sign * frozen.values[0])
                for frozen in self.study.get_trials(deepcopy=False)
                if frozen.state.name == "COMPLETE"
            ]
            axes = [one for one in self.search.axes if one.dimension.choices is None and not one.dimension.when]
            values, generation = propose(axes, finished, seed=self.seed(number), population=sampler.population)
            self.study.enqueue_trial(values, user_attrs={"generation": generation})

    def seed(self, number: int) -> int:
        """Of the sampler, for one trial."""
        return derive_seed(self.search.settings.seed, number, "sweep") % (1 << 32)

    @contextmanager
    def sampling(self, number: int) -> Iterator[None]:
        """Inside, the sampler is the one of this trial."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = make_sampler(self.search, self.seed(number))
            yield

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """The values of a trial; those it has already stay."""
        values: dict[str, Any] = {}
        for axis in self.search.axes:
            if not axis.dimension.holds(values):
                continue
            dimension, key = axis.dimension, axis.key
            if dimension.choices is not None:
                labels = labels_of(dimension.choices)
                chosen = trial.suggest_categorical(key, list(labels))
                values[key] = labels[chosen]
                continue
            low, high = (axis.points[0], axis.points[-1]) if axis.points else axis.ends
            if axis.whole:
                values[key] = trial.suggest_int(key, low, high, step=int(dimension.step or 1), log=dimension.log)
            else:
                found = trial.suggest_float(key, low, high, step=dimension.step, log=dimension.log)
                values[key] = round(found, 12) if dimension.step else found
        self.open[trial.number] = trial
        return values

    def report(self, number: int, step: int, value: float) -> bool:
        """Tells a figure of a running trial; returns whether it should end early."""
        trial = self.open[number]
        if len(self.search.settings.goals) > 1 or value != value:
            return False
        if step not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, step)
        return bool(trial.should_prune())

    def tell(
        self,
        number: int,
        state: str,
        *,
        goals: Sequence[float] = (),
        measures: Mapping[str, float] | None = None,
        spread: float | None = None,
        reason: str = "",
    ) -> None:
        """Ends a trial: complete with its goals, pruned or failed with the reason."""
        from optuna.trial import TrialState

        trial = self.open.pop(number)
        for name, value in (("measures", dict(measures or {})), ("spread", spread), ("reason", reason)):
            if value:
                trial.set_user_attr(name, value)
        if state == "complete":
            self.study.tell(trial, list(goals))
        else:
            self.study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def add_seconds(self, number: int, seconds: float) -> None:
        """Counts time that a trial took, before it is told; a trial may be continued by several calls."""
        trial = self.open[number]
        trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + seconds)

    @property
    def seconds(self) -> float:
        """Time that the sweep has taken, all calls together."""
        return float(self.study.user_attrs.get("seconds", 0.0))

    def took(self, seconds: float) -> None:
        """Writes down the time of the sweep."""
        self.study.set_user_attr("seconds", seconds)

    def trials(self) -> list[Trial]:
        """All trials, in their order."""
        found = []
        for one in self.study.get_trials(deepcopy=False):
            values = {
                axis.key: labels_of(axis.dimension.choices)[one.params[axis.key]]
                if axis.dimension.choices is not None
                else one.params[axis.key]
                for axis in self.search.axes
                if axis.key in one.params
            }
            found.append(
                Trial(
                    number=one.number,
                    state=STATES[one.state.name],
                    values=values,
                    goals=list(one.values) if one.state.name == "COMPLETE" else [],
                    spread=one.user_attrs.get("spread"),
                    seen=sorted(one.intermediate_values.items()),
                    measures=dict(one.user_attrs.get("measures", {})),
                    seconds=float(one.user_attrs.get("seconds", 0.0)),
                    reason=str(one.user_attrs.get("reason", "")),
                )
            )
        return found

    def importances(self) -> tuple[str, dict[str, float]]:
        """(how it was measured, key -> share of the first goal's variation that it explains); empty for few trials."""
        import importlib.util

        import optuna

        complete = [one for one in self.study.get_trials(deepcopy=False) if one.state.name == "COMPLETE"]
        if len(complete) < 4 or len({one.values[0] for one in complete}) < 2:
            return "", {}
        seed = self.search.settings.seed
        evaluator: Any = optuna.importance.PedAnovaImportanceEvaluator()
        name = "PED-ANOVA (Watanabe et al. 2023)"
        if importlib.util.find_spec("sklearn") is not None:
            evaluator, name = optuna.importance.FanovaImportanceEvaluator(seed=seed), "fANOVA (Hutter et al. 2014)"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = optuna.importance.get_param_importances(
                self.study, evaluator=evaluator, target=lambda frozen: frozen.values[0]
            )
        return name, {key: float(share) for key, share in shares.items()}


def open_storage(file: Path) -> Any:
    """Optuna's storage; it survives the death of the process at any moment, of the machine but for the last entries."""
    from optuna.storages import RDBStorage

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, timeout=60, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        return connection

    return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def make_sampler(search: Search, seed: int) -> Any:
    """Optuna's sampler with a seed; grid and CMA-ES fix the values themselves, and the rest is drawn at random."""
    from optuna import samplers

    settings = search.settings.sampler
    startup = settings.startup_trials or 10
    if settings.name == "tpe":
        joint = {"multivariate": True, "group": True} if any(axis.dimension.when for axis in search.axes) else {}
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, **joint)
    if settings.name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)


def make_pruner(search: Search) -> Any:
    """Optuna's pruner; its steps are validations."""
    from optuna import pruners

    settings = search.settings.pruner
    startup, warmup = settings.startup_trials or 5, settings.warmup or 0
    least, reduction = settings.least or 1, settings.reduction or 3
    match settings.name:
        case "median":
            return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
        case "percentile":
            return pruners.PercentilePruner(
                settings.percentile or 25.0, n_startup_trials=startup, n_warmup_steps=warmup
            )
        case "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=reduction)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=least, reduction_factor=reduction)
    return pruners.NopPruner()


def labels_of(choices: Sequence[Any]) -> dict[Any, Any]:
    """What Optuna stores for each choice -> the choice; sections and lists are stored as JSON."""
    plain = all(isinstance(choice, str | int | float | None) for choice in choices)
    return {choice if plain else json.dumps(choice, sort_keys=True): choice for choice in choices}


def labelled(axes: Sequence[Axis], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna stores them."""
    choices = {axis.key: axis.dimension.choices for axis in axes}
    return {
        key: next(label for label, choice in labels_of(choices[key] or ()).items() if choice == value)
        if choices[key] is not None
        else value
        for key, value in values.items()
    }


def front(trials: Sequence[Trial], goals: Sequence[Goal]) -> list[Trial]:
    """Complete trials that no other beats in all goals, the best by the first goal first."""
    complete = [one for one in trials if one.state == "complete"]
    scores = {
        one.number: [-value if goal.maximize else value for goal, value in zip(goals, one.goals, strict=True)]
        for one in complete
    }

    def beaten(one: Trial) -> bool:
        own = scores[one.number]
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in scores.values())

    best = sorted((one for one in complete if not beaten(one)), key=lambda one: (scores[one.number], one.number))
    return best[:1] if len(goals) == 1 else best
