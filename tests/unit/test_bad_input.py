"""Every kind of bad input is an error of at most five lines that names the file, or is set aside and counted.

Never a traceback, never a silent loss: what is read, plus what is set aside or counted, is what there was.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.unit.test_source_files import OPF, PAGES, paper, pdf, xhtml, zstd
from trivium.data.intake import Intake
from trivium.data.reading import read_documents, read_rows
from trivium.errors import DataError
from trivium.recipe import Source

for needed in ("lxml", "pypdfium2", "pyarrow"):
    pytest.importorskip(needed)

ROW = b'{"text": "ok"}\n'
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)
CYCLE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "&b;"><!ENTITY b "&a;">]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
WIKI = '<mediawiki xml:lang="en"><page><title>T</title><ns>0</ns><id>1</id><revision><id>2</id><text>{}</text></revision></page>'
JATS = '<article article-type="x"><front/><body><p>{}</p></body></article>'


def epub(**changes: str | bytes | None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**PAGES, **changes}.items():
            if content is not None:
                archive.writestr(name, content, zipfile.ZIP_STORED if name == "mimetype" else None)
    return out.getvalue()


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def locked(raw: bytes) -> bytes:
    """The archive with the bits set that say its first file is encrypted."""
    at = raw.index(b"PK\x01\x02")
    return raw[:6] + b"\x01\x00" + raw[8 : at + 8] + b"\x01\x00" + raw[at + 10 :]


def nameless(raw: bytes) -> bytes:
    """The archive without the one letter that is the name of its file in the directory."""
    at, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    size = struct.pack("<I", end - at - 1)
    return raw[: at + 28] + bytes(2) + raw[at + 30 : at + 46] + raw[at + 47 : end + 12] + size + raw[end + 16 :]


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def encrypted_epub() -> bytes:
    names = '<encryption xmlns="urn:x" xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes256-cbc"/></e:EncryptedData></encryption>'
    return epub(**{"META-INF/encryption.xml": names})


def flagged(raw: bytes) -> bytes:
    """The archive with the bit set that says a member is encrypted."""
    at = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 4)
    while b"container.xml" not in raw[at : at + 80]:
        at = raw.index(b"PK\x01\x02", at + 4)
    return raw[: at + 8] + b"\x01\x00" + raw[at + 10 :]


def parquet(**columns: list[object]) -> bytes:
    import pyarrow
    from pyarrow import parquet as writer

    out = io.BytesIO()
    writer.write_table(pyarrow.table(columns), out, compression="none", use_dictionary=False)
    return out.getvalue()


def arrow() -> bytes:
    import pyarrow

    out = io.BytesIO()
    table = pyarrow.table({"text": [f"row {n}" for n in range(5000)]})
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


LOCKED = pdf([[(72, 700, 11, "secret")]], "/Encrypt << /Filter /Standard /V 1 /R 2 /O (" + "x" * 32 + ") /U (" + "y" * 32 + ") /P -4 >> /ID [(aaaaaaaaaaaaaaaa) (aaaaaaaaaaaaaaaa)] ")  # fmt: skip
LOOP = pdf([[(72, 700, 11, "x")]]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]")
BOMB_PDF = pdf([[(72, 700, 11, "x")]]).replace(b"[0 0 612 792]", b"[0 0 9e9 9e9]")

# name of the file, bytes, what the message says, where (beside the path)
KINDS = {
    # lines and rows
    "half a line of JSON": ("a.jsonl", ROW + b'{"text": "o', "not valid JSON", ":2"),
    "no JSON": ("a.jsonl", ROW + b"hello\n", "not valid JSON", ":2"),
    "two rows on a line": ("a.jsonl", b'{"text": "a"}{"text": "b"}\n', "not valid JSON", ":1"),
    "a list for a row": ("a.jsonl", b'["a"]\n', "not a JSON object", ":1"),
    "a number for text": ("a.jsonl", b'{"text": 1}\n', "holds no text but int", ":1"),
    "null for text": ("a.jsonl", ROW + b'{"text": null}\n', "holds no text but NoneType", ":2"),
    "another schema in the middle": ("a.jsonl", ROW + b'{"body": "x"}\n', "no field 'text'", ":2"),
    "keys that stand twice": ("a.jsonl", b'{"text": "a", "text": "b"}\n', "stands twice", ":1"),
    "NaN": ("a.jsonl", b'{"text": "a", "n": NaN}\n', "not valid JSON", ":1"),
    "half of a surrogate pair": ("a.jsonl", b'{"text": "\\ud83d"}\n', "surrogate", ":1"),
    "deep JSON": ("a.jsonl", b'{"text": ' + b"[" * 200_000, "nested too deeply", ":1"),
    "deep JSON in a list": ("a.json", b"[" + b'{"a": ' * 200_000, "nested too deeply", ":1"),
    "a huge number": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 10_000 + b"}\n", "not valid JSON", ":1"),
    "Latin-1": ("a.jsonl", ROW + b'{"text": "caf\xe9"}\n', "not UTF-8", ":2"),
    "Latin-1 as text": ("a.txt", b"one\ncaf\xe9\n", "not UTF-8", ":2"),
    "UTF-16": ("a.jsonl", ROW.decode().encode("utf-16"), "UTF-16", ":1"),
    "UTF-16 without a mark": ("a.txt", "text".encode("utf-16-le"), "NUL", ":1"),
    "UTF-32": ("a.txt", "text".encode("utf-32"), "UTF-16", ":1"),
    "overlong UTF-8": ("a.txt", b"a\xc0\x80b", "not UTF-8", ":1"),
    "surrogates in UTF-8": ("a.txt", b"a\xed\xa0\x80b", "not UTF-8", ":1"),
    "half of a character at the end": ("a.txt", "größe".encode()[:3], "not UTF-8", ":1"),
    "NUL bytes": ("a.jsonl", ROW + b"\0\0\0\0\n", "NUL", ":2"),
    "a picture with the name of a text": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8", ":1"),
    "a line longer than a row may be": ("a.jsonl", ROW + b'{"text": "' + b"x" * 3_000_000 + b'"}\n', "too long", ":2"),
    "a value longer than a row may be": ("a.json", b'[{"text": "' + b"x" * 3_000_000 + b'"}]', "too long", ":1"),
    "a list that is not closed": ("a.json", b'[{"text": "a"},\n{"text": "b"}', "not closed", ":2"),
    "an open quote": ("a.csv", b'text\n"a\nb\n', "cannot be read", ":2"),
    "a row with too many fields": ("a.csv", b"text\na,b\n", "as many fields", ":2"),
    "a table without names": ("a.csv", b"1,1\n", "name the columns", ":1"),
    "a table without the column": ("a.tsv", b"a\tb\n1\t2\n", "no field 'text'", ":2"),
    # packed
    "half a gzip file": ("a.jsonl.gz", gzip.compress(ROW * 999)[:-12], "gzip data is damaged", ""),
    "gzip with a wrong sum": ("a.txt.gz", gzip.compress(b"text" * 99)[:-8] + bytes(8), "gzip data is damaged", ""),
    "no gzip": ("a.jsonl.gz", ROW, "gzip data is damaged", ""),
    "rubbish behind gzip": ("a.txt.gz", gzip.compress(b"text") + b"rubbish", "gzip data is damaged", ""),
    "half a bzip2 file": ("a.jsonl.bz2", bz2.compress(ROW * 999)[:-12], "bzip2 data is damaged", ""),
    "no bzip2": ("a.txt.bz2", b"text", "bzip2 data is damaged", ""),
    "half an xz file": ("a.jsonl.xz", lzma.compress(ROW * 999)[:-12], "xz data is damaged", ""),
    "xz that asks for 4 GB": ("a.txt.xz", lzma.compress(b"x", format=lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]), "xz data is damaged", ""),
    "half a zstd file": ("a.jsonl.zst", zstd(os.urandom(9999))[:-99], "zstd data is damaged", ""),
    "no zstd": ("a.txt.zst", b"text", "zstd data is damaged", ""),
    # tables
    "half a parquet file": ("a.parquet", parquet(text=["a"] * 99)[:-30], "not a readable parquet", ""),
    "parquet without an end": ("a.parquet", b"PAR1" + b"x" * 99, "not a readable parquet", ""),
    "parquet with wrong bytes inside": ("a.parquet", parquet(text=[f"row {n}" for n in range(999)]).replace(b"row 5", b"\xff\xff\xff\xff\xff", 1), "not UTF-8", ", row 6"),
    "parquet without the column": ("a.parquet", parquet(body=["a"]), "no field 'text'", ", row 1"),
    "parquet with numbers for text": ("a.parquet", parquet(text=[1]), "holds no text but int", ", row 1"),
    "half an Arrow file": ("a.arrow", arrow()[:3000], "not a readable Arrow", ""),
    "an Arrow file that points outside of itself": ("a.arrow", arrow().replace(struct.pack("<4i", 0, 5, 10, 15), struct.pack("<4i", 0, 5, 1 << 30, 15)), "not a readable Arrow", ""),
    "no Arrow": ("a.feather", b"FEA1" + b"x" * 99, "not a readable Arrow", ""),
    "an empty Arrow file": ("a.arrow", b"", "not a readable Arrow", ""),
    # XML
    "half a dump": ("a.xml", WIKI.format("x").encode(), "not well-formed XML", ":1"),
    "half a packed dump": ("a.xml.bz2", bz2.compress(WIKI.format(os.urandom(500_000).hex()).encode())[:-20], "bzip2 data is damaged", ""),
    "a billion laughs in a dump": ("a.xml", (LAUGHS + WIKI.format("&j;")).encode(), "entities of its own", ""),
    "entities in a circle": ("a.xml", (CYCLE + WIKI.format("&a;")).encode(), "entities of its own", ""),
    "an entity that names a file": ("a.nxml", (OUTSIDE + JATS.format("&a;")).encode(), "entities of its own", ""),
    "entities in UTF-16": ("a.nxml", (LAUGHS.replace('?>', ' encoding="utf-16"?>', 1) + JATS.format("&j;")).encode("utf-16"), "entities of its own", ""),
    "XML that is 100,000 deep": ("a.nxml", ("<article>" + "<b>" * 100_000).encode(), "not well-formed XML", ":1"),
    "an article that never ends": ("a.nxml", ("<article><body>" + "<p>text</p>" * 300_000).encode(), "too long", ""),
    "tags in the wrong order": ("a.nxml", b"<article><body><p>x</body></p></article>", "not well-formed XML", ":1"),
    "XML of another kind": ("a.nxml", b"<html><p>x</p></html>", "holds no article", ""),
    "XML that nobody knows": ("a.xml", b"<other/>", "not known from its name", ""),
    # books and papers
    "a name that leads out of an EPUB": ("a.epub", epub(**{"../../evil.xhtml": "x"}), "leads out of it", ""),
    "an absolute name in an EPUB": ("a.epub", epub(**{"/etc/passwd": "x"}), "leads out of it", ""),
    "a page outside of an EPUB": ("a.epub", epub(**{"OEBPS/book.opf": OPF.replace("text/one.xhtml", "../../../etc/passwd")}), "outside of it", ""),
    "an EPUB without a container": ("a.epub", epub(**{"META-INF/container.xml": None}), "does not hold", ""),
    "an EPUB without pages": ("a.epub", epub(**{"OEBPS/book.opf": "<package/>"}), "no list of its pages", ""),
    "an EPUB with entities": ("a.epub", epub(**{"OEBPS/text/one.xhtml": LAUGHS + "<html><body>&j;</body></html>"}), "entities of its own", ""),
    "an encrypted EPUB": ("a.epub", encrypted_epub(), "encrypted", ""),
    "an EPUB with an encrypted member": ("a.epub", flagged(epub()), "encrypted", ""),
    "half an EPUB": ("a.epub", epub()[:900], "damaged, or is no EPUB", ""),
    "no EPUB": ("a.epub", b"text", "damaged, or is no EPUB", ""),
    "an EPUB with a wrong sum": ("a.epub", epub().replace(struct.pack("<I", zipfile.ZipFile(io.BytesIO(epub())).getinfo("OEBPS/book.opf").CRC), b"\0\0\0\0"), "damaged, or is no EPUB", ""),
    "a name that leads out of an archive": ("a.zip", zipped(**{"../evil.txt": b"x"}), "leads out of it", ""),
    "a file of an archive at an absolute place": ("a.tar", tar_of({"/tmp/evil.txt": b"x"}), "leads out of it", ""),
    "half an archive": ("a.zip", zipped(**{"a.txt": b"text" * 99})[:60], "damaged or ends", ""),
    "half a tape": ("a.tar.gz", gzip.compress(tar_of({"a.txt": b"text" * 999}))[:90], "damaged or ends", ""),
    "a tape that is none": ("a.tar", b"text" * 999, "damaged or ends", ""),
    "an archive with a file that has no name": ("a.zip", nameless(zipped(x=b"text")), "damaged or ends", ""),
    "an encrypted archive": ("a.zip", locked(zipped(**{"a.txt": b"text"})), "encrypted", ""),
    "an empty PDF": ("a.pdf", b"", "PDF is empty", ""),
    "half a PDF": ("a.pdf", b"%PDF-1.4\n1 0 obj\n<<", "cannot be read", ""),
    "no PDF": ("a.pdf", b"text" * 99, "cannot be read", ""),
    "an encrypted PDF": ("a.pdf", LOCKED, "encrypted", ""),
    "LaTeX that reads itself in": ("a.tex", b"\\documentclass{x}\\input{a}", "read each other in", ""),
    "macros without end": ("a.tex", b"\\def\\a{\\a\\a}\\begin{document}\\a", "expand without end", ""),
    "LaTeX that is no text": ("a.tex", bytes(range(256)) * 9, "no encoding that can be told", ""),
    "a mail that is no text": ("a.eml", b"Subject: x\nContent-Type: text/plain\n\n" + bytes(range(256)) * 9, "cannot be read", ":1"),
    "a mail in an unknown encoding": ("a.eml", b"Subject: x\nContent-Type: text/plain; charset=utf-16\n\n\xff\xfe\0", "cannot be read", ":1"),
}  # fmt: skip


def read(path: Path, intake: Intake) -> list:
    return list(read_documents(Source(path=str(path)), intake))


def test_there_are_at_least_sixty_kinds():
    assert len(KINDS) >= 60


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.replace(" ", "-"))
def test_bad_input_is_named_or_set_aside(tmp_path, kind):
    name, content, problem, place = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, Intake(row_bytes=2_000_000))
    message = str(caught.value)
    assert problem in message
    assert f"{path}{place}" in message
    assert len(message.splitlines()) <= 5
    assert "fix:" in message
    if "not known from its name" in problem:
        return
    intake = Intake("quarantine", row_bytes=2_000_000)
    read(path, intake)
    assert sum(intake.quarantined.values()) >= 1
    assert intake.examples[0].message == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.replace(" ", "-"))
def test_good_files_beside_a_bad_one_are_read(tmp_path, kind):
    name, content, *_ = KINDS[kind]
    (tmp_path / f"m{name[1:]}").write_bytes(content)
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (tmp_path / "z.txt").write_text("the end")
    intake = Intake("quarantine", row_bytes=2_000_000)
    found = [document.text for document in read(tmp_path, intake)]
    assert (found[0], found[-1]) == ("ok", "the end")
    assert sum(intake.quarantined.values()) + sum(intake.skipped.values()) >= 1


HARMLESS = {
    "a mark of the byte order": ("a.jsonl", b"\xef\xbb\xbf" + ROW, ["ok"]),
    "mixed line ends": ("a.jsonl", b'{"text": "a"}\r\n{"text": "b"}\n\r\n{"text": "c"}', ["a", "b", "c"]),
    "a line end inside a field": ("a.csv", b'text\n"a\r\nb"\n', ["a\nb"]),
    "several gzip members": ("a.jsonl.gz", gzip.compress(ROW) * 2 + bytes(512), ["ok", "ok"]),
    "a PDF whose pages are in a circle": ("a.pdf", LOOP, None),
    "a PDF with a huge page": ("a.pdf", BOMB_PDF, None),
    "a PDF that lost its table": ("a.pdf", paper().replace(b"startxref", b"starxxxxf"), None),
    "XHTML that is not well-formed": ("a.epub", epub(**{"OEBPS/text/one.xhtml": "<html><body><p>One<br>two"}), ["## First\n\nOne\ntwo\n\n## The Second\n\nx² & more."]),
    "XHTML with names of characters": ("a.epub", epub(**{"OEBPS/text/one.xhtml": xhtml("<p>a&nbsp;b&mdash;c</p>")}), ["## First\n\na b—c\n\n## The Second\n\nx² & more."]),
    "XHTML that is very deep": ("a.epub", epub(**{"OEBPS/text/one.xhtml": xhtml("<div>" * 5000 + "deep" + "</div>" * 5000)}), None),
    "a mail that is very deep": ("a.eml", b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(3000)) + b"\nx", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS, ids=lambda kind: kind.replace(" ", "-"))
def test_odd_input_is_read_or_counted(tmp_path, kind):
    name, content, expected = HARMLESS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    (tmp_path / "z.txt").write_text("the end")
    intake = Intake("quarantine", row_bytes=20_000_000)
    found = [document.text.replace("\r", "") for document in read(tmp_path, intake)]
    assert found[-1] == "the end"
    if expected is not None:
        assert found[:-1] == expected
    else:
        assert len(found) > 1 or sum(intake.quarantined.values()) + sum(intake.skipped.values()) >= 1


# Things that are no files


def test_pipes_links_and_what_is_not_there(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "up").symlink_to(tmp_path)
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").write_text("text")
    intake = Intake()
    assert [document.text for document in read(tmp_path, intake)] == ["text"]
    assert intake.skipped == {"not a regular file": 1, "a link to nowhere": 2, "a link to a folder": 1}
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "pipe.txt", Intake())
    for name in ("loop.txt", "gone.txt", "missing.txt", "c.txt/inside"):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / name, Intake())


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text")
    (tmp_path / "folder").mkdir()
    opened, listed = Path.open, Path.iterdir

    def refuse(self, *arguments, **named):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    def hide(self):
        if self.name == "folder":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", hide)
    with pytest.raises(DataError, match="Permission denied"):
        read(path, Intake())
    intake = Intake("quarantine")
    read(tmp_path, intake)
    assert intake.quarantined.total() == 2


def test_rows_and_documents_are_refused_where_they_do_not_fit(tmp_path):
    (tmp_path / "a.pdf").write_bytes(paper())
    with pytest.raises(DataError, match="rows are needed here"):
        list(read_rows(Source(path=str(tmp_path / "a.pdf")), Intake()))


# Bombs: read in a process whose memory is measured

MEGA = 1 << 20
CAP = 16 * MEGA
"""Longest row; a tree of XML takes up to twenty times as much as its text, everything else four times."""
ROOM = 64 * MEGA

SCRIPT = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import DataError
from trivium.recipe import Source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

for warm in sys.argv[2:4]:
    list(read_documents(Source(path=warm), Intake()))
base = peak()
for path in sys.argv[4:]:
    intake, begin, count = Intake("quarantine", row_bytes=int(sys.argv[1])), time.process_time(), 0
    for document in read_documents(Source(path=path), intake):
        count += 1
    print(json.dumps([path, peak() - base, time.process_time() - begin, dict(intake.quarantined), dict(intake.skipped), count]))
"""


def bombs(folder: Path) -> dict[str, str]:
    """Files that grow without end when they are read, and what is said about each."""
    block = b"a" * (16 * MEGA)
    for ending, pack in {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}.items():
        (folder / f"lines.jsonl{ending}").write_bytes(pack(block) * 40)
        (folder / f"text.txt{ending}").write_bytes(pack(block[:-1] + b"\n") * 40)
    (folder / "dump.xml.bz2").write_bytes(bz2.compress(b"<mediawiki>") + bz2.compress(block) * 40)
    (folder / "article.nxml.gz").write_bytes(gzip.compress(b"<article>") + gzip.compress(b"<p>x</p>" * (2 * MEGA)) * 40)
    (folder / "book.epub").write_bytes(epub(**{"OEBPS/text/one.xhtml": b"<html>" + bytes(48 * MEGA)}))
    (folder / "files.zip").write_bytes(zipped(**{f"{n}.txt": block for n in range(20)}))
    (folder / "files.tar.gz").write_bytes(gzip.compress(tar_of({"a.txt": block * 20})))
    (folder / "paper.tex.gz").write_bytes(gzip.compress(block) * 40)
    (folder / "paper.pdf.gz").write_bytes(gzip.compress(b"%PDF-1.4" + block) * 40)
    with (folder / "line.jsonl").open("wb") as stream:
        stream.truncate(1 << 30)
    with (folder / "value.json").open("wb") as stream:
        stream.write(b'[{"text": "')
        stream.truncate(1 << 28)
    return {
        "lines.jsonl": "bomb|too long",
        "text.txt": "bomb",
        "dump.xml": "too long|bomb|well-formed",
        "article.nxml": "too long|bomb|well-formed",
        "book.epub": "bomb",
        "files.zip": "bomb",
        "files.tar": "bomb|damaged",
        "paper.tex": "too long|bomb",
        "paper.pdf": "too long|bomb",
        "line.jsonl": "too long",
        "value.json": "too long|not valid|NUL",
    }


def test_bombs_do_not_fill_the_memory(tmp_path):
    import json
    import re

    said = bombs(tmp_path)
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "a.jsonl.zst").write_bytes(zstd(ROW * 9))
    (tmp_path / "warm.nxml").write_text(JATS.format("x"))
    paths = sorted(str(path) for path in tmp_path.iterdir() if path.is_file() and path.name != "warm.nxml")
    paths.sort(key=lambda path: "article" in path)  # the peak only grows
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(CAP), str(tmp_path / "warm"), str(tmp_path / "warm.nxml"), *paths],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == len(paths) == 17
    for path, grown, seconds, quarantined, skipped, count in lines:
        shown = f"{Path(path).name}: {grown >> 20} MiB, {seconds:.1f} s, {quarantined} {skipped} {count}"
        assert grown < (20 if "article" in path else 4) * CAP + ROOM, shown
        assert seconds < 15, shown
        expected = next(text for name, text in said.items() if Path(path).name.startswith(name))
        assert any(re.search(expected, problem) for problem in quarantined), shown


# ruff: noqa: E501
