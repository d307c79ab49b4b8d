"""`trivium data audit`: who lost documents when a corpus was cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show
from trivium.errors import ConfigError


def audit(
    before: Annotated[
        str | None, typer.Argument(help="The corpus before: a source, or the output folder of a pipeline alone.")
    ] = None,
    after: Annotated[str | None, typer.Argument(help="The corpus after.")] = None,
    lists: Annotated[Path | None, typer.Option(help="Your own words of groups, dialects and topics (YAML).")] = None,
    show_lists: Annotated[bool, typer.Option("--show-lists", help="Print the built-in lists, to edit a copy.")] = False,
    topics: Annotated[int, typer.Option(min=0, help="Clusters of documents to compare; 0 for none.")] = 10,
    topic_field: Annotated[str | None, typer.Option(help="Entry of meta that names the topic instead.")] = None,
    least: Annotated[int, typer.Option(min=1, help="Parts of fewer documents are not compared.")] = 20,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page as well.")] = None,
    as_json: Json = False,
) -> None:
    """Compare a corpus before and after: which groups, dialects, topics and sources lost documents.

    Rates with intervals of 95 %; flags hold the rate of false ones at 5 % over all comparisons.
    """
    from trivium.data.safety import audit as auditing

    if show_lists:
        typer.echo(auditing.LISTS.read_text(encoding="utf-8"), nl=False)
        return
    if before is None:
        raise ConfigError("there is nothing to compare", fix="trivium data audit BEFORE AFTER, or a pipeline's folder")
    corpora = auditing.two_corpora(before, after) if after is not None else auditing.of_pipeline(Path(before))
    result = auditing.audit(corpora, lists=lists, topics=topics, topic_field=topic_field, least=least)
    if html is not None:
        from trivium.artifacts.writer import write_file
        from trivium.report.data_audit import audit_page

        write_file(html, audit_page(result))
    show(result.as_dict(), as_json=as_json, text=auditing.as_text(result))
