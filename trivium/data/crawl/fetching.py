"""One request: an answer with a body of bounded size within a bounded time, or why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data.crawl.addresses import ForbiddenAddress, Resolve, checked_backend
from trivium.data.crawl.records import Damaged, content_type, unpacked
from trivium.data.crawl.settings import CrawlSettings
from trivium.data.crawl.urls import Refused
from trivium.data.extraction import web_package

LONGEST_WAIT = 3600.0
"""A site that asks to come back later than this is not asked again."""


class Trouble(Exception):
    """A request that failed for now and may be tried again; wait: seconds that the site asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """An HTTP response. headers: as they came, names in lower case. body: unpacked."""

    status: int
    reason: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def all_headers(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Fetcher:
    """Requests over connections that only ever go to checked addresses; cookies and proxies are not used."""

    def __init__(self, settings: CrawlSettings, resolver: Resolve, user_agent: str) -> None:
        self._settings = settings
        self._agent = user_agent
        self._httpcore = web_package("httpcore2", "crawling")
        self._pool = self._httpcore.AsyncConnectionPool(
            max_connections=None,
            max_keepalive_connections=settings.connections,
            keepalive_expiry=30.0,
            http1=True,
            http2=False,
            network_backend=checked_backend(resolver, allow_private=settings.allow_private),
        )

    async def close(self) -> None:
        await self._pool.aclose()

    async def get(
        self, url: str, *, kinds: Collection[str] = (), limit: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to one request; redirects are answers. Refused for good, or Trouble for now.

        kinds: media types whose body is read; all if empty. limit: bytes, packed and unpacked.
        """
        try:
            async with asyncio.timeout(self._settings.timeout), self._stream(url, headers or {}) as response:
                return await self._read(response, kinds, limit)
        except TimeoutError:
            raise Trouble(f"no answer in {self._settings.timeout:g} seconds") from None
        except ForbiddenAddress as error:
            raise Refused(str(error)) from None
        except self._httpcore.UnsupportedProtocol:
            raise Refused("neither http nor https") from None
        except (self._httpcore.ProtocolError, self._httpcore.NetworkError, self._httpcore.TimeoutException) as error:
            raise Trouble(_kind(error)) from None

    @contextlib.asynccontextmanager
    async def _stream(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
        asked = {
            "User-Agent": self._agent,
            "Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1",
            "Accept-Encoding": "gzip, deflate, br",
            **headers,
        }
        seconds = min(self._settings.timeout, 20.0)
        timeout = {"connect": seconds, "read": seconds, "write": seconds, "pool": self._settings.timeout}
        async with self._pool.stream("GET", url, headers=asked, extensions={"timeout": timeout}) as response:
            yield response

    async def _read(self, response: Any, kinds: Collection[str], limit: int) -> Answer:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers]
        phrase = response.extensions.get("reason_phrase", b"").decode("latin-1")
        answer = Answer(response.status, phrase, headers, b"")
        if response.status != 200:
            return answer
        kind, _ = content_type(answer.header("content-type"))
        if kinds and kind and kind not in kinds:
            return answer
        length = answer.header("content-length")
        if length.isdecimal() and int(length) > limit:
            raise Refused("page too large")
        packed = bytearray()
        async for chunk in response.aiter_stream():
            packed += chunk
            if len(packed) > limit:
                raise Refused("page too large")
        try:
            body = unpacked(bytes(packed), answer.header("content-encoding"), limit)
        except Damaged as error:
            raise Refused(str(error)) from None
        return Answer(response.status, phrase, headers, body)


def retry_after(value: str, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait."""
    value = value.strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, moment.timestamp() - now)


def _kind(error: Exception) -> str:
    """A few fixed phrases, so that failures can be counted."""
    name = type(error).__name__
    if "address" in str(error):
        return "host not found"
    known = {
        "ConnectError": "no connection",
        "ConnectTimeout": "no connection",
        "ReadTimeout": "connection went silent",
    }
    return known.get(name, "connection broke off")
