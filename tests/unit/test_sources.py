"""Every kind of file is read the same way on every machine; what cannot be read is named by file, line and fix."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from trivium.data.intake import Intake
from trivium.data.reading import fingerprint, read_documents, read_rows
from trivium.data.sources import txt
from trivium.errors import DataError
from trivium.recipe import Source

TEXTS = ["The first.", "Ünïcode, and a\nsecond line.", 'A "quoted", one.']


def read(path, intake=None, **options):
    return list(read_documents(Source(path=str(path), **options), intake or Intake()))


def texts(path, **options):
    return [document.text for document in read(path, **options)]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


ROWS = [{"text": text} for text in TEXTS]


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def csv_bytes(separator: str) -> bytes:
    lines = [
        f"n{separator}text\r\n",
        *(f'{n}{separator}"{text.replace(chr(34), 2 * chr(34))}"\r\n' for n, text in enumerate(TEXTS)),
    ]
    return "".join(lines).encode()


def write_parquet(path: Path, columns) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


# Reading


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lambda: jsonl(ROWS)),
        ("a.ndjson", lambda: b"\xef\xbb\xbf" + jsonl(ROWS).replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", lambda: gzip.compress(jsonl(ROWS))),
        ("a.jsonl.zst", lambda: zstd(jsonl(ROWS))),
        ("a.json", lambda: json.dumps(ROWS, indent=2).encode()),
        ("b.json", lambda: jsonl(ROWS)),
        ("c.json", lambda: "".join(json.dumps(row, indent=1) for row in ROWS).encode()),
        ("a.json.gz", lambda: gzip.compress(json.dumps(ROWS).encode())),
        ("a.csv", lambda: csv_bytes(",")),
        ("a.tsv", lambda: b"\xef\xbb\xbf" + csv_bytes("\t")),
        ("a.csv.gz", lambda: gzip.compress(csv_bytes(","))),
    ],
)
def test_tables_and_json_in_every_packing(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content())
    intake = Intake()
    assert [document.text for document in read(path, intake)] == TEXTS
    assert intake.formats.total() == 1


def test_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": TEXTS, "n": [1, 2, 3]})
    assert texts(path) == TEXTS
    assert [row.name for row in read_rows(Source(path=str(path)), Intake())] == [f"a.parquet:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.txt.gz"])
def test_a_text_file_is_one_document(tmp_path, name):
    path = tmp_path / name
    text = "\n\n".join(TEXTS)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert texts(path) == [text]


def test_a_long_text_is_read_in_pieces_that_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(txt, "PIECE_BYTES", 64)
    lines = "".join(f"line {n}: größer\n" for n in range(50))
    unbroken = "ä€😀" * 60
    for text in (lines, unbroken, lines + unbroken, unbroken + lines):
        path = tmp_path / "long.txt"
        path.write_text(text)
        found = read(path)
        assert "".join(document.text for document in found) == text
        assert len({document.id for document in found}) == len(found) > 5
        assert {document.group for document in found} == {"long.txt"}
        assert max(len(document.text.encode()) for document in found) <= 2 * 64


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y.jsonl", "c/d/e.txt", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "y"}\n' if name.endswith("jsonl") else name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.txt").write_bytes(b"")
    intake = Intake()
    assert [document.id for document in read(tmp_path, intake)] == ["a/y.jsonl:1", "a/z.md", "b.txt", "c/d/e.txt"]
    assert intake.skipped == {"unknown extension .png": 1, "empty file": 1}


def test_a_source_tree_holds_its_text_files_only(tmp_path):
    for name in ("main.py", "src/lib.rs", "node_modules/x.js", "notes", "build/out.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "blob.py").write_bytes(b"x\0y")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "large.py").write_text("x" * (1 << 20) + "y")
    intake = Intake()
    found = read(tmp_path, intake, format="code")
    assert [(document.id, document.meta["programming_language"]) for document in found] == [
        ("main.py", "python"),
        ("src/lib.rs", "rust"),
    ]
    assert intake.skipped == {
        "generated or vendored": 2,
        "no known language": 1,
        "not UTF-8 text": 2,
        "larger than 1 MiB": 1,
    }


def test_ids_licences_groups_and_the_name_of_the_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"body": "x", "id": 7, "license": "MIT", "meta": {"group": "g", "n": 1}}, {"body": "y"}]))
    first, second = read(path, text_field="body")
    assert (first.id, first.licence, first.group, first.source) == ("7", "MIT", "g", f"{path}:1")
    assert (second.id, second.licence, second.group) == ("a.jsonl:2", None, "a.jsonl:2")


def test_a_format_can_be_named(tmp_path):
    path = tmp_path / "data.dump"
    path.write_bytes(jsonl(ROWS))
    assert texts(path, format="jsonl") == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.txt"])
def test_memory_does_not_grow_with_the_input(tmp_path, monkeypatch, name):
    monkeypatch.setattr(txt, "PIECE_BYTES", 1 << 20)
    row = "word " * 2000
    count = 2000
    if name == "a.csv":
        data = "text\n" + f"{row}\n" * count
    elif name == "a.json":
        data = "[" + ",\n".join([json.dumps({"text": row})] * count) + "]"
    elif name == "a.txt":
        data = f"{row}\n" * count
    else:
        data = (json.dumps({"text": row}) + "\n") * count
    path = tmp_path / name
    path.write_bytes(gzip.compress(data.encode(), 1) if name.endswith(".gz") else data.encode())
    tracemalloc.start()
    size = sum(len(document.text) for document in read_documents(Source(path=str(path)), Intake()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size >= count * len(row)
    assert peak < 8 << 20, f"{peak} bytes for {size}"


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(ROWS))
    first = fingerprint(Source(path=str(path)))
    assert fingerprint(Source(path=str(path))) == first
    assert fingerprint(Source(path=str(path), text_field="other")) != first
    path.write_bytes(jsonl(ROWS[:2]))
    assert fingerprint(Source(path=str(path))) != first


# Malformed input: (name, bytes, what the message must say, where)

LONG = 2000
MALFORMED = {
    "bad UTF-8 in jsonl": ("a.jsonl", b'{"text": "ok"}\n{"text": "\xe9"}\n', "not UTF-8", "a.jsonl:2 (byte 0xe9 at offset 25)"),
    "bad UTF-8 in txt": ("a.txt", b"one\ntwo\nthr\xff\n", "not UTF-8", "a.txt:3 (byte 0xff at offset 11)"),
    "bad UTF-8 in json": ("a.json", b'[\n{"text": "a"},\n{"text": "\xfc"}]', "not UTF-8", "a.json:3 (byte 0xfc at offset 27)"),
    "bad UTF-8 in csv": ("a.csv", b"text\nok\nb\xe4d\n", "not UTF-8", "a.csv:3 (byte 0xe4 at offset 9)"),
    "UTF-16": ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "UTF-16", "a.jsonl:1"),
    "UTF-16 text": ("a.txt", "text".encode("utf-16"), "UTF-16", "a.txt:1"),
    "NUL in text": ("a.txt", b"one\ntwo\0\n", "NUL", "a.txt:2"),
    "NUL in jsonl": ("a.jsonl", b'{"text": "ok"}\n\0\0\0\0\n', "NUL", "a.jsonl:2"),
    "lone surrogate": ("a.jsonl", b'{"text": "\\ud83d alone"}\n', "surrogate", "a.jsonl:1"),
    "surrogate in a key": ("a.json", b'[{"a\\udc00": 1}]', "surrogate", "a.json:1"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(jsonl(ROWS * 500))[:-20], "gzip data is damaged", "a.jsonl.gz"),
    "flipped gzip": ("a.txt.gz", gzip.compress(b"text " * 99)[:-6] + b"xxxxxx", "gzip data is damaged", "a.txt.gz"),
    "not gzip at all": ("a.json.gz", b"[{}]", "gzip data is damaged", "a.json.gz"),
    "no JSON": ("a.jsonl", b'{"text": "ok"}\ntext: hello\n', "not valid JSON", "a.jsonl:2"),
    "cut JSON line": ("a.jsonl", b'{"text": "ok"}\n{"text": "o', "not valid JSON", "a.jsonl:2"),
    "single quotes": ("a.json", b"[{'text': 'a'}]", "not valid JSON", "a.json:1"),
    "cut JSON list": ("a.json", b'[{"text": "a"},\n{"text": "b"}', "not closed", "a.json:2"),
    "cut JSON object": ("a.json", b'[{"text": "a"},\n{"text": ', "not valid JSON", "a.json:2"),
    "NaN": ("a.jsonl", b'{"text": "a", "x": NaN}\n', "not valid JSON", "a.jsonl:1"),
    "duplicate keys": ("a.jsonl", b'{"text": "a", "text": "b"}\n', "'text' stands twice", "a.jsonl:1"),
    "deep nesting": ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply", "a.jsonl:1"),
    "a number of 5000 digits": ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "not valid JSON", "a.jsonl:1"),
    "a list as row": ("a.jsonl", b'["text"]\n', "not a JSON object", "a.jsonl:1"),
    "wrong type of text": ("a.jsonl", b'{"text": ["a"]}\n', "holds no text but list", "a.jsonl:1"),
    "null as text": ("a.jsonl", b'{"text": null}\n', "holds no text but NoneType", "a.jsonl:1"),
    "missing field": ("a.jsonl", b'{"body": "a", "title": "b"}\n', "fields: body, title", "a.jsonl:1"),
    "long line": ("a.jsonl", b'{"text": "ok"}\n{"text": "' + b"x" * LONG + b'"}\n{"text": "ok"}\n', "too long", "a.jsonl:2"),
    "long JSON value": ("a.json", b'[{"text": "' + b"x" * (3 << 20) + b'"}]', "too long", "a.json:1"),
    "long CSV field": ("a.csv", b"text\n" + b"x" * LONG + b"\n", "too long", "a.csv:2"),
    "open quote": ("a.csv", b'n,text\n1,ok\n2,"open\n3,more\n', "cannot be read", "a.csv:3"),
    "ragged row": ("a.csv", b'n,text\n1,"a\nb"\n2,c,d\n', "as many fields", "a.csv:4"),
    "CSV without the column": ("a.csv", b"n,body\n1,a\n", "fields: n, body", "a.csv:2"),
    "CSV without header": ("a.csv", b"0,0,a\n1,2,b\n", "name the columns", "a.csv:1"),
    "cut parquet": ("a.parquet", b"PAR1" + b"x" * 100, "not a readable parquet table", "a.parquet"),
    "empty parquet": ("a.parquet", b"", "not a readable parquet table", "a.parquet"),
}  # fmt: skip
# ruff: noqa: E501


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.replace(" ", "-"))
def test_malformed_input_is_named_or_set_aside(tmp_path, case):
    name, content, problem, where = MALFORMED[case]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        read(path, Intake(row_bytes=LONG if "long" in case else 10_000_000))
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert problem in message
    assert f"{tmp_path / where}" in message
    assert "fix:" in message

    intake = Intake("quarantine", row_bytes=LONG if "long" in case else 10_000_000)
    kept = read(path, intake)
    assert intake.quarantined.total() == 1
    assert intake.examples[0].message == message
    assert all(document.text for document in kept)


def test_rows_after_a_bad_one_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "1"}\n{"text": 2}\n\xff\n{"text": "4"}\n{"text": "' + b"x" * LONG + b'"}\n{"text": "6"}\n'
    )
    intake = Intake("quarantine", row_bytes=1000)
    assert [document.id for document in read(path, intake)] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:6"]
    assert intake.quarantined.total() == 3
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n1\n\xff\n3,3\n4\n")
    assert [document.id for document in read(path, Intake("quarantine"))] == ["a.csv:2", "a.csv:5"]


def test_parquet_without_the_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"body": ["a"], "n": [1]})
    with pytest.raises(DataError, match="fields: body, n"):
        read(path)


def test_a_parquet_file_that_was_cut_off(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": TEXTS})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a readable parquet table"):
        read(path)


@pytest.mark.parametrize(
    ("build", "problem", "fix"),
    [
        (lambda folder: folder / "nothing.jsonl", "no such file", "check the path"),
        (lambda folder: _file(folder / "corpus.jsonl").with_name("korpus.jsonl"), "no such file", "corpus.jsonl"),
        (lambda folder: folder / "pydoc", "no such file", "pydocs"),
        (lambda folder: folder / ("x" * 5000), "no such file", "check the path"),
        (lambda folder: folder / "a\0b", "no such file", "check the path"),
        (lambda folder: _file(folder / "a.xyz"), "not known from its name", "format"),
        (lambda folder: _file(folder / "a.txt"), "no documents", "not empty"),
        (lambda folder: _file(folder / "a.jsonl"), "no documents", "not empty"),
        (lambda folder: _file(folder / "a.csv"), "no documents", "not empty"),
        (lambda folder: _file(folder / "a.json"), "no documents", "not empty"),
        (lambda folder: folder, "no file that can be read", ".jsonl"),
        (lambda folder: _file(folder / "x.bin").parent, "no file that can be read", "name the format"),
        (lambda folder: _file(folder / "documents.train.jsonl").parent, "held-out", "documents.train.jsonl"),
    ],
)  # fmt: skip
def test_sources_without_documents(tmp_path, build, problem, fix):
    with pytest.raises(DataError) as caught:
        read(build(tmp_path))
    message = str(caught.value)
    assert problem in message
    assert fix in message
    assert len(message.splitlines()) <= 5


def _file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_an_unknown_format_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean jsonl"):
        read(_file(tmp_path / "a.txt"), format="jsnl")


def test_plain_text_has_no_rows(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="rows are needed here"):
        list(read_rows(Source(path=str(tmp_path / "a.txt")), Intake()))


def test_a_link_to_nowhere_is_no_file(tmp_path):
    path = tmp_path / "a.txt"
    path.mkdir()
    (path / "b.txt").symlink_to(tmp_path / "missing")
    with pytest.raises(DataError, match="no file that can be read"):
        read(path)
