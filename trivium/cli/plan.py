"""`trivium plan`: what a run would need on a machine, and how large a model a budget deserves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.complete import complete_override, complete_recipe
from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from trivium.core.machines import Range
    from trivium.drivers.planning import Plan

app = typer.Typer(help="Forecast memory, time, cost and the best size.", no_args_is_help=True, rich_markup_mode=None)


def complete_machine(incomplete: str) -> list[str]:
    """Names of the built-in machines, and YAML files."""
    from trivium.core.machines import BUILT_IN, HERE

    return [name for name in (HERE, *BUILT_IN) if name.startswith(incomplete)] or complete_recipe(incomplete)


RecipePath = Annotated[Path, typer.Argument(help="A YAML file, see recipes/.", autocompletion=complete_recipe)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to it.", autocompletion=complete_override, metavar="[OVERRIDES]...")
]
MachineName = Annotated[
    str,
    typer.Option(
        "--machine",
        help="here, h100, h100-8, h200, a100-80g, a100-80g-8, laptop, or a YAML file.",
        autocompletion=complete_machine,
    ),
]
Devices = Annotated[int | None, typer.Option(min=1, help="Devices that take part; default: those of the engine.")]


@app.command()
def memory(
    recipe: RecipePath,
    overrides: Overrides = None,
    machine: MachineName = "here",
    devices: Devices = None,
    as_json: Json = False,
) -> None:
    """Say how much memory and disk a run would need.

    For each device, part by part, and a setting that fits where this one does not.
    """
    from trivium.core.progress import readable_bytes
    from trivium.drivers.planning import as_dict

    plan = _plan(recipe, overrides, machine, devices)
    parts = plan.forecast.memory
    rows = {
        "process": parts.runtime,
        "weights": parts.weights,
        "gradients": parts.gradients,
        "optimiser": parts.optimizer,
        "activations": round(parts.factor * parts.activations),
        "loss": parts.loss,
        "gathered": parts.gathered,
    }
    lines = [_heading(plan)]
    lines += [f"  {name:12} {readable_bytes(size):>10}" for name, size in rows.items() if size]
    room = f"{plan.description.memory_gib:.3g} GiB of {plan.description.name}"
    lines.append(
        f"peak of each process: {readable_bytes(parts.peak)}, {'fits into' if plan.fits else 'more than'} {room}"
    )
    if not plan.fits:
        lines.append(f"  fix: {plan.advice}")
    disk, one = readable_bytes(plan.forecast.disk_bytes), readable_bytes(plan.forecast.checkpoint_bytes)
    lines.append(f"disk: {disk}, of which one checkpoint takes {one}")
    show(as_dict(plan), as_json=as_json, text="\n".join(lines))


@app.command()
def time(
    recipe: RecipePath,
    overrides: Overrides = None,
    machine: MachineName = "here",
    devices: Devices = None,
    as_json: Json = False,
) -> None:
    """Say how long a run would take.

    A range: the utilisation of the machine is an assumption.
    """
    from trivium.drivers.planning import as_dict

    plan = _plan(recipe, overrides, machine, devices)
    show(as_dict(plan), as_json=as_json, text="\n".join([_heading(plan), *_time_lines(plan)]))


@app.command()
def cost(
    recipe: RecipePath,
    overrides: Overrides = None,
    machine: MachineName = "here",
    devices: Devices = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of the whole machine for one hour; default: the machine's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run would cost.

    Time of the whole machine, at its price.
    """
    from trivium.drivers.planning import as_dict
    from trivium.errors import ConfigError

    plan = _plan(recipe, overrides, machine, devices)
    rate = plan.description.price_per_hour if price is None else price
    if rate is None:
        raise ConfigError(
            f"the price of {plan.description.name} is not known: providers differ, and prices change",
            where="--price",
            fix="give what an hour costs you: --price 20, or price_per_hour in a YAML file",
        )
    paid, currency = plan.cost(rate), plan.description.currency
    between = _between(paid, lambda value: f"{value:,.2f}")
    text = [_heading(plan), *_time_lines(plan), f"cost: {between} {currency}, at {rate:g} {currency} for an hour"]
    found = {**as_dict(plan), "price_per_hour": rate, "currency": currency, "cost": vars(paid)}
    show(found, as_json=as_json, text="\n".join(text))


@app.command()
def scale(
    recipe: RecipePath,
    overrides: Overrides = None,
    machine: MachineName = "h100-8",
    gpus: Annotated[str, typer.Option(help="Numbers of devices, with commas.")] = "8,64,1000",
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Measured time of one update on one device; default: that of `plan time`."),
    ] = None,
    tensor: Annotated[int, typer.Option(min=1, help="Devices that share each matrix.")] = 1,
    stages: Annotated[int, typer.Option(min=1, help="Stages of a pipeline.")] = 1,
    as_json: Json = False,
) -> None:
    """Compute what the recipe would do on many GPUs.

    From the time of one update on one device and the speed of the links; the formulas are in docs/scale.md.
    """
    from trivium.config import resolve
    from trivium.core.machines import load_machine
    from trivium.core.scale import table
    from trivium.drivers.planning import plan_scale

    resolved = resolve(recipe, overrides or [])
    description = load_machine(machine, folder=Path(resolved.recipe.runs), recipe=resolved.recipe)
    plan = plan_scale(resolved, description, gpus=gpus, seconds=seconds, tensor=tensor, stages=stages)
    lines = [plan.heading, "as many rows for each copy as on one device:", table(plan.grown)]
    if plan.same:
        lines += ["the recipe's rows in all:", table(plan.same)]
    show(plan.as_dict(), as_json=as_json, text="\n".join([*lines, *plan.remarks]))


@app.command()
def scaling(
    recipe: RecipePath,
    overrides: Overrides = None,
    budget_minutes: Annotated[
        float | None, typer.Option("--budget-minutes", help="Time for the whole ladder on this machine.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="Operations for the whole ladder instead, such as 1e13.")
    ] = None,
    target_flops: Annotated[
        float | None,
        typer.Option("--target-flops", help="Operations of the run to propose; default: 10 x the held-out run."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a scaling law to a ladder of small runs on your data.

    Checks it against one larger run, and proposes size, tokens, batch and learning rate. Stop it at any time; the same
    command continues.
    """
    from trivium.drivers.scaling import scaling as run_scaling

    result = run_scaling(
        recipe,
        overrides or [],
        budget_minutes=budget_minutes,
        flops=flops,
        target_flops=target_flops,
        fresh=fresh,
    )
    show(result, as_json=as_json, text="\n".join(_scaling_lines(result)))


def _plan(recipe: Path, overrides: list[str] | None, machine: str, devices: int | None) -> Plan:
    from trivium.config import resolve
    from trivium.core.machines import load_machine
    from trivium.drivers.planning import plan_recipe

    resolved = resolve(recipe, overrides or [])
    description = load_machine(machine, folder=Path(resolved.recipe.runs), recipe=resolved.recipe)
    return plan_recipe(resolved, description, devices=devices)


def _heading(plan: Plan) -> str:
    from trivium.core.progress import readable_count

    forecast, description = plan.forecast, plan.description
    several = f"{plan.ranks} of the {description.devices} devices of " if description.devices > 1 else ""
    return (
        f"{readable_count(forecast.parameters)} parameters, {forecast.steps:,} updates, "
        f"{readable_count(forecast.tokens)} tokens, {forecast.flops:.1e} operations, on {several}{description.name}"
    )


def _time_lines(plan: Plan) -> list[str]:
    from trivium.core.progress import readable_seconds

    low, typical, high = plan.description.shares
    saving = plan.seconds.typical - plan.forecast.steps * plan.update.typical
    return [
        f"time: {_between(plan.seconds, readable_seconds)}, {_between(plan.update, readable_seconds)} an update",
        f"  of it {readable_seconds(saving)} for checkpoints, at an ordinary disk's 250 MB/s",
        f"  assumed: {typical:.0%} of the matrix peak ({low:.0%} to {high:.0%}); full rows, without validation",
    ]


def _between(found: Range, words: Any) -> str:
    return f"{words(found.typical)} ({words(found.low)} to {words(found.high)})"


def _scaling_lines(result: dict[str, Any]) -> list[str]:
    from trivium.core.progress import readable_count

    law, held_out = result["law"], result["held_out"]
    forecast = held_out["forecast"]
    lines = [
        f"law: L = {law['E']['value']:.3f} + {law['A']['value']:.4g} / N^{law['alpha']['value']:.3f} "
        f"+ {law['B']['value']:.4g} / D^{law['beta']['value']:.3f}, from {law['runs']} runs",
        f"held-out run: forecast {forecast['value']:.3f} ({forecast['low']:.3f} to {forecast['high']:.3f}), "
        f"measured {held_out['loss']:.3f}, error {held_out['error']:+.1%}",
    ]
    for row in result["proposals"]:
        shape = row["shape"]
        repeated = f", {row['epochs']:.0f} passes over the data: get more" if row["epochs"] > 4 else ""
        lines.append(
            f"for {row['flops']:.2g} operations: {readable_count(row['parameters'])} parameters "
            f"({shape['hidden_size']} wide, {shape['num_layers']} deep), {readable_count(row['tokens'])} tokens, "
            f"{row['batch_size']} rows, lr {row['lr']:.2g}: loss {row['loss']['value']:.3f} "
            f"({row['loss']['low']:.3f} to {row['loss']['high']:.3f}){repeated}"
        )
    lines += [f"careful: {remark}" for remark in result["remarks"]]
    return [*lines, f"page: {result['files']['report']}   recipe: {result['files']['proposal']}"]
