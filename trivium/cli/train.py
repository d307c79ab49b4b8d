"""`trivium train`: one verb for all methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.complete import complete_override, complete_recipe
from trivium.cli.output import Json, show


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, see recipes/.", autocompletion=complete_recipe)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to it, like train.lr=3e-4 method.beta=0.2.", autocompletion=complete_override),
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the complete configuration and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run one real update, report memory, time and disk, and stop.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Overfit eight rows and check masks, end of text and template, and stop."),
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Let the learning rate rise for 100 updates, suggest one, and stop.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing this run.")] = False,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder that holds the runs; default: the recipe's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model as a recipe says.

    The same command continues an interrupted run from its last checkpoint.
    """
    from trivium.config import resolve
    from trivium.errors import ConfigError

    modes = {"--print": print_, "--dry-run": dry_run, "--preflight": preflight, "--find-lr": find_lr, "--fresh": fresh}
    chosen = [name for name, wanted in modes.items() if wanted]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other", fix="give one of them")
    changes = [*(overrides or []), *([f"runs={json.dumps(str(runs))}"] if runs else [])]
    resolved = resolve(recipe, changes)
    if print_:
        show(resolved.dump(), as_json=as_json, text=resolved.to_yaml().rstrip())
        return
    from trivium.combinations import refuse_wrong_combinations

    refuse_wrong_combinations(resolved)
    if find_lr:
        from trivium.drivers import lr_finder

        found = lr_finder.find_lr(resolved)
        show(found.as_dict(), as_json=as_json, text=lr_finder.described(found))
        return
    from trivium.drivers import single

    run = single.train(resolved, dry_run=dry_run, preflight=preflight, fresh=fresh)
    text = f"the trained model is in {run.final}" if run.final else f"see {run.folder}"
    show({"folder": str(run.folder), "final": str(run.final) if run.final else None}, as_json=as_json, text=text)
