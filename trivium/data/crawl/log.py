"""The log of a crawl: each address that was seen and what became of it, in SQLite.

It is also the queue, so nothing else must be kept: whenever the process stops, what is committed here is what was done.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.data.crawl.urls import host_of
from trivium.errors import ArtifactError

_TABLES = """
CREATE TABLE IF NOT EXISTS urls (
    id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, host TEXT NOT NULL, purpose TEXT NOT NULL, depth INTEGER NOT NULL,
    hops INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'queued', reason TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0, via TEXT, status INTEGER, fetched TEXT, kind TEXT, digest TEXT, same TEXT,
    etag TEXT, modified TEXT, shard INTEGER, offset INTEGER, length INTEGER);
CREATE INDEX IF NOT EXISTS queue ON urls (host, state, due, depth, id);
CREATE INDEX IF NOT EXISTS digests ON urls (digest) WHERE digest IS NOT NULL;
CREATE TABLE IF NOT EXISTS robots (origin TEXT PRIMARY KEY, text TEXT, fetched REAL NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """An address in the queue."""

    id: int
    url: str
    host: str
    purpose: str
    depth: int
    hops: int
    tries: int


@dataclass(frozen=True)
class Place:
    """Where a record stands: number of the shard, first byte, bytes."""

    shard: int
    offset: int
    length: int


@dataclass(frozen=True)
class Stored:
    """What is kept of an earlier fetch, for asking whether the page changed."""

    etag: str | None
    modified: str | None
    kind: str
    digest: str
    place: Place


class CrawlLog:
    """One open log; every method that changes it commits."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        try:
            if readonly:
                self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            else:
                self._db = sqlite3.connect(path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(_TABLES)
            self._db.execute("SELECT count(*) FROM facts")
        except sqlite3.DatabaseError as error:
            raise ArtifactError(
                "the log of the crawl cannot be read", where=path, value=str(error), fix="begin in a new folder"
            ) from error

    def close(self) -> None:
        self._db.close()

    # The queue

    def add(self, urls: Iterable[str], *, depth: int, purpose: str = "page", via: str | None = None) -> set[str]:
        """Queue the addresses that were never seen; the hosts of these."""
        with self._transaction():
            return self._add(urls, depth=depth, purpose=purpose, via=via)

    def _add(
        self, urls: Iterable[str], *, depth: int, purpose: str = "page", via: str | None = None, hops: int = 0
    ) -> set[str]:
        hosts = set()
        for url in urls:
            host = host_of(url)
            done = self._db.execute(
                "INSERT OR IGNORE INTO urls (url, host, purpose, depth, via, hops) VALUES (?, ?, ?, ?, ?, ?)",
                (url, host, purpose, depth, via, hops),
            )
            if done.rowcount > 0:
                hosts.add(host)
        return hosts

    def hosts(self) -> dict[str, float]:
        """Hosts with queued addresses, and when the first of these is due."""
        return dict(self._db.execute("SELECT host, min(due) FROM urls WHERE state = 'queued' GROUP BY host"))

    def due(self, host: str) -> float | None:
        """When the next address of a host is due; None if it has none left."""
        row = self._db.execute("SELECT min(due) FROM urls WHERE host = ? AND state = 'queued'", (host,)).fetchone()
        return None if row[0] is None else float(row[0])

    def next(self, host: str, now: float) -> Entry | None:
        """The address of a host to visit next: of those that are due, the nearest to the start."""
        row = self._db.execute(
            "SELECT id, url, host, purpose, depth, hops, tries FROM urls "
            "WHERE host = ? AND state = 'queued' AND due <= ? ORDER BY purpose DESC, depth, id LIMIT 1",
            (host, now),
        ).fetchone()
        return None if row is None else Entry(*row)

    # What became of an address

    def finish(
        self,
        entry: Entry,
        state: str,
        *,
        reason: str | None = None,
        values: Mapping[str, Any] | None = None,
        place: Place | None = None,
        links: Iterable[str] = (),
        redirect: str | None = None,
    ) -> set[str]:
        """Write down, in one step, what became of an address, where its record is, and what it links to."""
        fields: dict[str, Any] = {"state": state, "reason": reason, **(values or {})}
        if place is not None:
            fields |= {"shard": place.shard, "offset": place.offset, "length": place.length}
        names = ", ".join(f"{name} = ?" for name in fields)
        with self._transaction():
            self._db.execute(f"UPDATE urls SET {names} WHERE id = ?", (*fields.values(), entry.id))
            if place is not None:
                self._set("shard", place.shard)
                self._set("end", place.offset + place.length)
            hosts = self._add(links, depth=entry.depth + 1, via=entry.url)
            if redirect is not None:
                hosts |= self._add(
                    [redirect], depth=entry.depth, purpose=entry.purpose, via=entry.url, hops=entry.hops + 1
                )
        return hosts

    def postpone(self, entry: Entry, reason: str, due: float) -> None:
        """Try an address again later."""
        with self._transaction():
            self._db.execute(
                "UPDATE urls SET tries = tries + 1, reason = ?, due = ? WHERE id = ?", (reason, due, entry.id)
            )

    def holds(self, digest: str) -> str | None:
        """The address under which a page with this content is stored."""
        row = self._db.execute(
            "SELECT url FROM urls WHERE digest = ? AND state = 'stored' LIMIT 1", (digest,)
        ).fetchone()
        return None if row is None else str(row[0])

    def stored(self, url: str) -> Stored | None:
        row = self._db.execute(
            "SELECT etag, modified, kind, digest, shard, offset, length FROM urls WHERE url = ? AND state = 'stored'",
            (url,),
        ).fetchone()
        return None if row is None else Stored(row[0], row[1], row[2], row[3], Place(row[4], row[5], row[6]))

    def stored_pages(self) -> dict[str, int]:
        """Number of stored pages by host."""
        return dict(self._db.execute("SELECT host, count(*) FROM urls WHERE state = 'stored' GROUP BY host"))

    # robots.txt files

    def robots(self, origin: str) -> tuple[str, float] | None:
        row = self._db.execute("SELECT text, fetched FROM robots WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else (str(row[0]), float(row[1]))

    def keep_robots(self, origin: str, text: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO robots VALUES (?, ?, ?)", (origin, text, time.time()))

    # The crawl record

    def end(self) -> tuple[int, int]:
        """Number of the newest shard and its committed length."""
        return self._fact("shard"), self._fact("end")

    def begin_shard(self, shard: int) -> None:
        with self._transaction():
            self._set("shard", shard)
            self._set("end", 0)

    def lost(self, shard: int, size: int) -> int:
        """Queue again the pages whose records did not reach the disk; the length of what is left of the shard."""
        with self._transaction():
            self._db.execute(
                "UPDATE urls SET state = 'queued', due = 0 WHERE shard = ? AND offset + length > ?", (shard, size)
            )
            row = self._db.execute(
                "SELECT max(offset + length) FROM urls WHERE shard = ? AND offset + length <= ?", (shard, size)
            ).fetchone()
            self._set("end", row[0] or 0)
        return int(row[0] or 0)

    def counts(self) -> list[tuple[str, str, str | None, int]]:
        """(purpose, state, reason, number) of all addresses."""
        return list(
            self._db.execute("SELECT purpose, state, reason, count(*) FROM urls GROUP BY purpose, state, reason")
        )

    def _fact(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
