"""`trivium merge`: several adapters, or models, as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show
from trivium.errors import ModelError


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of adapters of one base, or of models of one shape.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    method: Annotated[str, typer.Option(help="linear, ties, dare or dare_ties.")] = "linear",
    weights: Annotated[
        str | None, typer.Option(help="One for each folder, like 0.7,0.3; default: all alike.", metavar="A,B,...")
    ] = None,
    density: Annotated[float, typer.Option(help="Share of the entries of each change that stays (not linear).")] = 1.0,
    base: Annotated[Path | None, typer.Option(help="The model that all of them were trained from.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Write an adapter of this rank; default: a whole model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a model.")] = False,
    as_json: Json = False,
) -> None:
    """Make one model, or one adapter, of several that were trained from the same base."""
    from trivium.drivers.merging import described, merge_folders

    found = merge_folders(
        folders,
        output,
        method=method,
        weights=None if weights is None else _numbers(weights),
        density=density,
        base=base,
        rank=rank,
        seed=seed,
        overwrite=replace,
    )
    text = (
        f"the merged {found.kind} is in {output}\n"
        f"it changes the base by {found.relative:.2%}; signs differ at {found.conflicts:.1%} of the changed weights"
    )
    if found.lost is not None:
        text += f"\n{found.lost:.2%} of the change found no room in rank {rank}"
    show(described(found, output), as_json=as_json, text=text)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ModelError("weights are numbers", where="--weights", value=text, fix="like 0.7,0.3") from None
