"""What a crawl is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trivium.config import StrictModel


class CrawlSettings(StrictModel):
    """How far a crawl goes, and how it behaves towards others."""

    contact: str | None = None
    """Address (e-mail or web page) under which site owners reach you; sent with every request."""

    agent: str = "trivium"
    """Name under which robots.txt files speak of this crawler: letters, hyphens and underscores (RFC 9309)."""

    pages: int = Field(1000, ge=1)
    """Pages to store in all."""

    pages_per_host: int | None = Field(None, ge=1)
    """Pages to store of each host."""

    depth: int = Field(5, ge=0)
    """Links to follow from a start address."""

    domains: list[str] = Field(default_factory=list)
    """Domains to stay in, with everything below them; default: those of the start addresses."""

    any_domain: bool = False
    """Follow links to every domain."""

    include: list[str] = Field(default_factory=list)
    """Patterns with * of addresses to visit; default: all."""

    exclude: list[str] = Field(default_factory=list)
    """Patterns with * of addresses to leave out."""

    blocklist: Path | None = None
    """File with a domain or the beginning of an address on each line, never to be visited."""

    sitemaps: bool = True
    """Also visit what the sitemaps named in robots.txt list."""

    opt_outs: bool = True
    """Leave out pages whose owners reserve text and data mining (tdm-reservation, noai)."""

    delay: float = Field(1.0, ge=0)
    """Seconds between two requests to a host; a longer one in its robots.txt wins."""

    connections: int = Field(16, ge=1)
    """Requests at the same time, one for each host."""

    timeout: float = Field(60.0, gt=0)
    """Seconds that a request may take in all."""

    retries: int = Field(3, ge=0)
    """Further attempts after a request that failed for now."""

    retry_delay: float = Field(10.0, ge=0)
    """Seconds before the first further attempt; twice as long before each next one."""

    redirects: int = Field(5, ge=0)
    """Redirects to follow in a row."""

    page_bytes: int = Field(10_000_000, ge=1000, le=10_000_000)
    """Largest page, packed or unpacked."""

    shard_bytes: int = Field(256_000_000, ge=1000)
    """Size at which a new file of the crawl record begins."""

    allow_private: bool = False
    """Also visit private and local addresses."""

    previous: Path | None = None
    """Folder of an earlier crawl; pages that did not change since are taken from there."""
