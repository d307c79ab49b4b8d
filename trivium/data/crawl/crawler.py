"""The crawl itself: who is asked next, and what becomes of each answer.

One request at a time for each host, with a pause after it; many hosts at the same time. Every step is written to the
log before the next one begins, so a crawl that was killed goes on where it stopped: records that the log does not know
are cut off and fetched again, and nothing is stored twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import heapq
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivium import __version__
from trivium.artifacts.temporary import make_folder
from trivium.data.crawl import addresses
from trivium.data.crawl.fetching import LONGEST_WAIT, Answer, Fetcher, Trouble, retry_after
from trivium.data.crawl.links import Found, of_page, of_sitemap
from trivium.data.crawl.log import CrawlLog, Entry, Stored
from trivium.data.crawl.records import content_type, digest, message, packed_content, packed_record
from trivium.data.crawl.robots import KEPT_SECONDS, ROBOTS_BYTES, Rules
from trivium.data.crawl.settings import CrawlSettings
from trivium.data.crawl.shards import Shards, read_place
from trivium.data.crawl.urls import Refused, Scope, blocklist, canonical, check_trap, domain_of, host_of, origin_of
from trivium.errors import ArtifactError, ConfigError, DataError, Interrupted

LOG = "crawl.db"
"""The log inside the folder of a crawl."""

HTML = frozenset({"text/html", "application/xhtml+xml"})
KINDS = HTML | {"text/plain"}
"""Media types that are stored."""

_MOST_RULES = 2000
_REDIRECTS = (301, 302, 303, 307, 308)
_REHEADED = {"content-encoding", "transfer-encoding", "content-length"}
_NOT_RECORDED = {"set-cookie", "set-cookie2"}


@dataclass(frozen=True)
class Crawl:
    """The account of a crawl.

    pages:  stored in all; `unchanged` of them were taken from the earlier crawl.
    left:   addresses that are still to be visited.
    skipped, failed: addresses by reason.
    """

    folder: Path
    pages: int
    unchanged: int
    duplicates: int
    redirects: int
    left: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": str(self.folder), "skipped": dict(self.skipped), "failed": dict(self.failed)}


def crawl(
    start: Sequence[str],
    output: Path,
    settings: CrawlSettings | None = None,
    *,
    resolver: addresses.Resolve = addresses.resolve,
    progress: Callable[[Crawl], None] | None = None,
) -> Crawl:
    """Visit the start addresses and what they lead to; store the pages in WARC files below `output`.

    The folder is a source of documents. Called again with the same folder, the crawl goes on.
    resolver: the addresses of a host; what it answers is checked.
    progress: called about once a second with the account so far.
    """
    settings = settings or CrawlSettings()
    if not settings.contact and not settings.allow_private:
        raise ConfigError(
            "a crawl must say whom site owners can reach",
            where="contact",
            fix="give an e-mail address or a web page: --contact you@example.org",
        )
    if re.fullmatch("[A-Za-z_-]+", settings.agent) is None:
        raise ConfigError(
            "the name of a crawler is letters, hyphens and underscores (RFC 9309)",
            where="agent",
            value=settings.agent,
            fix="use a name such as my-crawler; the version and the contact are added",
        )
    begin = _start_urls(start)
    domains = [] if settings.any_domain else settings.domains or [domain_of(host_of(url)) for url in begin]
    blocked = blocklist(settings.blocklist) if settings.blocklist else frozenset[str]()
    scope = Scope(domains, settings.include, settings.exclude, blocked)
    with _locked(output), contextlib.ExitStack() as stack:
        log = CrawlLog(output / LOG)
        stack.callback(log.close)
        earlier = _earlier(settings.previous, output)
        if earlier is not None:
            stack.callback(earlier.close)
        crawler = _Crawler(output, settings, scope, log, earlier, resolver, progress)
        stack.callback(crawler.shards.close)
        log.add(begin, depth=0)
        asyncio.run(crawler.run())
        return account(output, log)


def account(folder: Path, log: CrawlLog) -> Crawl:
    """What a log says became of all addresses."""
    states: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {"skipped": Counter(), "failed": Counter()}
    unchanged = 0
    for purpose, state, reason, count in log.counts():
        if purpose == "page" or state in reasons:
            states[state] += count
        if state in reasons:
            reasons[state][reason or ""] += count
        unchanged += count if state == "stored" and reason == "unchanged" else 0
    return Crawl(
        folder=folder,
        pages=states["stored"],
        unchanged=unchanged,
        duplicates=states["duplicate"],
        redirects=states["redirect"],
        left=states["queued"],
        skipped=dict(reasons["skipped"].most_common()),
        failed=dict(reasons["failed"].most_common()),
    )


def _start_urls(start: Iterable[str]) -> list[str]:
    found = []
    for url in start:
        try:
            found.append(canonical(url))
        except Refused as reason:
            raise DataError(
                f"a crawl cannot begin here: {reason}", value=url, fix="give an address such as https://example.org/"
            ) from None
    if not found:
        raise DataError("there is no address to begin with", fix="give at least one, such as https://example.org/")
    return list(dict.fromkeys(found))


def _earlier(folder: Path | None, output: Path) -> CrawlLog | None:
    if folder is None:
        return None
    if not (folder / LOG).is_file() or folder.resolve() == output.resolve():
        raise DataError(
            "this is no folder of an earlier crawl", where=folder, fix="name another folder that `data crawl` wrote"
        )
    return CrawlLog(folder / LOG, readonly=True)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """The folder, made if it is missing, for this process alone."""
    if output.exists() and not output.is_dir():
        raise ArtifactError("there is a file at the place of the crawl", where=output, fix="choose another name")
    if output.is_dir() and any(output.iterdir()) and not (output / ".lock").exists():
        raise ArtifactError(
            "there is something else at the place of the crawl", where=output, fix="choose an empty or a new folder"
        )
    make_folder(output)
    descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                "another crawl writes to this folder", where=output, fix="wait for it, or choose another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


class _Crawler:
    def __init__(
        self,
        output: Path,
        settings: CrawlSettings,
        scope: Scope,
        log: CrawlLog,
        earlier: CrawlLog | None,
        resolver: addresses.Resolve,
        progress: Callable[[Crawl], None] | None,
    ) -> None:
        self.output = output
        self.settings = settings
        self.scope = scope
        self.log = log
        self.earlier = earlier
        self.resolver = resolver
        self.progress = progress
        contact = f" (+{settings.contact})" if settings.contact else ""
        self.user_agent = f"{settings.agent}/{__version__}{contact}"
        info = {
            "software": f"trivium/{__version__}",
            "format": "WARC File Format 1.1",
            "robots": "obey",
            "http-header-user-agent": self.user_agent,
            "started": _now(),
        }
        self.shards = Shards(output, log, info=info, shard_bytes=settings.shard_bytes)
        self.rules: dict[str, Rules] = {}
        self.stored = Counter(log.stored_pages())
        self.waiting: list[tuple[float, str]] = []
        """When a host may be asked next; a heap with at most one entry a host."""
        self.known: set[str] = set()
        """Hosts in `waiting`, or being asked."""
        self.told = 0.0
        self.fetcher: Fetcher

    # Who is asked next

    async def run(self) -> None:
        self.fetcher = Fetcher(self.settings, self.resolver, self.user_agent)
        for host, due in self.log.hosts().items():
            self._wait(host, due)
        running: dict[asyncio.Task[float], Entry] = {}
        try:
            with _stopping(asyncio.current_task()):
                while True:
                    self._start(running)
                    pause = self._pause(len(running))
                    if running:
                        await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    elif pause is None or self._full(0):
                        return
                    else:
                        await asyncio.sleep(pause)
                    self._collect(running)
                    self._tell()
        except asyncio.CancelledError:
            raise Interrupted(
                "the crawl was stopped",
                where=self.output,
                value=f"{self.stored.total()} pages stored",
                fix="run the same command again to go on",
            ) from None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self.fetcher.close()

    def _start(self, running: dict[asyncio.Task[float], Entry]) -> None:
        """Begin as many requests as may be made now."""
        now = time.time()
        while self.waiting and self.waiting[0][0] <= now and len(running) < self.settings.connections:
            if self._full(len(running)):
                return
            _, host = heapq.heappop(self.waiting)
            limit = self.settings.pages_per_host
            entry = self.log.next(host, now) if limit is None or self.stored[host] < limit else None
            if entry is None:
                self.known.discard(host)
                due = self.log.due(host)
                if due is not None and due > now:
                    self._wait(host, due)
                continue
            running[asyncio.ensure_future(self._visit(entry))] = entry

    def _full(self, running: int) -> bool:
        return self.stored.total() + running >= self.settings.pages

    def _pause(self, running: int) -> float | None:
        """Seconds until the next host may be asked; None if there is none, or no room for it."""
        if not self.waiting or (running and (running >= self.settings.connections or self._full(running))):
            return None
        return max(0.005, self.waiting[0][0] - time.time())

    def _collect(self, running: dict[asyncio.Task[float], Entry]) -> None:
        for task in [task for task in running if task.done()]:
            host = running.pop(task).host
            pause = task.result()
            self.known.discard(host)
            due = self.log.due(host)
            if due is not None:
                self._wait(host, max(due, time.time() + pause))

    def _wait(self, host: str, due: float) -> None:
        if host not in self.known:
            self.known.add(host)
            heapq.heappush(self.waiting, (due, host))

    def _found(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            self._wait(host, 0.0)

    def _tell(self) -> None:
        if self.progress is not None and time.monotonic() - self.told > 1:
            self.told = time.monotonic()
            self.progress(account(self.output, self.log))

    # One address

    async def _visit(self, entry: Entry) -> float:
        """Ask for one address and write down what became of it; seconds to leave its host alone."""
        pause = self.settings.delay
        try:
            self._check(entry)
            rules = await self._rules(entry.url)
            pause = max(pause, rules.delay)
            if not rules.allows(entry.url):
                raise Refused("robots.txt")
            old = self.earlier.stored(entry.url) if self.earlier and entry.purpose == "page" else None
            answer = await self.fetcher.get(
                entry.url,
                kinds=KINDS if entry.purpose == "page" else (),
                limit=self.settings.page_bytes,
                headers=_conditions(old),
            )
            await self._take(entry, answer, old)
        except Refused as reason:
            self.log.finish(entry, "skipped", reason=str(reason))
        except Trouble as trouble:
            pause = max(pause, self._trouble(entry, trouble))
        return pause

    def _check(self, entry: Entry) -> None:
        """The settings may be others than when the address was queued."""
        self.scope.check(entry.url, start=entry.depth == 0 or entry.purpose == "sitemap")
        if entry.depth > self.settings.depth and entry.purpose == "page":
            raise Refused("too deep")

    async def _take(self, entry: Entry, answer: Answer, old: Stored | None) -> None:
        status = answer.status
        if status == 304 and old is not None and self.settings.previous is not None:
            await self._store(entry, answer, read_place(self.settings.previous, old.place), old)
        elif status in _REDIRECTS:
            self._redirect(entry, answer.header("location"))
        elif status in (408, 425, 429) or status >= 500:
            raise Trouble(f"status {status}", retry_after(answer.header("retry-after"), time.time()))
        elif status != 200:
            self.log.finish(entry, "failed", reason=f"status {status}", values={"status": status})
        elif entry.purpose == "sitemap":
            self._sitemap(entry, answer)
        else:
            await self._store(entry, answer, None, None)

    def _redirect(self, entry: Entry, location: str) -> None:
        """The target is an address like any other: everything is checked anew when its turn comes."""
        if entry.hops >= self.settings.redirects:
            raise Refused("too many redirects")
        target = canonical(location, entry.url)
        self.scope.check(target, start=entry.depth == 0)
        hosts = self.log.finish(entry, "redirect", reason=None, redirect=target)
        self._found(hosts)

    def _sitemap(self, entry: Entry, answer: Answer) -> None:
        pages, sitemaps = of_sitemap(answer.body, limit=self.settings.page_bytes)
        deeper = self._admitted(sitemaps, start=True) if entry.depth < 2 else []
        follow = self._admitted(pages) if self.settings.depth > 0 else []
        # The pages of a sitemap are one link away from the start, wherever in the tree of sitemaps it stands.
        level = Entry(entry.id, entry.url, entry.host, entry.purpose, 0, entry.hops, entry.tries)
        hosts = self.log.finish(level, "read", links=follow)
        hosts |= self.log.add(deeper, depth=entry.depth + 1, purpose="sitemap", via=entry.url)
        self._found(hosts)

    async def _store(self, entry: Entry, answer: Answer, record: bytes | None, old: Stored | None) -> None:
        """Keep a page, or one that did not change since the earlier crawl."""
        body = answer.body if record is None else message(packed_content(record).block).body
        kind, charset = _kind(answer, body) if old is None else (old.kind, None)
        values: dict[str, Any] = {
            "status": answer.status,
            "fetched": _now(),
            "kind": kind,
            "digest": digest(body),
            "etag": answer.header("etag") or (old.etag if old else None),
            "modified": answer.header("last-modified") or (old.modified if old else None),
        }
        found = Found()
        if kind in HTML:
            headers = answer.all_headers("x-robots-tag")
            found = await asyncio.to_thread(
                of_page, body, entry.url, charset=charset, agent=self.settings.agent, robots_headers=headers
            )
        links = self._admitted(found.links) if entry.depth < self.settings.depth else []
        refused = self._wish(answer, found)
        same = None if refused else self.log.holds(values["digest"])
        if refused or same:
            hosts = self.log.finish(
                entry,
                "skipped" if refused else "duplicate",
                reason=refused,
                values={**values, "digest": None, "same": same},
                links=() if same and host_of(same) == entry.host else links,  # endless sites repeat themselves
            )
        else:
            record = record or _record(entry.url, answer, values)
            place = self.shards.append(record)
            hosts = self.log.finish(
                entry, "stored", reason="unchanged" if old else None, values=values, place=place, links=links
            )
            self.stored[entry.host] += 1
        self._found(hosts)

    def _wish(self, answer: Answer, found: Found) -> str | None:
        """Why the owner of a page does not want it kept."""
        if not found.index:
            return "noindex"
        if self.settings.opt_outs and (found.reserved or answer.header("tdm-reservation").strip() == "1"):
            return "reserved by its owner"
        return None

    def _admitted(self, links: Iterable[str], *, start: bool = False) -> list[str]:
        admitted = []
        for link in links:
            try:
                self.scope.check(link, start=start)
                check_trap(link)
            except Refused:
                continue
            admitted.append(link)
        return admitted

    def _trouble(self, entry: Entry, trouble: Trouble) -> float:
        """Try again later, or no more; seconds to leave the host alone."""
        wait = self.settings.retry_delay * 2**entry.tries
        if trouble.wait is not None:
            wait = max(wait, trouble.wait)
        if entry.tries >= self.settings.retries or wait > LONGEST_WAIT:
            self.log.finish(entry, "failed", reason=str(trouble))
            return 0.0
        self.log.postpone(entry, str(trouble), time.time() + wait)
        return trouble.wait or 0.0

    # robots.txt

    async def _rules(self, url: str) -> Rules:
        """What the site of an address allows. Trouble if it cannot be asked: then nothing is allowed (RFC 9309)."""
        origin = origin_of(url)
        if origin in self.rules:
            return self.rules[origin]
        kept = self.log.robots(origin)
        if kept is not None and time.time() - kept[1] < KEPT_SECONDS:
            text = kept[0]
        else:
            text = await self._fetch_robots(f"{origin}/robots.txt")
            self.log.keep_robots(origin, text)
        rules = Rules(text, agent=self.settings.agent)
        if len(self.rules) >= _MOST_RULES:
            self.rules.clear()
        self.rules[origin] = rules
        if self.settings.sitemaps and rules.sitemaps:
            links = []
            for link in rules.sitemaps:
                with contextlib.suppress(Refused):
                    links.append(canonical(link, origin))
            self._found(self.log.add(self._admitted(links, start=True), depth=0, purpose="sitemap", via=origin))
        return rules

    async def _fetch_robots(self, url: str) -> str:
        for _ in range(6):
            try:
                answer = await self.fetcher.get(url, limit=10 * ROBOTS_BYTES)
            except Trouble as trouble:
                raise Trouble(f"robots.txt: {trouble}") from None
            if answer.status in _REDIRECTS:
                url = canonical(answer.header("location"), url)
                continue
            if answer.status == 200:
                return answer.body[:ROBOTS_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
            if answer.status == 429 or answer.status >= 500:
                wait = retry_after(answer.header("retry-after"), time.time())
                raise Trouble(f"robots.txt: status {answer.status}", wait)
            return ""
        return ""


def _conditions(old: Stored | None) -> dict[str, str]:
    """Headers that ask for a page only if it changed."""
    if old is None:
        return {}
    values = {"If-None-Match": old.etag, "If-Modified-Since": old.modified}
    return {name: value for name, value in values.items() if value}


def _kind(answer: Answer, body: bytes) -> tuple[str, str | None]:
    """Media type and declared charset of a page that may be stored."""
    kind, charset = content_type(answer.header("content-type"))
    if not kind and b"<html" in body[:2000].lower():
        kind = "text/html"
    if kind not in KINDS:
        raise Refused("other content type")
    return kind, charset


def _record(url: str, answer: Answer, values: Mapping[str, Any]) -> bytes:
    """The response as one record of the crawl, unpacked, as Common Crawl writes it."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}".rstrip()]
    for name, value in answer.headers:
        if name not in _NOT_RECORDED:
            lines.append(f"{f'x-crawl-{name}' if name in _REHEADED else name}: {value}")
    lines.append(f"content-length: {len(answer.body)}")
    block = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + answer.body
    headers = {
        "WARC-Target-URI": url,
        "WARC-Date": values["fetched"],
        "WARC-Payload-Digest": values["digest"],
        "Content-Type": "application/http; msgtype=response",
    }
    return packed_record("response", headers, block, name=f"{url} {values['fetched']} {values['digest']}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def _stopping(task: asyncio.Task[Any] | None) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the crawl in good order."""
    if threading.current_thread() is not threading.main_thread() or task is None:
        yield
        return
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
