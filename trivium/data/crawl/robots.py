"""robots.txt by RFC 9309: what a site allows, and how fast."""

from __future__ import annotations

from typing import Any

from trivium.data.extraction import web_package

ROBOTS_BYTES = 512_000
"""The rest of a longer file is not read (RFC 9309 asks for at least 500 KiB)."""

KEPT_SECONDS = 86_400.0
"""After a day the file is fetched again."""

LONGEST_DELAY = 300.0
"""A longer delay between requests is taken for a mistake of its author."""


class Rules:
    """What one robots.txt file says.

    text: the file; empty where there is none (status 4xx), which allows everything.
    """

    def __init__(self, text: str, *, agent: str) -> None:
        self._agent = agent
        self._parsed: Any = web_package("protego", "crawling").Protego.parse(text[:ROBOTS_BYTES])

    def allows(self, url: str) -> bool:
        return bool(self._parsed.can_fetch(url, self._agent))

    @property
    def delay(self) -> float:
        """Seconds between two requests that the site asks for; 0 if it does not say."""
        asked = self._parsed.crawl_delay(self._agent)
        rate = self._parsed.request_rate(self._agent)
        spaced = rate.seconds / rate.requests if rate is not None and rate.requests else 0.0
        return min(max(float(asked or 0.0), spaced), LONGEST_DELAY)

    @property
    def sitemaps(self) -> list[str]:
        return list(self._parsed.sitemaps)[:50]
