"""`trivium tokenizer report`: what tokenizers do to texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def report(
    folders: Annotated[list[str], typer.Argument(help="Tokenizer or model folders.")],
    on: Annotated[list[str], typer.Option("--on", help="Documents to encode; can be given several times.")],
    megabytes: Annotated[float, typer.Option(min=0.001, help="Text of each source that is encoded.")] = 10.0,
    count: Annotated[int, typer.Option(min=1, help="Tokens in each list.")] = 20,
    page: Annotated[Path | None, typer.Option("--html", help="Write the whole report as a page.")] = None,
    as_json: Json = False,
) -> None:
    """Compare tokenizers on your texts: tokens for each word, bytes, unknown and unused tokens."""
    from trivium.drivers.tokenizer_report import figures, rows_of, tokenizer_report, write_page

    result = tokenizer_report(folders, on, megabytes=megabytes, most=count)
    if page is not None:
        write_page(result, page)
        result["page"] = str(page)
    lines = table(rows_of(result))
    for kind in ("sources", "languages"):
        head = [kind[:-1], "tokenizer", "bytes/token", "fertility", "unknown", "single bytes", "comes back"]
        names = dict.fromkeys(name for each in result["tokenizers"] for name in each[kind])
        if len(names) > 1:
            rows = [
                [name, each["folder"], *figures(each[kind][name])] for name in names for each in result["tokenizers"]
            ]
            lines += ["", *table([head, *rows])]
    for each in result["tokenizers"]:
        for title, name in (("longest", "longest"), ("dead", "dead_tokens")):
            if each[name]:
                lines += ["", f"{title} in {each['folder']}: " + " ".join(repr(token["text"]) for token in each[name])]
    show(result, as_json=as_json, text="\n".join([*lines, *([f"page: {page}"] if page else [])]))


def table(rows: list[list[str]]) -> list[str]:
    """Columns under their heads: words to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if rows[-1][place][:1].isdigit() and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
