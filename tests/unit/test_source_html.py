"""The main text of a page: with its headings, without its furniture, in any encoding, and in bounded time."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from tests.unit.crawl_site import page
from trivium.data.extraction import PAGE_BYTES, NoText, decode_html, extract
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import DataError
from trivium.recipe import Source

PAGE = """<!doctype html><html lang="de-AT"><head><title>Shop | A Title</title>
<meta property="og:title" content="A Title"><meta name="author" content="Ada Lovelace">
<meta property="article:published_time" content="2024-05-06T07:08:09Z">
<link rel="canonical" href="https://example.org/page">
</head>
<body><nav><ul><li><a href="/1">Home</a></li><li><a href="/2">About us</a></li></ul></nav>
<main><article><h1>A Title</h1>
<p>The first paragraph is long enough to be taken as text of the page, <b>with bold</b>
and <a href="/x">a link</a> in it.</p>
<h2>A  section</h2><p>Another paragraph, also long enough to be taken as text of the page, with a line<br>break.</p>
<ul><li>The first item of the list</li><li>The second item<ul><li>An item inside of it</li></ul></li></ul>
<h3>Details</h3><table><tr><th>Name</th><th>Value</th></tr><tr><td>one</td><td>1</td></tr></table>
<p>The last paragraph of the text, which is long enough as well, and then it ends here for good.</p>
</article></main><footer>Terms,
<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">CC BY 4.0</a></footer>
<script>var hidden = "secret words";</script></body></html>"""


def test_structure() -> None:
    found = extract(PAGE)
    assert found.text.split("\n\n") == [
        "## A Title",
        "The first paragraph is long enough to be taken as text of the page, with bold and a link in it.",
        "## A section",
        "Another paragraph, also long enough to be taken as text of the page, with a line\nbreak.",
        "- The first item of the list\n- The second item\n- An item inside of it",
        "### Details",
        "Name | Value\none | 1",
        "The last paragraph of the text, which is long enough as well, and then it ends here for good.",
    ]
    assert found.licence == "CC BY 4.0"
    assert found.meta() == {
        "title": "A Title",
        "author": "Ada Lovelace",
        "date": "2024-05-06",
        "url": "https://example.org/page",
        "language": "de",
        "sections": [[2, "A Title"], [2, "A section"], [3, "Details"]],
    }


def test_the_address_it_was_fetched_from_wins() -> None:
    assert extract(PAGE, url="https://other.example/x").url == "https://other.example/x"


@pytest.mark.parametrize(
    ("encoding", "declared", "meta"),
    [
        ("utf-8", None, None),
        ("utf-8", "iso-8859-1", None),
        ("utf-8", "utf-16", "windows-1252"),
        ("utf-8-sig", "windows-1251", None),
        ("utf-16", None, None),
        ("utf-16-le", None, None),
        ("cp1252", "windows-1252", None),
        ("cp1252", None, "iso-8859-1"),
        ("cp1252", "utf-8", "iso-8859-1"),
        ("cp1252", "no-such-charset", None),
        ("cp1252", "rot13", "unicode_escape"),
        ("cp1252", "'ISO-8859-1'", None),
    ],
)
def test_encodings(encoding: str, declared: str | None, meta: str | None) -> None:
    said = f'<meta charset="{meta}">' if meta else ""
    text = "Grüße aus Köln, “süße Äpfel” und größere Straßen, wie schön es hier heute früh ist."
    found = decode_html(
        f"<html><head>{said}</head><body><p>{text}</p></body></html>".encode(encoding), charset=declared
    )
    assert text in found


@pytest.mark.parametrize(
    ("encoding", "label", "text"),
    [
        ("cp1251", "windows-1251", "Съешь же ещё этих мягких французских булок, да выпей чаю"),
        ("koi8-r", "KOI8-R", "Съешь же ещё этих мягких французских булок, да выпей чаю"),
        ("gb18030", "gb2312", "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"),
        ("big5hkscs", "Big5", "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏"),
        ("cp932", "Shift_JIS", "いろはにほへとちりぬるをわかよたれそつねならむ"),
        ("euc_jp", "EUC-JP", "いろはにほへとちりぬるをわかよたれそつねならむ"),
        ("cp949", "euc-kr", "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다"),
        ("iso8859-7", "iso-8859-7", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία"),
    ],
)
def test_other_scripts(encoding: str, label: str, text: str) -> None:
    raw = f"<html><body><p>{text}</p></body></html>".encode(encoding)
    assert text in decode_html(raw, charset=label)
    assert text in decode_html(raw.replace(b"<html>", f'<html><meta charset="{label}">'.encode()))
    assert text in decode_html(raw.replace(b"<html>", f'<html><meta charset="{label}">'.encode()), charset="utf-8")


def test_an_encoding_that_nobody_declares_is_guessed() -> None:
    text = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 20
    assert text.strip() in decode_html(f"<html><body><p>{text}</p></body></html>".encode("cp1251"))


def test_a_few_wrong_bytes_do_not_spoil_a_page() -> None:
    raw = ("Grüße aus Köln, süße Äpfel. " * 30).encode() + b"\xff\xfe cut \xc3"
    assert "Grüße aus Köln" in decode_html(raw)


TAGS = 12_000
HOSTILE = {
    "nested": "<div>" * TAGS + "text " * 100,
    "nested tables": "<table><tr><td>" * TAGS,
    "nested lists": "<ul><li>item" * TAGS,
    "nested spans": "<p>" + "<span>" * TAGS + "text",
    "links": "<a href='x'>link</a> " * TAGS,
    "headings": "<h2>Title</h2>" * TAGS,
    "paragraphs": "<p>Some words in a paragraph.</p>" * TAGS,
    "below the limit": "<div><a href='x'>some words</a></div>" * 4_500,
    "line breaks": "<p>" + "word<br>" * TAGS,
    "cells": "<table>" + "<tr><td>a</td></tr>" * TAGS,
    "unclosed": "<a <b " * TAGS,
    "attributes": "<p " + " ".join(f"a{n}=1" for n in range(200_000)) + ">text</p>",
    "less-than signs": "<" * 500_000,
    "entities": "<p>" + "&amp;&#x41;&bogus;&#99999999;" * TAGS,
    "comments": "<!--" * TAGS,
    "structured data": "<script type='application/ld+json'>" + '{"a":[' * TAGS + "</script>",
    "titles": "<title>" + "a - " * 500_000 + "</title>",
    "authors": "<meta name='author' content='a b'>" * TAGS,
    "dates": "<time datetime='2020-01-01'>2020</time>" * TAGS,
    "one word": "<p>" + "w" * 2_000_000,
    "spaces": "<p>" + " \n" * 500_000 + "x</p>",
    "NUL": "\0" * 1_000_000,
    "surrogates": "<p>" + "\ud800\udfff text" * 1000,
    "controls": "".join(map(chr, range(32))) * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_take_bounded_time(name: str) -> None:
    began = time.process_time()
    try:
        found = extract(f"<html><body>{HOSTILE[name]}</body></html>")
    except NoText as reason:
        assert str(reason) == "no main text"
    else:
        assert "\0" not in found.text and len(found.text) <= len(HOSTILE[name]) + 10 * TAGS
    assert time.process_time() - began < 10


def test_large_pages_keep_their_text() -> None:
    """A book in one page has more tags than the exact method may see."""
    chapters = "".join(f"<h2>Chapter {n}</h2>" + f"<p>Sentence number {n} of the book.</p>" * 60 for n in range(500))
    found = extract(
        f"<html lang=en><title>Book</title><nav>menu</nav><body>{chapters}<footer>foot</footer></body></html>"
    )
    assert found.text.startswith("## Chapter 0\n\nSentence number 0 of the book.\n\nSentence")
    assert found.text.count("Sentence") == 30_000 and len(found.meta()["sections"]) == 500
    assert "menu" not in found.text and "foot" not in found.text
    assert (found.title, found.language) == ("Book", "en")


@pytest.mark.parametrize(
    "html", ["", " ", "\0", "<html></html>", "<html><body><script>x</script></body></html>", "<!--"]
)
def test_pages_without_text(html: str) -> None:
    with pytest.raises(NoText, match="no main text"):
        extract(html)
    with pytest.raises(NoText, match="larger than 10 MB"):
        extract("x" * (PAGE_BYTES + 1))


def read(path: Path, intake: Intake | None = None):
    return list(read_documents(Source(path=str(path)), intake or Intake()))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page(1))
    (tmp_path / "b.htm").write_text("<html><body></body></html>")
    (tmp_path / "c.xhtml").write_bytes(page(3))
    (tmp_path / "d.html.gz").write_bytes(gzip.compress(page(4)))
    (tmp_path / "e.html").write_bytes(b"")
    intake = Intake()
    found = read(tmp_path, intake)
    assert [document.id for document in found] == ["a.html", "c.xhtml", "d.html.gz"]
    assert found[0].meta["title"] == "Title 1" and found[0].meta["group"] == "a.html"
    assert intake.skipped == {"no main text": 1, "empty file": 1}


def test_damaged_and_too_large_files(tmp_path: Path) -> None:
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(page(1) * 50)[:-20])
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(DataError, match="damaged or ends"):
        read(tmp_path)
    intake = Intake("quarantine")
    assert read(tmp_path, intake) == []
    assert sorted(intake.quarantined.values()) == [1, 1]


SHARED = (
    Path(os.environ.get("TRIVIUM_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "article_extraction"
)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the benchmark is not here")
def test_the_benchmark_of_article_extraction() -> None:
    from benchmarks.extraction import pages_of, score

    truth = json.loads((SHARED / "ground-truth.json").read_text())
    with tarfile.open(SHARED / "html.tar") as archive:
        pages = pages_of(archive)
    found = {name: extract(raw).text for name, raw in pages.items()}
    assert score(truth, found)["f1"] >= 0.96
