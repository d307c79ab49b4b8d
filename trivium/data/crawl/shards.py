"""The crawl record: WARC files that only grow, cut back after a stop to what the log knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trivium.artifacts import faults
from trivium.artifacts.temporary import flush
from trivium.artifacts.writer import explained
from trivium.data.crawl.log import CrawlLog, Place
from trivium.data.crawl.records import packed_record
from trivium.data.extraction import PAGE_BYTES

_UNFLUSHED = 8_000_000
"""Bytes after which the file is flushed to the disk."""


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"pages-{shard:05}.warc.gz"


class Shards:
    """The shard that is being written."""

    def __init__(self, folder: Path, log: CrawlLog, *, info: Mapping[str, str], shard_bytes: int) -> None:
        self._folder = folder
        self._log = log
        self._info = info
        self._limit = shard_bytes
        self._unflushed = 0
        self._shard, self._size = log.end()
        self._descriptor = -1
        with explained(folder):
            self._open()

    def _open(self) -> None:
        path = shard_path(self._folder, self._shard)
        self._descriptor = faults.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        there = os.fstat(self._descriptor).st_size
        if there < self._size:
            self._size = self._log.lost(self._shard, there)
        if there > self._size:
            os.ftruncate(self._descriptor, self._size)
        later = shard_path(self._folder, self._shard + 1)
        if later.exists():
            faults.unlink(later)
        if not self._size:
            flush(self._folder)

    def append(self, record: bytes) -> Place:
        """Write one record; it counts once the log is told its place."""
        with explained(self._folder):
            if self._size + len(record) > self._limit and self._size:
                self.close()
                self._shard, self._size = self._shard + 1, 0
                self._log.begin_shard(self._shard)
                self._open()
            if not self._size:
                self._write(self._warcinfo())
            place = Place(self._shard, self._size, len(record))
            self._write(record)
            return place

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._descriptor >= 0:
            faults.fsync(self._descriptor, shard_path(self._folder, self._shard))
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes) -> None:
        faults.write(self._descriptor, data, shard_path(self._folder, self._shard))
        self._size += len(data)
        self._unflushed += len(data)
        if self._unflushed > _UNFLUSHED:
            faults.fsync(self._descriptor, shard_path(self._folder, self._shard))
            self._unflushed = 0

    def _warcinfo(self) -> bytes:
        block = "".join(f"{name}: {value}\r\n" for name, value in self._info.items()).encode()
        name = shard_path(self._folder, self._shard).name
        headers = {
            "WARC-Date": self._info["started"],
            "WARC-Filename": name,
            "Content-Type": "application/warc-fields",
        }
        return packed_record("warcinfo", headers, block, name=f"{name} {self._info['started']}")


def read_place(folder: Path, place: Place) -> bytes:
    """The packed record at a place."""
    with shard_path(folder, place.shard).open("rb") as file:
        file.seek(place.offset)
        return file.read(min(place.length, 4 * PAGE_BYTES))
