"""`trivium export`: a model folder as another one, with a certificate that it says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show

_CHECK = "Check"


def export(
    folder: Annotated[Path, typer.Argument(help="A model folder, or one of adapters.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Put adapters into their base: one plain model.")] = False,
    base: Annotated[Path | None, typer.Option(help="Where the base of the adapters lies, if it was moved.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as it is.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Texts to compare on, one a line; default: random.", rich_help_panel=_CHECK)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Of random ones.", rich_help_panel=_CHECK)] = 16,
    data: Annotated[
        Path | None, typer.Option(help="Rows of the model's task, scored before and after.", rich_help_panel=_CHECK)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of logits, in their spread.", rich_help_panel=_CHECK)
    ] = 1e-3,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it whatever changed; the figures are kept.", rich_help_panel=_CHECK)
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder if it is a model.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as a plain folder: adapters merged, or in another type of numbers.

    The result is compared with what the model says now, and refused if that changes; certificate.json has the figures.
    """
    from trivium.drivers.certificate import read_prompts
    from trivium.drivers.exporting import Checks, export_folder

    texts = read_prompts(prompts) if prompts is not None else ()
    checks = Checks(texts, count=count, data=data, tolerance=tolerance, accept=accept)
    found = export_folder(folder, output, merge=merge, base=base, dtype=dtype, checks=checks, overwrite=replace)
    scores = found.scores
    lines = [f"the model is in {output}", found.describe()]
    lines += [
        f"{name}: {scores['before'][name]} before, {value} after" for name, value in scores.get("after", {}).items()
    ]
    show({"folder": str(output), "certificate": found.as_dict()}, as_json=as_json, text="\n".join(lines))
