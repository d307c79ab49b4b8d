"""SIGKILL at random moments of a crawl: the same call goes on, and no page is missing or stored twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.crawl_site import Site, serve, tree
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.recipe import Source

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

CHILD = """
import json, sys
from pathlib import Path
from trivium.data.crawl.crawler import crawl
from trivium.data.crawl.settings import CrawlSettings

async def resolver(host, port):
    return ["127.0.0.1"]

settings = CrawlSettings(allow_private=True, delay=0.01, depth=20, pages=10_000, shard_bytes=20_000, connections=3)
done = crawl(json.loads(sys.argv[1]), Path(sys.argv[2]), settings, resolver=resolver)
print(json.dumps(done.as_dict()))
"""

HOSTS = ("a.test", "b.test", "c.test")


def start(site: Site, out: Path) -> subprocess.Popen[bytes]:
    urls = json.dumps([site.url(host) for host in HOSTS])
    command = [sys.executable, "-c", CHILD, urls, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def crawl_with_kills(site: Site, out: Path, kills: int, draw: random.Random) -> int:
    """Kill `kills` processes that have begun to ask; then let one finish. How many of them died while storing."""
    died = 0
    for _ in range(kills):
        before = len(site.requests)
        process = start(site, out)
        while len(site.requests) <= before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.15)
        died += process.poll() is None
        process.kill()
        process.communicate()
    process = start(site, out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(output)["left"] == 0
    return died


def run(tmp_path: Path, kills: int, *, pages: int, seed: int) -> None:
    with serve() as site:
        for number, host in enumerate(HOSTS):
            tree(site, host, pages)
            for page in range(pages):  # other pages on each host
                body = site.routes[host, f"/{page}"].replace(b"Page ", f"Host {number}, page ".encode())
                site.add(host, f"/{page}", body)
        out = tmp_path / "out"
        died = crawl_with_kills(site, out, kills, random.Random(seed))
        asked = Counter((host, path) for host, path, _ in site.requests if path != "/robots.txt")
    intake = Intake()
    found = list(read_documents(Source(path=str(out)), intake))
    urls = [str(document.meta["url"]) for document in found]
    assert died > kills // 2
    assert len(urls) == len(set(urls)) == len(HOSTS) * pages + 1  # the start pages are alike
    assert not intake.quarantined
    # What is asked twice was on its way, or just stored, when the process died: at most one page for each connection.
    assert sum(count - 1 for count in asked.values()) <= 3 * kills
    assert not list(out.glob("*.tmp"))


def test_a_killed_crawl_goes_on(tmp_path: Path) -> None:
    run(tmp_path, 8, pages=60, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    run(tmp_path, 100, pages=300, seed=1)
