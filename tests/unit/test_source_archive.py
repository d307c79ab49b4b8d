"""Archives of plain files are read as folders are: same documents, same counts, places that can be found."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from tempfile import gettempdir

import pytest

from trivium.artifacts.manifest import content_hash
from trivium.data.intake import Intake
from trivium.data.pipeline.run import run_pipeline
from trivium.data.reading import read_documents, read_rows
from trivium.data.sources import archive
from trivium.errors import DataError
from trivium.recipe import Source

FILES = {
    "one.txt": b"first",
    "inner/two.md": b"second",
    "inner/rows.jsonl": b'{"text": "third"}\n{"text": 4}\n',
    "paper/main.tex": b"\\documentclass{x}\\begin{document}\\input{part}\\end{document}",
    "paper/part.tex": b"A part.",
    ".hidden.txt": b"never",
    "picture.png": b"\x89PNG",
    "again.zip": b"PK",
}


def tar_of(files: dict[str, bytes], *, links: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if links:
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info)
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in files.items():
            found.writestr(name, content)
    return out.getvalue()


MAKE = {
    "a.zip": zip_of,
    "a.tar": tar_of,
    "a.tar.gz": lambda files: gzip.compress(tar_of(files)),
    "a.tgz": lambda files: gzip.compress(tar_of(files)),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("alone", [True, False])
def test_an_archive_is_read_as_the_folder_it_holds(tmp_path: Path, name: str, alone: bool) -> None:
    path = tmp_path / name
    path.write_bytes(MAKE[name](FILES))
    intake = Intake("quarantine")
    found = {one.id: one for one in read_documents(Source(path=str(path if alone else tmp_path)), intake)}
    assert {key: one.text for key, one in found.items()} == {
        f"{name}/one.txt": "first",
        f"{name}/inner/two.md": "second",
        f"{name}/inner/rows.jsonl:1": "third",
        f"{name}/paper/main.tex": "A part.",
    }
    assert found[f"{name}/one.txt"].source == f"{path}/one.txt"
    assert found[f"{name}/inner/rows.jsonl:1"].source == f"{path}/inner/rows.jsonl:1"
    assert intake.skipped == {
        "unknown extension .png": 1,
        "archives inside of archives": 1,
        "part of another LaTeX document": 1,
    }
    assert intake.formats == {"archive": 1, "txt": 2, "jsonl": 1, "latex": 2}
    assert [row.where for row in intake.examples] == [f"{path}/inner/rows.jsonl:2"]


def test_rows_of_an_archive_and_a_format_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"x/rows.csv": b"prompt\nWhy?\n", "odd.dataset": b'{"prompt": "How?"}'}))
    (row,) = read_rows(Source(path=str(tmp_path / "a.zip")), Intake())
    assert (row.values, row.where, row.name) == (
        {"prompt": "Why?"},
        f"{tmp_path}/a.zip/x/rows.csv:2",
        "a.zip/x/rows.csv:2",
    )
    (tmp_path / "b.zip").write_bytes(zip_of({"odd.dataset": b'{"text": "How?"}'}))
    (document,) = read_documents(Source(path=str(tmp_path / "b.zip"), format="jsonl"), Intake())
    assert document.text == "How?"
    (tmp_path / "c.zip").write_bytes(zip_of({"a.txt": b"text"}))
    with pytest.raises(DataError, match="rows are needed") as caught:
        list(read_rows(Source(path=str(tmp_path / "c.zip")), Intake()))
    assert caught.value.where == f"{tmp_path}/c.zip/a.txt"


def test_an_error_inside_of_an_archive_names_the_place_inside_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({"a.txt": b"fine", "b.txt": b"caf\xe9", "c.jsonl.gz": b"\x1f\x8b broken", "d.txt": b"end"}))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        list(read_documents(Source(path=str(path)), Intake()))
    assert str(caught.value.where).startswith(f"{path}/b.txt:1")
    intake = Intake("quarantine")
    assert [one.text for one in read_documents(Source(path=str(path)), intake)] == ["fine", "end"]
    assert sum(intake.quarantined.values()) == 2
    assert all(str(path) in str(row.where) for row in intake.examples)


def test_links_devices_and_double_names_are_counted(tmp_path: Path) -> None:
    raw = tar_of({"a.txt": b"one", "a.txt/b.txt": b"two"}, links=True)
    (tmp_path / "a.tar").write_bytes(raw)
    intake = Intake()
    (document,) = read_documents(Source(path=str(tmp_path / "a.tar")), intake)
    assert document.text == "one"
    assert intake.skipped == {"files of archives whose names cannot be used": 1, "links and devices in archives": 1}


def test_too_many_files_and_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({f"{n}.txt": b"x" for n in range(4)}))
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    with pytest.raises(DataError, match="bomb"):
        list(read_documents(Source(path=str(tmp_path / "a.zip")), Intake()))
    monkeypatch.setattr(archive, "MOST_FILES", 4)
    assert len(list(read_documents(Source(path=str(tmp_path / "a.zip")), Intake()))) == 4


def test_a_pipeline_reads_archives_with_any_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        files = {f"{n}.txt": f"text {number} {n} ".encode() * 40 for n in range(9)}
        (tmp_path / "in" / f"{number}.tar").write_bytes(tar_of({**files, "bad.txt": b"\xff"}))
    runs = [
        run_pipeline(
            {
                "sources": [str(tmp_path / "in")],
                "steps": ["clean"],
                "output": str(tmp_path / f"out{workers}"),
                "on_error": "quarantine",
                "workers": workers,
            }
        )
        for workers in (1, 2)
    ]
    assert runs[0].report == runs[1].report
    assert runs[0].report["kept"] == {"train": 27} and sum(runs[0].report["quarantined"].values()) == 3
    assert content_hash(runs[0].folder) == content_hash(runs[1].folder)
    written = "".join(path.read_text("utf-8", "replace") for path in runs[0].folder.rglob("*.jsonl"))
    assert "in/0.tar/bad.txt" in written and gettempdir() + "/tmp" not in written
