"""Parts of a file, read alone, give the rows of the whole file with the same names."""

from __future__ import annotations

import json

import pytest

from trivium.data.intake import InputFile, Intake
from trivium.data.sources import jsonl, parquet


def rows_of(reader, file: InputFile):
    return [(row.name, row.where, row.values) for row in reader.rows(file, Intake("quarantine"))]


def in_parts(reader, file: InputFile, size: int):
    found = list(reader.spans(file, size))
    return found, [row for span in found for row in rows_of(reader, InputFile(file.path, file.name, span))]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 7, 60, 100, 1000])
def test_lines(tmp_path, end, mark, size):
    lines = [json.dumps({"text": "x" * (number % 13)}) for number in range(20)]
    lines[5:5] = ["", "no json", ""]
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + ("\n".join(lines) + end).encode())
    file = InputFile(path, "a.jsonl")
    spans, parts = in_parts(jsonl, file, size)
    assert parts == rows_of(jsonl, file)
    assert len(parts) == 20
    assert spans[-1].end == path.stat().st_size
    assert size > 500 or len(spans) > 3


def test_a_packed_file_has_no_parts(tmp_path):
    assert list(jsonl.spans(InputFile(tmp_path / "a.jsonl.gz", "a.jsonl.gz"), 10)) == []


@pytest.mark.parametrize("size", [1, 500, 1 << 30])
def test_row_groups(tmp_path, size):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path = tmp_path / "a.parquet"
    files.write_table(pyarrow.table({"text": [f"text {n}" for n in range(50)]}), path, row_group_size=7)
    file = InputFile(path, "a.parquet")
    spans, parts = in_parts(parquet, file, size)
    assert parts == rows_of(parquet, file)
    assert len(parts) == 50
    assert (len(spans) == 1) == (size > 1000)
    path.write_bytes(b"PAR1")
    assert list(parquet.spans(file, size)) == []
