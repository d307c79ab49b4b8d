"""`trivium data crawl`: web pages, politely, into a folder that is a source of documents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from trivium.data.crawl.crawler import Crawl


def crawl(
    start: Annotated[list[str], typer.Argument(help="Addresses to begin with.", metavar="URL...")],
    output: Annotated[Path, typer.Option(help="Folder of the crawl; an interrupted one goes on.")],
    contact: Annotated[str | None, typer.Option(help="E-mail or web page under which you are reached.")] = None,
    pages: Annotated[int, typer.Option(min=1, help="Pages to store in all.")] = 1000,
    pages_per_host: Annotated[int | None, typer.Option(min=1, help="Pages to store of each host.")] = None,
    depth: Annotated[int, typer.Option(min=0, help="Links to follow from a start address.")] = 5,
    domain: Annotated[
        list[str] | None, typer.Option(help="Domain to stay in; default: those of the start addresses.")
    ] = None,
    any_domain: Annotated[bool, typer.Option("--any-domain", help="Follow links to every domain.")] = False,
    include: Annotated[list[str] | None, typer.Option(help="Pattern with * of addresses to visit.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern with * of addresses to leave out.")] = None,
    blocklist: Annotated[Path | None, typer.Option(help="File of domains that are never visited.")] = None,
    sitemaps: Annotated[bool, typer.Option(help="Also visit what sitemaps list.")] = True,
    opt_outs: Annotated[bool, typer.Option(help="Leave out pages reserved from data mining.")] = True,
    delay: Annotated[float, typer.Option(min=0, help="Seconds between requests to one host.")] = 1.0,
    connections: Annotated[int, typer.Option(min=1, help="Hosts asked at the same time.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts after a failure.")] = 3,
    retry_delay: Annotated[float, typer.Option(min=0, help="Seconds before the first of these.")] = 10.0,
    redirects: Annotated[int, typer.Option(min=0, help="Redirects to follow in a row.")] = 5,
    page_bytes: Annotated[int, typer.Option(min=1000, max=10_000_000, help="Largest page.")] = 10_000_000,
    shard_bytes: Annotated[int, typer.Option(min=1000, help="Size of the files written.")] = 256_000_000,
    previous: Annotated[Path | None, typer.Option(help="Earlier crawl; takes what did not change from it.")] = None,
    agent: Annotated[str, typer.Option(help="Name that robots.txt files know the crawler by.")] = "trivium",
    allow_private: Annotated[bool, typer.Option("--allow-private", help="Also visit local addresses.")] = False,
    as_json: Json = False,
) -> None:
    """Visit web pages and store them.

    Obeys robots.txt, pauses between requests, and stays in the domains of the start addresses. The folder is a source
    of documents. The same command goes on where it was stopped.
    """
    from trivium.data.crawl.crawler import crawl as run
    from trivium.data.crawl.settings import CrawlSettings

    settings = CrawlSettings(
        contact=contact,
        agent=agent,
        pages=pages,
        pages_per_host=pages_per_host,
        depth=depth,
        domains=domain or [],
        any_domain=any_domain,
        include=include or [],
        exclude=exclude or [],
        blocklist=blocklist,
        sitemaps=sitemaps,
        opt_outs=opt_outs,
        delay=delay,
        connections=connections,
        timeout=timeout,
        retries=retries,
        retry_delay=retry_delay,
        redirects=redirects,
        page_bytes=page_bytes,
        shard_bytes=shard_bytes,
        previous=previous,
        allow_private=allow_private,
    )
    done = run(start, output, settings, progress=_tell if sys.stderr.isatty() else None)
    show(done.as_dict(), as_json=as_json, text=_text(done))


def _tell(done: Crawl) -> None:
    typer.echo(f"\r{done.pages} pages stored, {done.left} addresses to visit   ", err=True, nl=False)


def _text(done: Crawl) -> str:
    lines = [f"{done.pages} pages in {done.folder}"]
    counts = {
        "unchanged since the earlier crawl": done.unchanged,
        "with the same content as another": done.duplicates,
        "redirects": done.redirects,
        "addresses left to visit": done.left,
    }
    lines += [f"{count} {name}" for name, count in counts.items() if count]
    for name, reasons in (("skipped", done.skipped), ("failed", done.failed)):
        lines += [f"{name}: {count} ({reason})" for reason, count in reasons.items()]
    return "\n".join(lines)
