"""One spelling for each page, and which addresses a crawl may visit."""

from __future__ import annotations

import pytest

from trivium.data.crawl.urls import Refused, Scope, blocklist, canonical, check_trap

BASE = "https://example.org/a/b.html?x=1"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("HTTP://Example.ORG", "http://example.org/"),
        ("http://example.org:80/", "http://example.org/"),
        ("https://example.org:443/x", "https://example.org/x"),
        ("https://example.org:8443/x", "https://example.org:8443/x"),
        ("http://example.org./", "http://example.org/"),
        ("c.html#part", "https://example.org/a/c.html"),
        ("../c/./d/../e", "https://example.org/c/e"),
        ("/../../c", "https://example.org/c"),
        ("//other.org/x", "https://other.org/x"),
        ("?y=2", "https://example.org/a/b.html?y=2"),
        ("  /sp ace\t\n ", "https://example.org/sp%20ace"),
        ("/%7euser/%41%2f", "https://example.org/~user/A%2F"),
        ("/100%", "https://example.org/100%25"),
        ("/käse?q=ü", "https://example.org/k%C3%A4se?q=%C3%BC"),
        ("http://münchen.example/", "http://xn--mnchen-3ya.example/"),
        ("/x?utm_source=a&b=1&gclid=3", "https://example.org/x?b=1"),
        ("/x?utm_source=a", "https://example.org/x"),
        ("/x;jsessionid=AB12?a=1", "https://example.org/x?a=1"),
        ("/x?", "https://example.org/x"),
        ("https:\\\\example.org\\x", "https://example.org/x"),
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://0177.0.0.1/", "http://127.0.0.1/"),
        ("http://[0:0:0:0:0:0:0:1]/", "http://[::1]/"),
    ],
)
def test_canonical(link: str, expected: str) -> None:
    assert canonical(link, BASE) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("mailto:a@b.c", "neither http nor https"),
        ("javascript:alert(1)", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("gopher://example.org/", "neither http nor https"),
        ("ftp://example.org/", "neither http nor https"),
        ("data:text/html,x", "neither http nor https"),
        ("http://user:secret@example.org/", "user name in the address"),
        ("http://example.org:22/", "port of another service"),
        ("http://example.org:99999/", "malformed address"),
        ("http://", "malformed address"),
        ("http://[::1/", "malformed address"),
        ("http://exa mple.org/", "malformed address"),
        ("http://999999999999/", "malformed address"),
        ("http://a..b/", "malformed address"),
        ("/" + "x" * 3000, "address too long"),
    ],
)
def test_refused(link: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        canonical(link, BASE if link.startswith("/") else None)


@pytest.mark.parametrize(
    ("path", "trap"),
    [
        ("/a/b/a/b/a/b", False),
        ("/a/b/a/b/a/b/a", True),
        ("/" + "/".join(map(str, range(21))), True),
        ("/x?" + "&".join(f"a{n}=1" for n in range(21)), True),
        ("/2024/01/02/title", False),
    ],
)
def test_traps(path: str, trap: bool) -> None:
    if trap:
        with pytest.raises(Refused, match="endless"):
            check_trap(f"http://example.org{path}")
    else:
        check_trap(f"http://example.org{path}")


def test_scope(tmp_path) -> None:
    lists = tmp_path / "blocked"
    lists.write_text("# bad ones\nbad.example.org  # this one\n0.0.0.0 ads.example.org\nhttps://example.org/private/\n")
    scope = Scope(["example.org"], ["*/keep/*"], ["*.pdf"], blocklist(lists))
    scope.check("https://www.example.org/keep/x")
    scope.check("https://example.org/", start=True)
    for url, reason in {
        "https://example.com/keep/x": "other domain",
        "https://notexample.org/keep/x": "other domain",
        "https://a.bad.example.org/keep/x": "blocklist",
        "https://ads.example.org/keep/x": "blocklist",
        "https://example.org/private/keep/x": "blocklist",
        "https://example.org/keep/x.pdf": "excluded",
        "https://example.org/other": "not included",
    }.items():
        with pytest.raises(Refused, match=reason):
            scope.check(url)
    Scope([], [], [], frozenset()).check("https://anything.test/")
