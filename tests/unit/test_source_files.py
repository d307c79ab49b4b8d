"""EPUB, PDF, mail, Arrow and data sets of Hugging Face become documents with ids, structure and licence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from trivium.data.intake import Intake
from trivium.data.plain import open_bytes
from trivium.data.reading import fingerprint, read_documents
from trivium.data.sources.mail import own_words
from trivium.errors import DataError
from trivium.recipe import Source


def read(path, intake=None, **options):
    return list(read_documents(Source(path=str(path), **options), intake or Intake()))


# Packings

LINES = b"".join(b'{"text": "line %d"}\n' % number for number in range(2000))


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_of_several_members(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKERS[ending](LINES) + PACKERS[ending](LINES))
    with open_bytes(path) as stream:
        assert stream.read() == LINES + LINES
    found = read(path)
    assert (len(found), found[-1].text, found[-1].id) == (4000, "line 1999", f"a.jsonl{ending}:4000")


# EPUB

CONTAINER = '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
OPF = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>A Book</dc:title><dc:creator>Jane Doe</dc:creator>
<dc:identifier>urn:isbn:978-0-306-40615-7</dc:identifier><dc:language>en-GB</dc:language><dc:date>2001-02-03</dc:date>
<dc:rights>https://creativecommons.org/licenses/by-sa/4.0/</dc:rights></metadata>
<manifest><item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>
<item id="b" href="text/two.xhtml" media-type="application/xhtml+xml"/><item id="a" href="text/one.xhtml" media-type="application/xhtml+xml"/>
<item id="c" href="text/notes.xhtml" media-type="application/xhtml+xml"/><item id="i" href="i.png" media-type="image/png"/></manifest>
<spine><itemref idref="nav"/><itemref idref="a"/><itemref idref="b"/><itemref idref="c" linear="no"/></spine></package>"""


def xhtml(body: str) -> str:
    return f'<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><head><title>t</title></head><body>{body}</body></html>'


PAGES = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": OPF,
    "OEBPS/nav.xhtml": xhtml('<nav epub:type="toc"><ol><li><a href="text/one.xhtml">First</a></li><li><a href="text/two.xhtml">Second</a></li></ol></nav>'),
    "OEBPS/text/one.xhtml": xhtml('<p>It&#160;began<a epub:type="noteref" href="#n">1</a> with\n <i>words</i>.<br/>Next.</p><ul><li>one</li><li>two</li></ul>'),
    "OEBPS/text/two.xhtml": xhtml("<h1>The <b>Second</b></h1><p>x<sup>2</sup> &amp; more.</p><script>no()</script>"),
    "OEBPS/text/notes.xhtml": xhtml("<p>Not linear.</p>"),
}  # fmt: skip


def epub(path: Path, **changes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**PAGES, **changes}.items():
            if content is not None:
                archive.writestr(name, content, zipfile.ZIP_STORED if name == "mimetype" else None)
    return path


@pytest.mark.parametrize("name", ["a.epub", "a"])
def test_an_epub(tmp_path, name):
    pytest.importorskip("lxml")
    intake = Intake()
    (book,) = read(epub(tmp_path / name), intake)
    assert book.text == "## First\n\nIt began with words.\nNext.\n\n- one\n- two\n\n## The Second\n\nx² & more."
    assert (book.id, book.licence) == ("isbn:9780306406157", "CC-BY-SA-4.0")
    assert book.meta == {
        "title": "A Book",
        "author": "Jane Doe",
        "date": "2001-02-03",
        "language": "en",
        "isbn": "9780306406157",
        "sections": [[2, "First"], [2, "The Second"]],
        "group": "isbn:9780306406157",
    }
    assert intake.formats == {"epub": 1}


# PDF


def pdf(pages: list[list[tuple[int, int, int, str]]], more: str = "") -> bytes:
    """A small PDF; each line is (left, bottom, size, text)."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        content = "".join(f"BT /F1 {size} Tf {left} {bottom} Td ({text}) Tj ET\n" for left, bottom, size, text in page)
        number = len(objects) + 1
        kids.append(f"{number} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}endstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append("<< /Title (A Paper) /Author (Jane Doe) /CreationDate (D:20200102000000Z) >>")
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R {more}>>\nstartxref\n{len(out)}\n%%EOF\n"
    return out.encode("latin-1")


def paper() -> bytes:
    def page(number: int, lines: list[tuple[int, int, int, str]]) -> list[tuple[int, int, int, str]]:
        return [(72, 760, 9, f"A running head {number}"), *lines, (300, 30, 9, str(number))]

    return pdf(
        [
            page(
                1,
                [
                    (72, 700, 18, "Introduction"),
                    (
                        72,
                        670,
                        11,
                        "This is a para- graph that goes on for a whole line until the very right edge of the",
                    ),
                    (72, 656, 11, "page, and then it stops here."),
                ],
            ),
            page(
                2,
                [
                    (
                        72,
                        700,
                        11,
                        "Another paragraph stands on the second page, arXiv:2101.00001v2, and it is long enough.",
                    )
                ],
            ),
            page(3, [(72, 700, 18, "References"), (72, 670, 11, "[1] Somebody. Something. 1999.")]),
        ]
    )


@pytest.mark.parametrize("name", ["a.pdf", "a.pdf.gz", "a"])
def test_a_pdf(tmp_path, name):
    pytest.importorskip("pypdfium2")
    (tmp_path / name).write_bytes(gzip.compress(paper()) if name.endswith("gz") else paper())
    intake = Intake()
    (found,) = read(tmp_path / name, intake)
    assert found.text.startswith(
        "## Introduction\n\nThis is a para- graph that goes on for a whole line until the very right edge of the page, and then it stops here.\n\nAnother paragraph"
    )
    assert "running head" not in found.text
    assert "Somebody" not in found.text
    assert found.meta == {
        "title": "A Paper",
        "author": "Jane Doe",
        "date": "2020-01-02",
        "arxiv": "2101.00001",
        "pages": 3,
        "sections": [[2, "Introduction"]],
        "group": "arxiv:2101.00001",
    }
    assert intake.skipped == {"lines of PDF files: page numbers, running heads, contents": 6}


# Mail

MESSAGE = """From: Jane <jane@example.org>
Subject: Re: AW: The question
Message-ID: <2@example.org>
References: <1@example.org>
Date: Mon, 01 Jan 2024 10:00:00 +0100
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Hello,

On Sun, 31 Dec 2023 at 09:00, Joe
<joe@example.org> wrote:
> What is =FCber?
> Really?

It is =FCber.

--=20
Jane Doe, jane@example.org
"""


def test_mail(tmp_path):
    (tmp_path / "a.eml").write_text(MESSAGE)
    html = "Subject: html\nContent-Type: text/html\n\n<p>One &amp; two</p>"
    (tmp_path / "b.mbox").write_text(
        f"From a b\n{MESSAGE}\nFrom c d\n{html}\n\nFrom e f\nSubject: only a quote\n\n> x\n"
    )
    intake = Intake()
    found = read(tmp_path, intake)
    assert [message.text for message in found] == ["Hello,\n\nIt is über.", "Hello,\n\nIt is über.", "One & two"]
    assert found[0].meta == {"title": "The question", "date": "2024-01-01T10:00:00+01:00", "group": "1@example.org"}
    assert found[0].id == "2@example.org"
    assert found[2].id == "b.mbox:22"
    assert intake.skipped == {"messages without text of their own": 1}


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ("Yes.\n\n-----Original Message-----\nFrom: x\nNo?", "Yes."),
        ("Am 1. Mai schrieb Eva:\n> alt\n\nNeu.", "Neu."),
        ("a\n> b\nc", "a\n\nc"),
        ("-- \nonly a signature", ""),
    ],
)
def test_own_words(written, own):
    assert own_words(written) == own


# Data sets


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repo"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "data" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps({"text": f"of {split}"}) + "\n")
    (folder / "other.jsonl").write_text('{"text": "of other"}\n')
    (folder / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n- config_name: other\n  data_files: other.jsonl\n---\n# Card\n"
    )
    return folder


@pytest.mark.parametrize(("chosen", "text"), [("", "of train"), ("#test", "of test"), ("#other/train", "of other")])
def test_one_split_of_a_repository(repository, chosen, text):
    intake = Intake()
    source = Source(path=f"{repository}{chosen}")
    assert [document.text for document in read_documents(source, intake)] == [text]
    assert fingerprint(source) == fingerprint(Source(path=f"{repository}{chosen}"))
    if not chosen:
        assert intake.skipped == {"files of the split test": 1}


def test_a_split_that_is_not_there(repository):
    with pytest.raises(DataError, match="no such split"):
        read(f"{repository}#dev")
    with pytest.raises(DataError, match="no such configuration"):
        read(f"{repository}#nothing/train")


def test_what_datasets_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(300)]}) for name in ("train", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    found = read(tmp_path / "saved")
    assert [document.text for document in found] == [f"train {n}" for n in range(300)]
    assert found[0].id == "train/data-00000-of-00001.arrow:1"
    assert [document.text for document in read(f"{tmp_path / 'saved'}#test")] == [f"test {n}" for n in range(300)]
    assert [document.text for document in read(tmp_path / "saved" / "train")] == [f"train {n}" for n in range(300)]


def test_an_id_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        read("nobody/nothing", format="dataset")
    assert "nobody/nothing" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_source_tree_knows_its_licence_and_where_it_is_from(tmp_path):
    for name, text in {
        "LICENSE": "Apache License\n  Version 2.0, January 2004",
        "a.py": "x = 1\n",
        "b.c": "/* SPDX-License-Identifier: MIT */\n",
        "other/COPYING": "Permission is hereby granted, free of charge, to any person obtaining a copy",
        "other/deep/c.rs": "fn main() {}\n",
        ".git/config": '[remote "origin"]\n\turl = https://me:secret@example.org/x.git\n',
        ".git/HEAD": "ref: refs/heads/main\n",
        ".git/refs/heads/main": "a" * 40 + "\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = read(tmp_path, format="code")
    assert [(file.id, file.licence) for file in found] == [
        ("a.py", "Apache-2.0"),
        ("b.c", "MIT"),
        ("other/deep/c.rs", "MIT"),
    ]
    assert found[0].meta == {
        "group": "a.py",
        "programming_language": "python",
        "repository": "https://example.org/x.git",
        "commit": "a" * 40,
    }


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": [f"row {n}" for n in range(300)]})
    path = tmp_path / "a.arrow"
    with pyarrow.OSFile(str(path), "wb") as sink:
        make = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    assert [document.text for document in read(path)] == [f"row {n}" for n in range(300)]


# ruff: noqa: E501


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["a.mbox", "a.html"])
def test_damaged_mailboxes_and_pages_are_messages_in_every_packing(tmp_path: Path, name: str, ending: str) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending]
    whole = pack(b"From a\nSubject: b\n\ntext\n" + bytes(range(1, 128)) * 50)
    for damaged in (whole[: len(whole) // 2], whole[:12] + b"\xff" * 40 + whole[52:]):
        (tmp_path / f"{name}.{ending}").write_bytes(damaged)
        intake = Intake("quarantine")
        list(read_documents(Source(path=str(tmp_path)), intake))
        assert "damaged or ends in the middle" in next(iter(intake.quarantined))
