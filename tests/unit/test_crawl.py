"""A crawl of a small web: what it visits, what it leaves alone, what it survives, and that it goes on."""

from __future__ import annotations

import gzip
import inspect
import io
import itertools
import json
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.crawl_site import Answer, Site, page, serve, tree
from trivium.cli.data_crawl import crawl as command
from trivium.data.crawl.crawler import LOG, Crawl, crawl
from trivium.data.crawl.fetching import retry_after
from trivium.data.crawl.links import of_page, of_sitemap
from trivium.data.crawl.log import CrawlLog
from trivium.data.crawl.robots import Rules
from trivium.data.crawl.settings import CrawlSettings
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import ArtifactError, ConfigError, DataError
from trivium.recipe import Source


@pytest.fixture
def site():
    with serve() as found:
        yield found


def run(site: Site, out: Path, *start: str, **settings: Any) -> Crawl:
    values = {"allow_private": True, "delay": 0, "retry_delay": 0.05, "timeout": 5, **settings}
    return crawl([site.url(*one.split("/", 1)[:1], "/" + one.partition("/")[2]) for one in start], out,
                 CrawlSettings(**values), resolver=site.resolve)  # fmt: skip


def documents(out: Path, intake: Intake | None = None):
    return list(read_documents(Source(path=str(out)), intake or Intake()))


def paths(out: Path) -> list[str]:
    return sorted("/" + str(document.meta["url"]).split("/", 3)[3] for document in documents(out))


def test_the_command_has_the_defaults_of_the_settings() -> None:
    settings = CrawlSettings()
    different = {"start", "output", "domain", "as_json"}
    defaults = {name: one.default for name, one in inspect.signature(command).parameters.items()}
    assert defaults["domain"] is None and settings.domains == []
    for name in defaults.keys() - different:
        assert (defaults[name] or None) == (getattr(settings, name) or None), name
    assert defaults.keys() - different | {"domains"} == settings.model_dump().keys()


def test_a_whole_site(site: Site, tmp_path: Path) -> None:
    tree(site, "a.test", 30)
    done = run(site, tmp_path / "out", "a.test", depth=9)
    assert (done.pages, done.left, done.failed) == (31, 0, {})
    found = documents(tmp_path / "out")
    assert len({document.id for document in found}) == 31
    one = next(document for document in found if document.meta["url"].endswith("/7"))
    assert "Page 7, part 2" in one.text and "to 0" not in one.text
    assert one.meta["title"] == "Title 7" and one.meta["language"] == "en"
    assert one.meta["digest"].startswith("sha256:") and one.meta["crawled"] == one.meta["date"]
    assert len(site.asked("a.test")) == len(set(site.asked("a.test"))) == 31
    assert site.busiest["a.test"] == 1
    before = len(site.requests)
    assert run(site, tmp_path / "out", "a.test", depth=9) == done
    assert len(site.requests) == before


def test_the_records_are_those_of_the_standard(site: Site, tmp_path: Path) -> None:
    warc = pytest.importorskip("fastwarc.warc")
    tree(site, "a.test", 5)
    run(site, tmp_path / "out", "a.test")
    (shard,) = (tmp_path / "out").glob("*.warc.gz")
    kinds = []
    for record in warc.ArchiveIterator(io.BytesIO(shard.read_bytes()), parse_http=False):
        kinds.append(record.record_type)
        assert record.verify_block_digest()
        if record.record_type == warc.WarcRecordType.response:
            record.parse_http()
            assert record.http_headers.status_code == 200
            assert record.verify_payload_digest()
    assert kinds == [warc.WarcRecordType.warcinfo] + 6 * [warc.WarcRecordType.response]


def test_depth_pages_and_hosts(site: Site, tmp_path: Path) -> None:
    tree(site, "a.test", 40)
    tree(site, "b.test", 40)
    site.add("a.test", "/", page(1000, ["/0", site.url("b.test", "/1"), site.url("sub.a.test", "/")]))
    site.add("sub.a.test", "/", page(2000))
    assert run(site, tmp_path / "0", "a.test", depth=0).pages == 1
    two = run(site, tmp_path / "2", "a.test", depth=2)
    assert two.pages == 6 and not site.asked("b.test")
    assert run(site, tmp_path / "any", "a.test", depth=2, any_domain=True).pages > two.pages
    limited = run(site, tmp_path / "limited", "a.test", pages=7, depth=9)
    assert limited.pages == 7 and limited.left > 0
    assert run(site, tmp_path / "limited", "a.test", pages=12, depth=9).pages == 12
    few = run(site, tmp_path / "few", "a.test", "b.test", pages_per_host=3, depth=9)
    assert few.pages == 7


def test_patterns_and_blocklist(site: Site, tmp_path: Path) -> None:
    site.add("a.test", "/", page(1, ["/keep/1", "/keep/2.pdf", "/other", "/keep/bad/3"]))
    for number, path in enumerate(["/keep/1", "/keep/2.pdf", "/other", "/keep/bad/3"]):
        site.add("a.test", path, page(10 + number))
    blocked = tmp_path / "blocked.txt"
    blocked.write_text(site.url("a.test", "/keep/bad/") + "\n")
    done = run(site, tmp_path / "out", "a.test", include=["*/keep/*"], exclude=["*.pdf"], blocklist=blocked)
    assert done.pages == 2
    assert site.asked("a.test") == ["/", "/keep/1"]


ROBOTS = (
    b"User-agent: *\nDisallow: /\n\nUser-agent: trivium\nDisallow: /private\nAllow: /private/open\nCrawl-delay: 0.2\n"
)


def test_robots(site: Site, tmp_path: Path) -> None:
    site.add("a.test", "/robots.txt", Answer(ROBOTS, kind="text/plain"))
    site.add("a.test", "/", page(1, ["/private/x", "/private/open", "/2"]))
    for number, path in enumerate(["/private/x", "/private/open", "/2"]):
        site.add("a.test", path, page(10 + number))
    began = time.monotonic()
    done = run(site, tmp_path / "out", "a.test")
    assert done.pages == 3 and done.skipped == {"robots.txt": 1}
    assert "/private/x" not in site.asked("a.test")
    assert time.monotonic() - began > 0.4
    assert site.asked("a.test", robots=True).count("/robots.txt") == 1
    assert run(site, tmp_path / "other", "a.test", agent="somebody").skipped == {"robots.txt": 1}


@pytest.mark.parametrize(
    ("status", "pages", "failed"),
    [(404, 1, {}), (403, 1, {}), (500, 0, {"robots.txt: status 500": 1}), (429, 0, {"robots.txt: status 429": 1})],
)
def test_robots_that_cannot_be_read(site: Site, tmp_path: Path, status: int, pages: int, failed) -> None:
    site.add("a.test", "/robots.txt", Answer(status=status))
    site.add("a.test", "/", page(1))
    done = run(site, tmp_path / "out", "a.test", retries=1)
    assert (done.pages, done.failed) == (pages, failed)
    assert len(site.asked("a.test")) == pages


def test_robots_behind_redirects(site: Site, tmp_path: Path) -> None:
    site.add("a.test", "/robots.txt", Answer(status=301, headers={"Location": site.url("b.test", "/r.txt")}))
    site.add("b.test", "/r.txt", Answer(b"User-agent: *\nDisallow: /\n", kind="text/plain"))
    site.add("a.test", "/", page(1))
    assert run(site, tmp_path / "out", "a.test").skipped == {"robots.txt": 1}


def test_rules() -> None:
    rules = Rules(
        "User-agent: trivium\nRequest-rate: 1/4\nDisallow: /*.gif$\nSitemap: https://a.test/s.xml\n", agent="trivium"
    )
    assert rules.delay == 4 and rules.sitemaps == ["https://a.test/s.xml"]
    assert rules.allows("https://a.test/x.gifs") and not rules.allows("https://a.test/x.gif")
    assert Rules("Crawl-delay: nonsense\n\0\xff<html>", agent="x").allows("https://a.test/")
    assert Rules("User-agent: *\nCrawl-delay: 1e9", agent="x").delay <= 300
    began = time.monotonic()
    slow = Rules("User-agent: *\n" + f"Disallow: /{'*a' * 500}$\n" * 20, agent="x")
    slow.allows("https://a.test/" + "a" * 1500)
    assert time.monotonic() - began < 5


def test_wishes_of_owners(site: Site, tmp_path: Path) -> None:
    answers = {
        "/noindex": page(1, ["/from-noindex"], head='<meta name="ROBOTS" content="NoIndex">'),
        "/nofollow": page(2, ["/from-nofollow"], head='<meta name="robots" content="nofollow">'),
        "/header": Answer(page(3), headers={"X-Robots-Tag": "noindex, nofollow"}),
        "/ours": Answer(page(4), headers={"X-Robots-Tag": "trivium: none"}),
        "/theirs": Answer(page(5), headers={"X-Robots-Tag": "googlebot: noindex"}),
        "/reserved": Answer(page(6), headers={"TDM-Reservation": "1"}),
        "/noai": page(7, head='<meta name="robots" content="noai">'),
        "/rel": page(8).replace(b"</nav>", b'<a rel="ugc nofollow" href="/from-rel">x</a></nav>'),
        "/from-noindex": page(9),
        "/from-nofollow": page(10),
        "/from-rel": page(11),
    }
    for path, answer in answers.items():
        site.add("a.test", path, answer)
    site.add("a.test", "/", page(0, list(answers)[:8]))
    done = run(site, tmp_path / "out", "a.test")
    assert paths(tmp_path / "out") == ["/", "/from-noindex", "/nofollow", "/rel", "/theirs"]
    assert done.skipped == {"noindex": 3, "reserved by its owner": 2}
    assert run(site, tmp_path / "all", "a.test", opt_outs=False).skipped == {"noindex": 3}


def test_sitemaps(site: Site, tmp_path: Path) -> None:
    def listed(kind: str, links: list[str]) -> bytes:
        parts = "".join(f"<{kind}><loc> {link} </loc><lastmod>2026-01-01</lastmod></{kind}>" for link in links)
        root = "urlset" if kind == "url" else "sitemapindex"
        return f'<?xml version="1.0"?><{root} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{parts}</{root}>'.encode()

    site.add(
        "a.test", "/robots.txt", Answer(f"Sitemap: {site.url('a.test', '/index.xml')}\n".encode(), kind="text/plain")
    )
    index = [site.url("a.test", "/one.xml.gz"), site.url("a.test", "/two.txt"), site.url("a.test", "/bad.xml")]
    site.add("a.test", "/index.xml", Answer(listed("sitemap", index), kind="text/xml"))
    one = listed("url", [site.url("a.test", "/hidden/1"), site.url("b.test", "/elsewhere")])
    site.add("a.test", "/one.xml.gz", Answer(gzip.compress(one), kind="application/gzip"))
    site.add(
        "a.test", "/two.txt", Answer(site.url("a.test", "/hidden/2").encode() + b"\nnonsense\n", kind="text/plain")
    )
    site.add("a.test", "/bad.xml", Answer(b'<!DOCTYPE x [<!ENTITY a "aaaa">]><urlset><url><loc>&a;', kind="text/xml"))
    site.add("a.test", "/", page(1))
    site.add("a.test", "/hidden/1", page(2))
    site.add("a.test", "/hidden/2", page(3))
    assert run(site, tmp_path / "out", "a.test").pages == 3
    assert not site.asked("b.test")
    assert run(site, tmp_path / "without", "a.test", sitemaps=False).pages == 1


def test_hostile_sitemaps() -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">' for n in range(12))
    bomb = f"<!DOCTYPE r [{entities}]><urlset><url><loc>http://a.test/&e11;</loc></url></urlset>".encode()
    outside = b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>http://a.test/&x;</loc></url></urlset>'
    began = time.monotonic()
    for body in (
        bomb,
        outside,
        gzip.compress(b"\0" * 100_000_000),
        b"<urlset>" + b"<url>" * 200_000,
        b"\x1f\x8b\x08broken",
    ):
        pages, more = of_sitemap(body, limit=10_000_000)
        assert all("root:" not in link and len(link) < 200 for link in pages) and not more
    assert time.monotonic() - began < 10


def test_redirects(site: Site, tmp_path: Path) -> None:
    site.add("a.test", "/", page(1, ["/old", "/loop1", "/long0", "/out", "/nowhere", "/self", "/closed"]))
    site.add("a.test", "/robots.txt", Answer(b"User-agent: *\nDisallow: /secret\n", kind="text/plain"))
    moves = {"/old": "/new", "/loop1": "/loop2", "/loop2": "/loop1", "/out": site.url("b.test"), "/nowhere": "",
             "/self": "/self", "/closed": "/secret", **{f"/long{n}": f"/long{n + 1}" for n in range(9)}}  # fmt: skip
    for number, (path, target) in enumerate(moves.items()):
        status = (301, 302, 303, 307, 308)[number % 5]
        site.add("a.test", path, Answer(status=status, headers={"Location": target}))
    site.add("a.test", "/new", page(2))
    site.add("a.test", "/secret", page(3))
    done = run(site, tmp_path / "out", "a.test")
    assert paths(tmp_path / "out") == ["/", "/new"]
    assert done.skipped == {"other domain": 1, "too many redirects": 1, "robots.txt": 1}
    assert not site.asked("b.test") and "/secret" not in site.asked("a.test")
    assert len(site.asked("a.test")) == len(set(site.asked("a.test")))


def test_endless_calendar(site: Site, tmp_path: Path) -> None:
    def calendar(host: str, path: str) -> bytes | None:
        if not path.startswith("/calendar/"):
            return None
        day = int(path.rsplit("/", 1)[1])
        return page(day, [f"/calendar/{day + 1}", f"/calendar/{day + 2}", f"calendar/{day}", f"/session/{day}"])

    site.fallback = calendar
    site.add("a.test", "/", page(0, ["/calendar/1"]))
    done = run(site, tmp_path / "out", "a.test", pages=25, depth=1000)
    assert done.pages == 25
    assert run(site, tmp_path / "shallow", "a.test", depth=3).left == 0


def test_the_same_page_again_and_again(site: Site, tmp_path: Path) -> None:
    numbers = itertools.count()
    site.fallback = lambda host, path: (
        page(0, ["/next"]).replace(b"/next", f"/{next(numbers)}".encode()) and page(0, ["?again"])
    )
    done = run(site, tmp_path / "out", "a.test", "a.test/x", "a.test/y")
    assert done.pages == 1 and done.duplicates >= 2 and done.left == 0


def test_large_and_slow_and_packed(site: Site, tmp_path: Path) -> None:
    brotli = pytest.importorskip("brotli")
    big = page(1) + b" " * 3_000_000

    def drip(out: Any) -> None:
        for _ in range(200):
            out.write(b"x")
            out.flush()
            time.sleep(0.05)

    def endless(out: Any) -> None:
        for _ in range(400):
            out.write(b"<p>more</p>" * 10_000)

    def cut(out: Any) -> None:
        out.write(b"1000\r\nonly this")

    answers = {
        "/gzip": Answer(gzip.compress(page(2)), headers={"Content-Encoding": "gzip"}),
        "/deflate": Answer(zlib.compress(page(3)), headers={"Content-Encoding": "deflate"}),
        "/raw-deflate": Answer(zlib.compress(page(4))[2:-4], headers={"Content-Encoding": "deflate"}),
        "/br": Answer(brotli.compress(page(5)), headers={"Content-Encoding": "br"}),
        "/twice": Answer(gzip.compress(gzip.compress(page(6))), headers={"Content-Encoding": "gzip, gzip"}),
        "/gzip-bomb": Answer(gzip.compress(b"\0" * 50_000_000, 1), headers={"Content-Encoding": "gzip"}),
        "/br-bomb": Answer(brotli.compress(b"\0" * 50_000_000, quality=1), headers={"Content-Encoding": "br"}),
        "/thrice": Answer(page(7), headers={"Content-Encoding": "gzip, gzip, gzip"}),
        "/unknown": Answer(page(8), headers={"Content-Encoding": "rot13"}),
        "/broken": Answer(gzip.compress(page(9))[:5] + b"nonsense", headers={"Content-Encoding": "gzip"}),
        "/big": Answer(big),
        "/endless": Answer(stream=endless),
        "/drip": Answer(stream=drip),
        "/cut": Answer(stream=cut, headers={"Transfer-Encoding": "chunked"}),
        "/image": Answer(b"\x89PNG", kind="image/png"),
        "/plain": Answer("Plain text of some length, käse.".encode(), kind="text/plain; charset=utf-8"),
        "/untyped": Answer(page(10), kind=""),
    }  # fmt: skip
    for path, answer in answers.items():
        site.add("a.test", path, answer)
    site.add("a.test", "/", page(0, list(answers)))
    began = time.monotonic()
    done = run(site, tmp_path / "out", "a.test", page_bytes=1_000_000, timeout=1, retries=0)
    assert time.monotonic() - began < 15
    good = ["/", "/br", "/deflate", "/gzip", "/plain", "/raw-deflate", "/twice", "/untyped"]
    assert paths(tmp_path / "out") == good
    assert done.skipped == {
        "the response is larger than 1 MB when unpacked": 2,
        "page too large": 2,
        "the response is packed too many times": 1,
        "the response is packed in an unknown way (rot13)": 1,
        "other content type": 1,
    } | {reason: 1 for reason in done.skipped if "damaged" in reason}
    assert sum("damaged" in reason for reason in done.skipped) == 1
    assert done.failed == {"no answer in 1 seconds": 1, "connection broke off": 1}


def test_retries(site: Site, tmp_path: Path) -> None:
    counts = itertools.count()

    def flaky(handler: Any) -> Answer:
        number = next(counts)
        if number < 2:
            return Answer(status=503, headers={"Retry-After": "1"} if number else {})
        return Answer(page(2))

    site.add("a.test", "/flaky", flaky)
    site.add("a.test", "/down", Answer(status=500))
    site.add("a.test", "/later", Answer(status=429, headers={"Retry-After": "99999"}))
    site.add("a.test", "/gone", Answer(status=410))
    site.add("a.test", "/", page(1, ["/flaky", "/down", "/later", "/gone"]))
    began = time.monotonic()
    done = run(site, tmp_path / "out", "a.test", "host.gone", retries=2)
    assert time.monotonic() - began > 1
    assert done.pages == 2
    assert done.failed == {"status 500": 1, "status 429": 1, "status 410": 1, "robots.txt: host not found": 1}
    assert site.asked("a.test").count("/down") == 3
    assert site.asked("a.test").count("/gone") == 1


def test_retry_after() -> None:
    assert retry_after("120", 0) == 120
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 30) == 30
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 90) == 0
    assert retry_after("soon", 0) is None and retry_after("", 0) is None


def test_hosts_wait_for_themselves_and_not_for_others(site: Site, tmp_path: Path) -> None:
    hosts = [f"h{n}.test" for n in range(8)]
    for number, host in enumerate(hosts):
        site.add(host, "/", page(number * 10, ["/1", "/2"]))
        site.add(host, "/1", page(number * 10 + 1))
        site.add(host, "/2", page(number * 10 + 2))
    done = run(site, tmp_path / "out", *hosts, delay=0.3)
    assert done.pages == 24
    times = {
        host: [moment for name, path, moment in site.requests if name == host and path != "/robots.txt"]
        for host in hosts
    }
    assert all(later - earlier >= 0.25 for moments in times.values() for earlier, later in itertools.pairwise(moments))
    first = [name for name, path, _ in site.requests if path != "/robots.txt"][:8]
    assert len(set(first)) >= 6  # one host after the other would be three


def test_again_with_an_earlier_crawl(site: Site, tmp_path: Path) -> None:
    def conditional(body: bytes, etag: str) -> Any:
        def answer(handler: Any) -> Answer:
            if handler.headers.get("If-None-Match") == etag:
                return Answer(status=304)
            return Answer(body, headers={"ETag": etag})

        return answer

    site.add("a.test", "/", conditional(page(1, ["/same", "/changed"]), '"1"'))
    site.add("a.test", "/same", conditional(page(2), '"2"'))
    site.add("a.test", "/changed", conditional(page(3), '"3"'))
    run(site, tmp_path / "first", "a.test")
    site.add("a.test", "/changed", conditional(page(4), '"4"'))
    done = run(site, tmp_path / "second", "a.test", previous=tmp_path / "first")
    assert (done.pages, done.unchanged) == (3, 2)
    first = {document.meta["url"]: document for document in documents(tmp_path / "first")}
    second = {document.meta["url"]: document for document in documents(tmp_path / "second")}
    assert first.keys() == second.keys()
    for url, document in second.items():
        assert (document.text == first[url].text) is not url.endswith("/changed")
        assert (document.meta["record"] == first[url].meta["record"]) is not url.endswith("/changed")


def test_shards(site: Site, tmp_path: Path) -> None:
    tree(site, "a.test", 20)
    run(site, tmp_path / "out", "a.test", shard_bytes=3000, depth=9)
    shards = sorted((tmp_path / "out").glob("pages-*.warc.gz"))
    assert len(shards) > 3 and all(shard.stat().st_size < 4000 for shard in shards)
    assert len(documents(tmp_path / "out")) == 21


def test_a_record_that_the_log_does_not_know_is_cut_off(site: Site, tmp_path: Path) -> None:
    tree(site, "a.test", 20)
    run(site, tmp_path / "out", "a.test", depth=9, pages=8)
    (shard,) = (tmp_path / "out").glob("*.warc.gz")
    with shard.open("ab") as file:
        file.write(shard.read_bytes()[-500:])
    (tmp_path / "out" / "pages-00001.warc.gz").write_bytes(b"torn")
    run(site, tmp_path / "out", "a.test", depth=9)
    intake = Intake()
    assert len({document.meta["url"] for document in documents(tmp_path / "out", intake)}) == 21
    assert not intake.quarantined


def test_pages_that_the_disk_lost_are_fetched_again(site: Site, tmp_path: Path) -> None:
    tree(site, "a.test", 20)
    run(site, tmp_path / "out", "a.test", depth=9)
    (shard,) = (tmp_path / "out").glob("*.warc.gz")
    shard.write_bytes(shard.read_bytes()[:-1500])
    again = run(site, tmp_path / "out", "a.test", depth=9)
    assert again.pages == len(documents(tmp_path / "out")) == 21


def test_a_folder_belongs_to_one_crawl(site: Site, tmp_path: Path) -> None:
    slow = threading.Event()
    site.add("a.test", "/", lambda handler: Answer(page(1)) if slow.wait(5) else None)
    thread = threading.Thread(target=run, args=(site, tmp_path / "out", "a.test"))
    thread.start()
    while not site.asked("a.test"):
        time.sleep(0.01)
    with pytest.raises(ArtifactError, match="another crawl"):
        run(site, tmp_path / "out", "a.test")
    slow.set()
    thread.join()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="something else"):
        run(site, tmp_path / "full", "a.test")
    with pytest.raises(DataError, match="earlier crawl"):
        run(site, tmp_path / "new", "a.test", previous=tmp_path / "full")
    (tmp_path / "out" / LOG).write_bytes(b"no database" * 1000)
    with pytest.raises(ArtifactError, match="log of the crawl"):
        CrawlLog(tmp_path / "out" / LOG)


def test_a_contact_is_needed_and_sent(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whom site owners can reach"):
        crawl(["https://example.org"], tmp_path / "out")
    site.add("a.test", "/", page(1))
    run(site, tmp_path / "out", "a.test", contact="me@example.org")
    (agent,) = site.agents
    assert agent.startswith("trivium/") and "me@example.org" in agent


def test_hostile_pages_have_bounded_links() -> None:
    began = time.monotonic()
    for body in (
        b"<a href='/x'>" * 200_000,
        b"".join(b"<a href='/%d'>x</a>" % n for n in range(50_000)),
        b"<base href='javascript:x'><a href='y'>",
        b"<p " + b" ".join(b"a%d=1" % n for n in range(50_000)) + b">",
        b"\0" * 1_000_000,
        b"<a href='" + b"../" * 300_000 + b"'>",
        b"",
    ):
        found = of_page(body, "http://a.test/p", charset="nonsense", agent="trivium", robots_headers=["::", "a: b: c"])
        assert len(found.links) <= 10_000 and found.index
    assert time.monotonic() - began < 10


def test_the_command_line(site: Site, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from trivium.cli.data import app

    site.add("127.0.0.1", "/", page(1, ["/2"]))
    site.add("127.0.0.1", "/2", page(2))
    command = [
        "crawl",
        site.url("127.0.0.1"),
        "--output",
        str(tmp_path / "out"),
        "--allow-private",
        "--delay",
        "0",
        "--json",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pages"] == 2


@pytest.mark.parametrize("agent", ["my crawler", "crawler/1.0", "", "a\n"])
def test_a_name_that_robots_files_cannot_hold_is_refused(agent: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="letters, hyphens and underscores"):
        crawl(["http://a.test/"], tmp_path / "out", CrawlSettings(agent=agent, contact="me@example.org"))
    assert not (tmp_path / "out").exists()


def test_a_charset_behind_another_parameter_is_used_for_the_links(site: Site, tmp_path: Path) -> None:
    body = '<html lang="lt"><body><a href="/ąžė">next</a></body></html>'.encode("cp1257")
    site.add("a.test", "/", Answer(body, kind="text/html; profile=x; charset=windows-1257"))
    run(site, tmp_path / "out", "a.test", retries=0)
    assert "/%C4%85%C5%BE%C4%97" in site.asked("a.test")
