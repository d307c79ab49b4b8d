"""`trivium data augment`: more rows from rows, whatever their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trivium.cli.output import Json, show
from trivium.errors import ConfigError


def augment(
    sources: Annotated[list[str], typer.Argument(help="Files of rows: jsonl, csv, parquet.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write: rows.jsonl and report.json.")],
    step: Annotated[
        list[str],
        typer.Option("--step", help="eda, synonyms, noise, paraphrase, backtranslate, or '{name: eda, children: 8}'."),
    ],
    field: Annotated[list[str] | None, typer.Option("--field", help="Column to augment; default: text.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Set rows aside that cannot be used.")] = False,
    as_json: Json = False,
) -> None:
    """Make more rows from rows; labels and all other columns stay.

    Each child says whose it is (`parent`), so that no split divides a family.
    """
    from trivium.data.augment.rows import augment_rows

    done = augment_rows(
        sources,
        output,
        steps=[_step(text) for text in step],
        fields=field or ["text"],
        seed=seed,
        on_error="quarantine" if quarantine else "error",
    )
    report = done.report
    lines = [f"{done.rows}: {report['rows']:,} rows and {report['children']:,} children"]
    for name, count in report["made"].items():
        thrown = ", ".join(f"{number:,} {reason}" for reason, number in report["thrown_away"][name].items())
        lines.append(f"  {name}: {count:,} children" + (f"; thrown away: {thrown}" if thrown else ""))
    show({"folder": str(done.folder), **report}, as_json=as_json, text="\n".join(lines))


def _step(text: str) -> Any:
    """A name, or a mapping in YAML."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, str | dict):
        raise ConfigError(
            "this is no step", where="--step", value=text, fix="write --step eda, or --step '{name: eda, children: 8}'"
        )
    return found
