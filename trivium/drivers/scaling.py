"""`trivium plan scaling`: a ladder of small runs on the user's own data, a law through them, and a check of the law.

    <runs>/<name>-scaling/
      ladder.json        what was asked for, and the runs that follow from it
      level1-w032/ ...   ordinary run folders
      held-out/          one larger run, forecast before it starts
      scaling.json       measurements, law, forecast against fact, proposals
      scaling.html       the same as one page
      proposal.yaml      the recipe proposed for the target

A finished run is not repeated, so the same command continues whatever stopped it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.writer import JsonLines, make_folder, write_file
from trivium.combinations import refuse_wrong_combinations
from trivium.config import ResolvedRecipe, resolve
from trivium.core.callbacks import Callback
from trivium.core.ladder import (
    FACTOR,
    LEVELS,
    MOST_EPOCHS,
    PARTS,
    Rung,
    Shape,
    Start,
    TooSmall,
    ladder,
    least_flops,
    make_rung,
    nearest_shape,
    shapes,
)
from trivium.core.plan import matrix_parameters
from trivium.core.progress import readable_count, readable_seconds, say
from trivium.core.scaling_law import Fit, Interval, Point, fit_law
from trivium.data.sealing import sealed_folders
from trivium.drivers.run_folder import RunFolder, refuse_differences, set_aside
from trivium.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trivium.core.engine import StepResult
    from trivium.core.method import Update
    from trivium.core.trainer import Trainer

TIMED, TIMED_SECONDS = 10, 2.0
"""Least updates, and about how long they are made, to turn minutes into operations."""
MOST_SPREAD = 0.02
"""Spread of the runs around the law from which on it is no law."""
LEAST_WARMUP = 50
"""Updates of warm-up, unless that is more than a tenth of a run."""
OF_THE_BUDGET = 0.9
"""Share of the minutes that is planned for: short runs are timed worse than long ones."""
BEYOND = (1.0, 10.0, 100.0)
"""Proposals are made for the compute of the held-out run times these."""


@dataclass(frozen=True)
class Data:
    """What the ladder has to know of the data and the machine.

    row_tokens:       tokens in a row of `data.sequence_length`, on average.
    opening:          seconds until a run makes its first update.
    seconds_fixed, seconds_each: time of one token is fixed + each * N.
    """

    train_tokens: int
    validation_tokens: int
    row_tokens: float
    opening: float = 0.0
    seconds_fixed: float = 0.0
    seconds_each: float = 0.0

    def seconds(self, rung: Rung) -> float:
        """Time of one run with its validation at the end, about."""
        tokens = rung.tokens + self.validation_tokens / 3
        return self.opening + tokens * (self.seconds_fixed + self.seconds_each * rung.shape.parameters)


def scaling(
    recipe: str | Path | Mapping[str, Any] | ResolvedRecipe,
    overrides: Sequence[str] = (),
    *,
    budget_minutes: float | None = None,
    flops: float | None = None,
    target_flops: float | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Runs the ladder, or what is left of it, and returns what `scaling.json` holds.

    budget_minutes, flops: what the whole ladder with its held-out run may cost; give one. Minutes are turned into
                           operations once, at the first call, by timing a few updates.
    target_flops:          compute of the run to propose; default: ten times the held-out run's.
    fresh:                 sets an earlier ladder aside and starts over.

    Raises ConfigError where no ladder is possible, Interrupted when stopped, with everything saved.
    """
    resolved = recipe if isinstance(recipe, ResolvedRecipe) else resolve(recipe, overrides)
    refuse_impossible(resolved, budget_minutes, flops, target_flops)
    refuse_wrong_combinations(resolved)
    return Scaling(resolved, fresh=fresh).run(budget_minutes, flops, target_flops)


def refuse_impossible(
    resolved: ResolvedRecipe, minutes: float | None, flops: float | None, target: float | None
) -> None:
    """Raises ConfigError for a recipe that cannot be made smaller, or has nothing to measure with."""
    recipe = resolved.recipe
    if (minutes is None) == (flops is None):
        raise ConfigError(
            "give exactly one of --budget-minutes and --flops", fix="--budget-minutes 30 for half an hour"
        )
    for name, value in (("--budget-minutes", minutes), ("--flops", flops), ("--target-flops", target)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a number greater than 0", where=name, value=value, fix="such as 30")
    if recipe.model.preset is None:
        raise ConfigError(
            "a ladder trains models of several sizes from random weights, and this recipe goes on from one model",
            where=resolved.where("model", "path"),
            value=recipe.model.path,
            fix="name a shape instead: model.path=null model.preset=llama-3m tokenizer=FOLDER",
        )
    if resolved.method.cls.data_kind == "prompts":
        raise ConfigError(
            "this method has no loss on held-out data that could follow a scaling law",
            where=resolved.where("method"),
            value=resolved.method.name,
            fix="use a recipe that pretrains, such as method=clm",
        )
    if not recipe.data.validation:
        raise ConfigError(
            "there is no data.validation, and a scaling law is about the loss on data that was not trained on",
            where=resolved.where("data"),
            fix="hold some documents back and name them: data.validation=FILE",
        )
    if recipe.engine.name != "single":
        raise ConfigError(
            "the small models of a ladder run in one process",
            where=resolved.where("engine", "name"),
            value=recipe.engine.name,
            fix="set engine.name=single",
        )


class Scaling:
    """One ladder: its folder, its data, its runs."""

    def __init__(self, resolved: ResolvedRecipe, *, fresh: bool) -> None:
        from trivium.models.build import preset

        recipe = resolved.recipe
        self.resolved = resolved
        self.config = preset(recipe.model.preset or "", recipe.model.config)
        self.sizes = shapes(self.config)
        self.folder = Path(recipe.runs) / f"{recipe.name}-scaling"
        if fresh and self.folder.exists():
            say(f"the earlier ladder lies in {set_aside(self.folder)} now")
        make_folder(self.folder)

    def run(self, minutes: float | None, flops: float | None, target: float | None) -> dict[str, Any]:
        """Ladder, law, held-out run, proposals, page."""
        plan = self.plan(minutes, flops)
        start, data = Start(**plan["start"]), Data(**plan["data"])
        rungs = [_rung(plain) for plain in plan["rungs"]]
        measured = [self.measure(rung, number, len(rungs) + 1) for number, rung in enumerate(rungs, start=1)]
        fit = fit_law([_point(row) for row in measured])
        held_out = self.held_out(fit, plan["flops"], start, data)
        forecast = fit.loss(held_out.shape.parameters, held_out.tokens)
        say("Forecast", f"held-out run: loss {_words(forecast)}, {readable_count(held_out.flops)} operations")
        fact = self.measure(held_out, len(rungs) + 1, len(rungs) + 1)
        final = fit_law([_point(row) for row in (*measured, fact)])
        wanted = target or 10 * held_out.flops
        budgets = sorted({*(held_out.flops * more for more in BEYOND), wanted})
        result = {
            "recipe": str(self.resolved.source or self.resolved.recipe.name),
            "flops": plan["flops"],
            "start": plan["start"],
            "data": plan["data"],
            "runs": [_fitted(row, fit) for row in measured],
            "law": described(fit),
            "held_out": {
                **_fitted(fact, fit),
                "forecast": asdict(forecast),
                "inside": forecast.holds(fact["loss"]),
                "error": forecast.value / fact["loss"] - 1,
            },
            "law_with_held_out": described(final),
            "proposals": [self.propose(final, budget, start, data) for budget in budgets],
            "target_flops": wanted,
            "curve": curve(final, measured, max(budgets)),
            "exponents": exponents(final),
            "remarks": remarks(fit, measured),
        }
        return self.write(result)

    def plan(self, minutes: float | None, flops: float | None) -> dict[str, Any]:
        """`ladder.json`: as it was written at the first call, or made now."""
        asked = {"budget_minutes": minutes, "flops": flops, "recipe": _plain(self.resolved)}
        path = self.folder / "ladder.json"
        if path.exists():
            plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            refuse_differences(_own_keys(plan["asked"]), _own_keys(asked), path, what="this ladder")
            return plan
        say(
            "Ladder",
            "Opening the data and timing a few updates of the smallest and of a larger model, to turn time into "
            "operations.",
        )
        data, start = self.look(timed=minutes is not None)
        budget = flops if flops is not None else self.affordable(60 * (minutes or 0), data, start)
        try:
            rungs = ladder(self.sizes, budget, start)
        except TooSmall as error:
            least = least_flops(self.sizes, start)
            needs = f"--flops {least * 1.02:.2g}"
            if minutes is not None:
                lasts = self.total_seconds(ladder(self.sizes, least, start), least, data) / OF_THE_BUDGET
                needs = f"--budget-minutes {1.05 * lasts / 60:.2g}"
            raise ConfigError(
                error.problem,
                where="--flops" if minutes is None else "--budget-minutes",
                value=flops if minutes is None else minutes,
                fix=f"give at least {needs}, a tokenizer with fewer tokens, or a smaller data.sequence_length",
            ) from None
        refuse_repetition(rungs, data)
        plan = {
            "asked": asked,
            "flops": budget,
            "seconds": self.total_seconds(rungs, budget, data) if minutes is not None else None,
            "start": asdict(start),
            "data": asdict(data),
            "rungs": [asdict(rung) for rung in rungs],
        }
        write_file(path, json.dumps(plan, indent=1))
        words = f", about {readable_seconds(plan['seconds'])}" if plan["seconds"] else ""
        say("", f"{len(rungs)} runs and one held out, {budget:.2e} operations{words}")
        return plan

    def look(self, *, timed: bool) -> tuple[Data, Start]:
        """The size of the data, what the recipe itself would do, and, if wanted, the time of a token by size."""
        from trivium.drivers.single import opened

        recipe = self.resolved.recipe
        probe = Rung("probe", 0, self.sizes[0], 100, recipe.train.batch_size, recipe.train.lr, 1.0)
        with opened(self.recipe(probe)) as session:
            row_tokens = session.loader.packing_efficiency * recipe.data.sequence_length
            held_out = session.validation_data
            data = Data(
                train_tokens=int(session.train_data.lengths.sum()),
                validation_tokens=0 if held_out is None else int(held_out.lengths.sum()),
                row_tokens=row_tokens,
            )
        updates = self.own_updates(data)
        tokens = updates * recipe.train.batch_size * row_tokens
        start = Start(
            flops=6 * matrix_parameters(self.config) * tokens,
            width=self.config.hidden_size,
            batch_size=recipe.train.batch_size,
            lr=recipe.train.lr,
            row_tokens=row_tokens,
        )
        if not timed:
            return data, start
        began = time.perf_counter()
        with opened(self.recipe(probe)):  # a second time: now the tokens are there
            opening = time.perf_counter() - began
        small = self.sizes[0]
        large = nearest_shape(self.sizes, 8 * small.parameters)
        rates = [self.token_seconds(shape, start) for shape in (small, large)]
        each = max(0.0, (rates[1] - rates[0]) / (large.parameters - small.parameters))
        fixed = max(0.1 * rates[0], rates[0] - each * small.parameters)
        return Data(**{**asdict(data), "opening": opening, "seconds_fixed": fixed, "seconds_each": each}), start

    def own_updates(self, data: Data) -> float:
        """Updates of the recipe's own run."""
        train = self.resolved.recipe.train
        per_update = train.batch_size * data.row_tokens
        if train.steps is not None:
            return train.steps
        tokens = train.tokens if train.tokens is not None else (train.epochs or 1) * data.train_tokens
        return max(1.0, tokens / per_update)

    def token_seconds(self, shape: Shape, start: Start) -> float:
        """Measured seconds of one token with this size, in batches of a small run."""
        from trivium.drivers.single import opened

        batch = max(1, start.batch_size // 4)
        rung = Rung("probe", 0, shape, 1000, batch, start.lr, 1.0)
        with opened(self.recipe(rung)) as session:
            watch = Stopwatch()
            session.trainer.callbacks = [watch]
            began = time.perf_counter()
            while len(watch.seconds) < session.total and time.perf_counter() - began < TIMED_SECONDS:
                session.trainer.fit(until=len(watch.seconds) + TIMED)
        return statistics.median(watch.seconds[TIMED // 3 :])

    def affordable(self, seconds: float, data: Data, start: Start) -> float:
        """Operations that fit into the time, by bisection."""
        low, high = 1e6, 1e30
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            try:
                lasts = self.total_seconds(ladder(self.sizes, middle, start), middle, data)
            except TooSmall:
                lasts = 0.0
            low, high = (middle, high) if lasts <= OF_THE_BUDGET * seconds else (low, middle)
        return low

    def total_seconds(self, rungs: Sequence[Rung], flops: float, data: Data) -> float:
        """Time of the ladder and of the held-out run, taken to be as large as the middle of its level."""
        largest = flops / PARTS * FACTOR**LEVELS
        shape = nearest_shape(self.sizes, math.sqrt(largest / 120))
        held_out = Rung("held-out", LEVELS, shape, 1, 1, 1.0, largest / 6 / shape.parameters)
        return sum(data.seconds(rung) for rung in (*rungs, held_out))

    def held_out(self, fit: Fit, flops: float, start: Start, data: Data) -> Rung:
        """The larger run: the size that the law calls best, not far beyond the sizes it was fitted to."""
        budget = flops / PARTS * FACTOR**LEVELS
        known = [rung["shape"]["parameters"] for rung in self.plan_rungs()]
        wanted = min(max(fit.law.best_parameters(budget), min(known)), FACTOR * max(known))
        needed = budget / 6 / (MOST_EPOCHS * data.train_tokens)
        shape = nearest_shape(self.sizes, max(wanted, needed))
        return make_rung("held-out", LEVELS, shape, budget, start)

    def plan_rungs(self) -> list[dict[str, Any]]:
        """The runs of `ladder.json`."""
        rungs: list[dict[str, Any]] = json.loads((self.folder / "ladder.json").read_text(encoding="utf-8"))["rungs"]
        return rungs

    def recipe(self, rung: Rung) -> ResolvedRecipe:
        """The user's recipe with the size, length, batch and learning rate of one run."""
        plain = _plain(self.resolved)
        own = plain["train"]
        total = rung.steps
        changes: dict[str, Any] = {
            "steps": total,
            "epochs": None,
            "tokens": None,
            "batch_size": rung.batch_size,
            "micro_batch_size": min(own["micro_batch_size"], rung.batch_size)
            if isinstance(own["micro_batch_size"], int)
            else own["micro_batch_size"],
            "lr": rung.lr,
            "validation_batches": None,  # the same held-out tokens for every batch size: all of them
            "validate_every": total,
            "checkpoint_every": max(1, math.ceil(total / 4)),
            "log_every": max(1, total // 200),
            "sample_prompts": [],
            "tensorboard": False,
        }
        # At least as large a share as the recipe's, and long enough for a small batch.
        share = 0.02 if own["warmup_steps"] is None else min(1.0, own["warmup_steps"] / self.own_length())
        changes["warmup_steps"] = min(total, max(round(share * total), min(LEAST_WARMUP, total // 10)))
        kept = {name: value for name, value in own.items() if name not in ("sample_every", "sample_tokens")}
        plain["train"] = {**kept, **changes}
        plain["model"] = {**plain["model"], "config": {**plain["model"]["config"], **rung.shape.changes}}
        plain["data"]["sealed"] = [str(folder) for folder in sealed_folders(self.resolved.recipe)]
        plain.update(name=rung.name, runs=str(self.folder))
        return resolve(plain)

    def own_length(self) -> int:
        """Updates of the recipe's own run, as far as it says them."""
        train = self.resolved.recipe.train
        per_update = train.batch_size * self.resolved.recipe.data.sequence_length
        return train.steps or max(1, (train.tokens or 1_000 * per_update) // per_update)

    def measure(self, rung: Rung, number: int, total: int) -> dict[str, Any]:
        """Trains one run unless it is finished, and returns what came of it."""
        from trivium.drivers.single import finished, train

        resolved = self.recipe(rung)
        folder = RunFolder(resolved)
        if not finished(folder):
            what = f"{readable_count(rung.shape.parameters)} parameters, {readable_count(rung.tokens)} tokens"
            say(f"{number}/{total} {rung.name}", f"{what}, lr {rung.lr:.2g}, {rung.batch_size} rows in a batch")
            train(resolved)
        lines = list(JsonLines(folder.path / "metrics.jsonl").read())
        trained = [line for line in lines if line["kind"] == "train"]
        validated = [line for line in lines if line["kind"] == "validation"]
        if not trained or not validated:
            raise DataError(
                "a run of the ladder has no measurement",
                where=folder.path / "metrics.jsonl",
                fix="delete that run's folder and run the same command again",
            )
        seconds = sum(line["seconds"] for line in JsonLines(folder.path / "timings.jsonl").read())
        return {
            "name": rung.name,
            "level": rung.level,
            "parameters": rung.shape.parameters,
            "shape": rung.shape.changes,
            "tokens": trained[-1]["tokens"],
            "flops": 6 * rung.shape.parameters * trained[-1]["tokens"],
            "updates": rung.steps,
            "batch_size": rung.batch_size,
            "lr": rung.lr,
            "loss": validated[-1]["loss"],
            "bits_per_byte": validated[-1].get("bits_per_byte"),
            "seconds": seconds,
        }

    def propose(self, fit: Fit, flops: float, start: Start, data: Data) -> dict[str, Any]:
        """Size, tokens, batch and learning rate for a compute budget, with the loss to expect."""
        best = fit.best_parameters(flops)
        shape = nearest_shape(self.sizes, best.value)
        rung = make_rung("proposal", 0, shape, flops, start)
        tokens = flops / 6 / shape.parameters
        return {
            "flops": flops,
            "best_parameters": asdict(best),
            "parameters": shape.parameters,
            "tokens": tokens,
            "shape": shape.changes,
            "batch_size": rung.batch_size,
            "lr": rung.lr,
            "loss": asdict(fit.loss(shape.parameters, tokens)),
            "epochs": tokens / data.train_tokens,
        }

    def write(self, result: dict[str, Any]) -> dict[str, Any]:
        """`scaling.json`, the proposed recipe and the page."""
        from trivium.report.scaling import write_scaling_report

        chosen = next(row for row in result["proposals"] if row["flops"] == result["target_flops"])
        shape = Shape(chosen["shape"], chosen["parameters"])
        rung = Rung("proposal", 0, shape, 1, chosen["batch_size"], chosen["lr"], chosen["tokens"])
        plain = _plain(self.resolved)
        changes = {"steps": None, "epochs": None, "tokens": round(rung.tokens), "warmup_steps": None}
        plain["train"] = {**plain["train"], **changes, "batch_size": rung.batch_size, "lr": rung.lr}
        plain["model"] = {**plain["model"], "config": {**plain["model"]["config"], **shape.changes}}
        plain["name"] = f"{plain['name']}-proposal"
        write_file(self.folder / "proposal.yaml", resolve(plain).to_yaml())
        result["files"] = {
            name: str(self.folder / file)
            for name, file in (("report", "scaling.html"), ("proposal", "proposal.yaml"), ("result", "scaling.json"))
        }
        write_file(self.folder / "scaling.json", json.dumps(result, indent=1))
        write_scaling_report(result, self.folder / "scaling.html")
        return result


class Stopwatch(Callback):
    """Seconds for each token of every update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def start(self, trainer: Trainer) -> None:
        """The clock of the first update."""
        self.last = time.perf_counter()

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        """One update is done."""
        now = time.perf_counter()
        self.seconds.append((now - self.last) / max(1, tokens))
        self.last = now


def refuse_repetition(rungs: Sequence[Rung], data: Data) -> None:
    """Raises DataError if a run would see the same text too often: it would measure memory, not the law."""
    most = max(rungs, key=lambda rung: rung.tokens)
    epochs = most.tokens / data.train_tokens
    if epochs > MOST_EPOCHS:
        raise DataError(
            f"the ladder would read the {readable_count(data.train_tokens)} training tokens {epochs:.1f} times; beyond "
            f"{MOST_EPOCHS:.0f} times repeated text counts less than new text, and the law does not hold",
            where="data.train",
            value=f"{readable_count(most.tokens)} tokens in {most.name}",
            fix="add data, or give a smaller budget",
        )


def described(fit: Fit) -> dict[str, Any]:
    """A law with the intervals of its parameters, and the spread of the runs around it."""
    return {
        **{name: asdict(fit.interval(name)) for name in fit.law.as_dict()},
        "spread": fit.spread,
        "runs": len(fit.residuals),
    }


def curve(fit: Fit, measured: Sequence[Mapping[str, Any]], most: float, points: int = 40) -> list[dict[str, float]]:
    """The lowest loss over compute, from the ladder to the largest proposal."""
    low, high = math.log(min(row["flops"] for row in measured)), math.log(most)
    found = []
    for place in range(points):
        flops = math.exp(low + (high - low) * place / (points - 1))
        loss = fit.loss(*fit.law.best(flops))
        found.append({"flops": flops, **asdict(loss)})
    return found


def remarks(fit: Fit, measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reasons not to trust the law, if there are any."""
    found = []
    if fit.spread > MOST_SPREAD:
        found.append(
            f"The runs lie {fit.spread:.1%} around the law on average: they are too short to follow one, or the "
            "learning rate does not suit all of them."
        )
    law = fit.law
    for name, shares in (
        ("size", [law.A * row["parameters"] ** -law.alpha / row["loss"] for row in measured]),
        ("data", [law.B * row["tokens"] ** -law.beta / row["loss"] for row in measured]),
    ):
        if max(shares) < 0.02:
            found.append(f"The law sees no effect of {name}: the ladder is too small to tell.")
    return found


def exponents(fit: Fit) -> dict[str, float]:
    """The powers of C with which the best N and D grow."""
    both = fit.law.alpha + fit.law.beta
    return {"parameters": fit.law.beta / both, "tokens": fit.law.alpha / both}


def _fitted(row: dict[str, Any], fit: Fit) -> dict[str, Any]:
    return {**row, "fitted": fit.law.loss(row["parameters"], row["tokens"])}


def _point(row: Mapping[str, Any]) -> Point:
    return Point(row["parameters"], row["tokens"], row["loss"])


def _rung(plain: Mapping[str, Any]) -> Rung:
    return Rung(**{**plain, "shape": Shape(**plain["shape"])})


def _words(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _own_keys(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a ladder was asked for, with the keys of the recipe by their own names."""
    return {**{key: value for key, value in asked.items() if key != "recipe"}, **asked["recipe"]}


def _plain(resolved: ResolvedRecipe) -> dict[str, Any]:
    plain = resolved.dump()
    del plain["trivium_version"]
    return plain
