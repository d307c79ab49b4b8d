"""`trivium data run`: a pipeline of named steps, from sources to a documented corpus."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trivium.cli.output import Json, show


def run(
    pipeline: Annotated[Path, typer.Argument(help="A YAML file, see recipes/pipelines/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it.", metavar="[OVERRIDES]...")] = None,
    engine: Annotated[str | None, typer.Option(help="local or ray; the same as engine=...")] = None,
    dry_run: Annotated[
        int | None, typer.Option("--dry-run", min=1, help="Only show what each step removes of so many documents.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a pipeline: read, clean, filter, deduplicate, redact, split.

    The files do not depend on the number of workers. Killed and started again, it goes on where it was.
    """
    changes = [*(overrides or []), *([f"engine={engine}"] if engine else [])]
    if dry_run is not None:
        from trivium.data.pipeline.dry import dry_run as rehearse
        from trivium.data.pipeline.dry import shown

        found = rehearse(pipeline, changes, documents=dry_run)
        show(found, as_json=as_json, text=shown(found))
        return
    from trivium.data.pipeline.run import run_pipeline

    done = run_pipeline(pipeline, changes, on_progress=_progress if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        typer.echo("\r\033[K", err=True, nl=False)
    result = {"folder": str(done.folder), **done.report, "seconds": dict(done.seconds)}
    show(result, as_json=as_json, text=_text(done.folder, done.report))


def _progress(stage: str, count: int) -> None:
    typer.echo(f"\r\033[K{stage[:60]}: {count:,} documents" if count else f"\r\033[K{stage[:60]}", err=True, nl=False)


def _text(folder: Path, report: Mapping[str, Any]) -> str:
    rows = [["step", "in", "added", "kept", "dropped", "merged", "quarantined"]]
    for step in report["steps"]:
        left = [sum(step[name].values()) for name in ("dropped", "merged", "quarantined")]
        rows.append([step["name"], *(f"{count:,}" for count in (step["in"], step["added"], step["kept"], *left))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *counts in rows:
        cells = [name.ljust(widths[0]), *(count.rjust(width) for count, width in zip(counts, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    kept = ", ".join(f"{count:,} {split}" for split, count in report["kept"].items())
    return "\n".join([*lines, f"{folder}: {kept} documents of {report['input']:,}"])
