"""`trivium sweep`: a search for the best settings of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.complete import complete_override, complete_recipe
from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from trivium.drivers.sweep import Sweep


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a section sweep.", autocompletion=complete_recipe)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to it, like sweep.trials=30.", autocompletion=complete_override),
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the complete configuration and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the space, forecast time, memory and disk, and stop.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing this sweep.")] = False,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder that holds the runs; default: the recipe's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for the best settings of a recipe.

    The same command continues what was stopped. Writes the best recipe, a page and all trials.
    """
    from trivium.errors import ConfigError
    from trivium.marked_yaml import dump_yaml
    from trivium.search_space import read_search

    modes = {"--print": print_, "--dry-run": dry_run, "--fresh": fresh}
    chosen = [name for name, wanted in modes.items() if wanted]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other", fix="give one of them")
    changes = [*(overrides or []), *([f"runs={json.dumps(str(runs))}"] if runs else [])]
    search = read_search(recipe, changes)
    if print_:
        show(search.dump(), as_json=as_json, text=dump_yaml(search.dump()).rstrip())
        return
    from trivium.drivers import sweep as driver

    if dry_run:
        found, text = driver.forecast_lines(search)
        show(found, as_json=as_json, text=text)
        return
    done = driver.sweep(search, fresh=fresh)
    show(done.as_dict(), as_json=as_json, text=_text(done))


def _text(done: Sweep) -> str:
    from trivium.drivers.sweep import shown

    lines = []
    for trial in done.front:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(done.goals, trial.goals, strict=True))
        values = " ".join(f"{key}={shown(value)}" for key, value in trial.values.items())
        lines.append(f"trial {trial.number}: {figures}, {values}")
    title = "the best of" if len(done.front) == 1 else "not beaten in all goals, of"
    return "\n".join(
        [
            f"{title} {len(done.trials)} trials:",
            *lines,
            f"the best recipe is {done.recipe}; the page is {done.report}",
        ]
    )
