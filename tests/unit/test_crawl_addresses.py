"""No connection ever goes to an address that is not public, however it is spelt and however the name answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

import pytest

from tests.unit.crawl_site import Answer, page, serve
from trivium.data.crawl import addresses
from trivium.data.crawl.crawler import crawl
from trivium.data.crawl.fetching import Fetcher, Trouble
from trivium.data.crawl.settings import CrawlSettings
from trivium.data.crawl.urls import Refused, canonical
from trivium.errors import DataError

HOSTILE = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.255.255.254/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://0x0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://167772161/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://0xc0a80101/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/latest/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:c0a8:101::1]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://user@127.0.0.1/",
    "http://example.org@127.0.0.1/",
    "http:\\\\127.0.0.1\\x",
    "http://127.0.0.1:22/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_x",
    "ftp://127.0.0.1/",
    "dict://127.0.0.1:11211/",
    "http://[fe80::1%25eth0]/",
]


@pytest.fixture
def connected(monkeypatch):
    """Every address that a connection is attempted to."""
    found: list[object] = []

    async def connect(self, sock, address):
        found.append(address)
        raise OSError("no connections in this test")

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect)
    return found


def fetch(url: str, resolver=addresses.resolve, *, allow_private: bool = False) -> object:
    async def run() -> object:
        settings = CrawlSettings(timeout=5, allow_private=allow_private)
        fetcher = Fetcher(settings, resolver, "test")
        try:
            return await fetcher.get(url, limit=1000)
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_there_are_fifty() -> None:
    assert len(set(HOSTILE)) >= 50


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_not_connected_to(url: str, connected) -> None:
    with pytest.raises((Refused, Trouble)) as raised:
        fetch(canonical(url))
    assert not connected
    assert raised.type is Refused


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"]]
)
def test_names_that_resolve_to_private_addresses(answers, connected) -> None:
    async def resolver(host, port):
        return answers

    with pytest.raises(Refused, match="address"):
        fetch("http://innocent.example/", resolver)
    assert not connected


def test_public_addresses_are_used_as_checked(connected) -> None:
    """The connection goes to the address that was looked at; the name is not asked again."""
    asked = []

    async def resolver(host, port):
        asked.append(host)
        return ["93.184.216.34"] if len(asked) == 1 else ["127.0.0.1"]

    with pytest.raises(Trouble, match="no connection"):
        fetch("http://rebinding.example/", resolver)
    assert asked == ["rebinding.example"]
    assert connected == [("93.184.216.34", 80)]
    with pytest.raises(Refused, match="loopback"):
        fetch("http://rebinding.example/", resolver)
    assert len(connected) == 1


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "172.32.0.1"]
)
def test_public_addresses_pass(address: str) -> None:
    assert addresses.forbidden(address) is None


def test_redirects_and_links_to_private_addresses(tmp_path: Path, monkeypatch) -> None:
    """Every hop is looked at anew; the first one is let through here to be able to redirect."""
    with serve() as site, contextlib.closing(socket.create_server(("127.0.0.1", 0))) as trap:
        port = trap.getsockname()[1]
        hits = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    hits.append(trap.accept()[1])

        threading.Thread(target=accept, daemon=True).start()
        real = addresses.forbidden
        monkeypatch.setattr(addresses, "forbidden", lambda address: None if address == "127.0.0.2" else real(address))

        async def resolver(host: str, _: int) -> list[str]:
            return ["127.0.0.2"] if host == "public.test" else [host]

        inside = [f"http://127.0.0.1:{port}/", f"http://2130706433:{port}/", f"http://[::ffff:127.0.0.1]:{port}/"]
        for number, target in enumerate(inside):
            site.add("public.test", f"/r{number}", Answer(status=302, headers={"Location": target}))
        site.add("public.test", "/", page(1, [*inside, "/r0", "/r1", "/r2"]))
        settings = CrawlSettings(contact="a@b.c", any_domain=True, delay=0, retries=0)
        done = crawl([site.url("public.test")], tmp_path / "out", settings, resolver=resolver)
    assert not hits
    assert done.pages == 1
    assert done.redirects == 3
    assert done.skipped == {"loopback address": 2}


def test_a_crawl_does_not_begin_elsewhere_than_on_the_web(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither http nor https"):
        crawl(["file:///etc/passwd"], tmp_path / "out", CrawlSettings(contact="a@b.c"))
