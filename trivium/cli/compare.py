"""`trivium compare`: many ways to make a model do a task, under one budget, on one frozen test part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.complete import complete_recipe
from trivium.cli.output import Json, show


def compare(
    comparison: Annotated[Path, typer.Argument(help="A YAML file, see recipes/.", autocompletion=complete_recipe)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, like seeds=[0] jobs=2.")] = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the complete settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Compare prompts, heads, adapters and full tuning on your data, and recommend one.

    The same command continues a comparison that was interrupted.
    """
    from trivium.comparison import resolve_comparison

    settings = resolve_comparison(comparison, overrides or [])
    plain = settings.model_dump(mode="json")
    plain["contenders"] = {
        name: contender.model_dump(mode="json", exclude_none=True) for name, contender in settings.resolved().items()
    }
    if print_:
        from trivium.marked_yaml import dump_yaml

        show(plain, as_json=as_json, text=dump_yaml(plain).rstrip())
        return
    from trivium.drivers.compare import compare as run
    from trivium.report.comparison import as_text

    done = run(settings)
    show({"folder": str(done.folder), **done.summary}, as_json=as_json, text=as_text(done.summary, done.folder))
