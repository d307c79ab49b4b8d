"""Web archives of every kind and packing; damage is named by its byte, counted, and read past."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard

from tests.unit.crawl_site import page
from trivium.data.crawl.records import BLOCK_BYTES, Damaged, digest, message, packed_record, records, unpacked
from trivium.data.intake import InputFile, Intake
from trivium.data.reading import read_documents
from trivium.data.sources import warc
from trivium.errors import DataError
from trivium.recipe import Source

URL = "https://example.org/page"


def http(body: bytes, *, status: int = 200, kind: str = "text/html; charset=utf-8", more: str = "") -> bytes:
    return f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body


def record(block: bytes, *, kind: str = "response", name: str = "1", more: str = "", url: str = URL) -> bytes:
    media = "application/http; msgtype=response" if kind == "response" else "text/plain"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{name}>\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n"
        f"WARC-Target-URI: {url}\r\n{more}Content-Type: {media}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def three() -> list[bytes]:
    return [record(http(page(number)), name=str(number), url=f"{URL}/{number}") for number in range(3)]


def read(path: Path, data: bytes, on_error: str = "quarantine"):
    path.write_bytes(data)
    intake = Intake(on_error)  # type: ignore[arg-type]
    return list(read_documents(Source(path=str(path)), intake)), intake


def gz(parts: list[bytes]) -> bytes:
    return b"".join(map(gzip.compress, parts))


PACKINGS = {
    "x.warc": b"".join,
    "x.warc.gz": gz,
    "whole.warc.gz": lambda parts: gzip.compress(b"".join(parts)),
    "pieces.warc.gz": lambda parts: gz([b"".join(parts)[at : at + 700] for at in range(0, len(b"".join(parts)), 700)]),
    "x.warc.zst": lambda parts: b"".join(zstandard.ZstdCompressor().compress(part) for part in parts),
    "whole.warc.zst": lambda parts: zstandard.ZstdCompressor().compress(b"".join(parts)),
    "unpacked.warc.gz": b"".join,
}


@pytest.mark.parametrize("name", PACKINGS)
def test_packings(name: str, tmp_path: Path) -> None:
    found, intake = read(tmp_path / name, PACKINGS[name](three()))
    assert [document.id for document in found] == ["urn:uuid:0", "urn:uuid:1", "urn:uuid:2"]
    assert not intake.quarantined
    one = found[1]
    assert one.text.startswith("## Title 1\n\nPage 1, part 0: ")
    assert one.meta == {
        "group": f"{URL}/1",
        "title": "Title 1",
        "url": f"{URL}/1",
        "language": "en",
        "sections": [[2, "Title 1"]],
        "date": "2024-01-02T03:04:05Z",
        "crawled": "2024-01-02T03:04:05Z",
        "record": "urn:uuid:1",
        "digest": digest(page(1)),
        "status": 200,
        "content_type": "text/html",
    }


def test_a_dictionary_in_the_first_frame(tmp_path: Path) -> None:
    parts = [record(http(page(number % 50)), name=str(number)) for number in range(300)]
    trained = zstandard.train_dictionary(4000, parts)
    packer = zstandard.ZstdCompressor(dict_data=trained)
    content = trained.as_bytes()
    for stored in (content, zstandard.ZstdCompressor().compress(content)):
        head = b"\x5d\x2a\x4d\x18" + len(stored).to_bytes(4, "little") + stored
        found, intake = read(tmp_path / "x.warc.zst", head + b"".join(map(packer.compress, parts[:5])))
        assert len(found) == 5 and not intake.quarantined


def test_conversions_and_plain_text_and_resources(tmp_path: Path) -> None:
    parts = [
        record("Text einer Seite, größer.".encode(), kind="conversion", name="wet"),
        record(http(b"Plain text.", kind="text/plain"), name="plain"),
        record(b"A resource.", kind="resource", name="resource", url="file:///x.txt"),
        record(http(page(1), kind=""), name="untyped"),
    ]
    found, intake = read(tmp_path / "x.warc.wet.gz", gz(parts))
    assert [document.text.splitlines()[0] for document in found] == [
        "Text einer Seite, größer.", "Plain text.", "A resource.", "## Title 1"]  # fmt: skip
    assert not intake.skipped


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    parts = [
        record(b"software: x", kind="warcinfo"),
        record(b"GET / HTTP/1.1", kind="request"),
        record(b"", kind="revisit"),
        record(b"", kind="metadata"),
        record(http(b"gone", status=404)),
        record(http(b"moved", status=301)),
        record(http(b"\x89PNG", kind="image/png")),
        record(http(b"%PDF", kind="application/pdf")),
        record(http(b"<html></html>")),
        record(http(b"x" * 12_500_000)),
        record(http(page(1))),
    ]
    found, intake = read(tmp_path / "x.warc.gz", gz(parts))
    assert len(found) == 1
    kinds = ("warcinfo", "request", "revisit", "metadata")
    assert intake.skipped == {f"{kind} record": 1 for kind in kinds} | {
        "status 404": 1,
        "status 301": 1,
        "content type image": 1,
        "content type application": 1,
        "no main text": 1,
        "record larger than 12 MB": 1,
    }
    assert not intake.quarantined


def test_arc_files(tmp_path: Path) -> None:
    body = http(page(1))
    info = b"1 0 Archive\nURL IP-address Archive-date Content-type Archive-length\n"
    head = f"filedesc://x.arc 0.0.0.0 20080102030405 text/plain {len(info)}\n".encode() + info
    one = f"http://example.org/a 10.1.2.3 20080102030405 text/html {len(body)}\n".encode() + body
    two = f"http://example.org/b 10.1.2.3 20080102030406 text/html 200 - - 0 x.arc {len(body)}\n".encode() + body
    parts = [head + b"\n", one + b"\n", two + b"\n"]
    for name, data in (("x.arc", b"".join(parts)), ("x.arc.gz", gz(parts))):
        found, intake = read(tmp_path / name, data)
        assert [document.meta["url"] for document in found] == ["http://example.org/a", "http://example.org/b"]
        assert found[0].meta["crawled"] == "2008-01-02T03:04:05Z"
        assert not intake.quarantined


def test_encodings_of_responses(tmp_path: Path) -> None:
    raw = page(1)
    chunked = b"".join(
        b"%x;extension\r\n" % len(raw[at : at + 100]) + raw[at : at + 100] + b"\r\n" for at in range(0, len(raw), 100)
    )
    parts = [
        record(http(gzip.compress(raw), more="Content-Encoding: gzip\r\n")),
        record(http(zlib.compress(raw), more="Content-Encoding: deflate\r\n")),
        record(http(chunked + b"0\r\n\r\n", more="Transfer-Encoding: chunked\r\n")),
        record(http(raw, more="Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n")),
        record(
            http(page(1).decode().replace("Page", "Größe").encode("cp1252"), kind="text/html; charset=windows-1252")
        ),
    ]
    found, intake = read(tmp_path / "x.warc.gz", gz(parts))
    assert len(found) == 5 and not intake.quarantined
    assert len({document.text for document in found[:4]}) == 1 and "Größe" in found[4].text


def damaged(name: str) -> tuple[bytes, int, int]:
    """(file, documents that can still be read, byte of the damage)."""
    parts = three()
    packs = list(map(gzip.compress, parts))
    one, two = len(packs[0]), len(packs[0]) + len(packs[1])
    flipped = bytearray(packs[1])
    flipped[len(flipped) // 2] ^= 0xFF
    middle: dict[str, bytes] = {
        "flipped": bytes(flipped),
        "garbage between": b"garbage" * 100,
        "another member": gzip.compress(b"no record"),
    }
    wrong: dict[str, bytes] = {
        "no length": parts[1].replace(b"Content-Length", b"Content-Size"),
        "wrong length": parts[1].replace(b"Content-Length: ", b"Content-Length: -"),
        "no colon": parts[1].replace(b"WARC-Date: 2024-01-02T03:04:05Z", b"WARC-Date"),
        "long header": parts[1].replace(b"WARC-Date:", b"X: " + b"y" * 99_999),
        "wrong digest": parts[1].replace(b"WARC-Date", b"WARC-Block-Digest: sha1:AAAA\r\nWARC-Date"),
        "no response": record(b"hello", name="1"),
        "unknown packing": record(http(b"x", more="Content-Encoding: rot13\r\n")),
        "broken response": record(http(b"\x1f\x8b\x08x", more="Content-Encoding: gzip\r\n")),
    }
    if name == "cut":
        return b"".join(packs)[:-30], 2, two
    return packs[0] + (middle.get(name) or gzip.compress(wrong[name])) + packs[2], 2, one


NAMES = ["cut", "flipped", "garbage between", "another member", "no length", "wrong length", "no colon", "long header",
         "wrong digest", "no response", "unknown packing", "broken response"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_damage_in_packed_files(name: str, tmp_path: Path) -> None:
    data, left, byte = damaged(name)
    found, intake = read(tmp_path / "x.warc.gz", data)
    assert len(found) == left
    assert sum(intake.quarantined.values()) == 1
    assert intake.examples[0].where == f"{tmp_path / 'x.warc.gz'}, byte {byte}"
    assert len(intake.examples[0].message.splitlines()) <= 5
    with pytest.raises(DataError):
        read(tmp_path / "x.warc.gz", data, on_error="error")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda parts: b"".join(parts)[:-300], 2),
        (lambda parts: parts[0] + b"garbage\r\n" * 10 + parts[1] + parts[2], 3),
        (lambda parts: parts[0] + parts[1].replace(b"Content-Length: ", b"Content-Length: 9") + parts[2], 2),
        (lambda parts: parts[0] + re.sub(rb"Content-Length: \d+", b"Content-Length: 300", parts[1]) + parts[2], 2),
    ],
)
def test_damage_in_plain_files(change, left: int, tmp_path: Path) -> None:
    found, intake = read(tmp_path / "x.warc", change(three()))
    assert len(found) == left
    assert intake.quarantined.total() == 1


def test_damage_in_zstandard(tmp_path: Path) -> None:
    packs = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in three()]
    flipped = bytearray(packs[1])
    flipped[-3] ^= 0xFF
    found, intake = read(tmp_path / "x.warc.zst", packs[0] + bytes(flipped) + packs[2])
    assert (len(found), intake.quarantined.total()) == (2, 1)
    found, intake = read(tmp_path / "x.warc.zst", b"".join(packs)[:-10])
    assert (len(found), intake.quarantined.total()) == (2, 1)


def test_empty_files(tmp_path: Path) -> None:
    for data in (b"", b"\r\n\r\n", gzip.compress(b"")):
        (tmp_path / "x.warc.gz").write_bytes(data)
        intake = Intake()
        assert list(warc.documents(InputFile(tmp_path / "x.warc.gz", "x"), intake)) == []
        assert intake.skipped == {"file without records": 1}


def bomb(size: int) -> bytes:
    """A record of zeros, packed a thousand to one."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {URL}\r\nContent-Length: {size}\r\n\r\n".encode()
    parts = [packer.compress(head + http(b""))]
    parts += [packer.compress(b"\0" * 1_000_000) for _ in range(size // 1_000_000)]
    return b"".join([*parts, packer.compress(b"\r\n\r\n"), packer.flush()])


def test_bombs(tmp_path: Path) -> None:
    last = three()[2]
    inner = gzip.compress(b"\0" * 100_000_000, 9)
    plain_zstd = zstandard.ZstdCompressor().compress(b"\0" * 300_000_000)
    cases = {
        "records.warc.gz": (bomb(300_000_000) + gzip.compress(last), 1),
        "response.warc.gz": (gz([record(http(inner, more="Content-Encoding: gzip\r\n")), last]), 1),
        "nothing.warc.gz": (gzip.compress(b"\0" * 100_000_000) + gzip.compress(last), 1),
        "lines.warc.gz": (gzip.compress(b"\r\n" * 20_000_000) + gzip.compress(last), 1),
        "zstd.warc.zst": (plain_zstd + zstandard.ZstdCompressor().compress(last), 1),
    }
    for name, (data, left) in cases.items():
        (tmp_path / name).write_bytes(data)
        intake = Intake("quarantine")
        tracemalloc.start()
        began = time.process_time()
        found = list(read_documents(Source(path=str(tmp_path / name)), intake))
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found) == left, name
        assert seconds < 10 and peak < 150_000_000, (name, seconds, peak)


def test_limits_of_unpacking() -> None:
    with pytest.raises(Damaged, match="too many times"):
        unpacked(b"", "gzip,gzip,gzip", 1000)
    with pytest.raises(Damaged, match="larger than"):
        unpacked(gzip.compress(b"x" * 2_000_000), "gzip", 1_000_000)
    assert len(unpacked(gzip.compress(b"x" * 1_000_000), "gzip", 1_000_000)) == 1_000_000


def test_what_is_written_is_read(tmp_path: Path) -> None:
    block = http(page(1))
    packed = packed_record("response", {"WARC-Target-URI": URL, "X-Evil": "a\r\nb"}, block, name="n")
    (tmp_path / "x.warc.gz").write_bytes(packed * 2)
    one, two = records(tmp_path / "x.warc.gz", Intake())
    assert one.block == two.block == block and (one.offset, two.offset) == (0, len(packed))
    assert one.headers["x-evil"] == "a b"
    assert message(one.block).body == page(1)
    assert one.headers["warc-block-digest"].startswith("sha256:") and hashlib.sha256(block).digest_size == 32


def test_memory_does_not_grow(tmp_path: Path) -> None:
    pack = gzip.compress(record(b"word " * 40_000, kind="conversion"))
    peaks = []
    for count in (20, 160):
        (tmp_path / "x.wet.gz").write_bytes(pack * count)
        tracemalloc.start()
        assert sum(1 for _ in warc.documents(InputFile(tmp_path / "x.wet.gz", "x"), Intake())) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz", "x.warc.zst"])
def test_fuzz(name: str, tmp_path: Path) -> None:
    """Whatever bytes there are: documents, counts, or our own error; and an end."""
    draw = random.Random(name)
    whole = PACKINGS[name](three())
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            at = draw.randrange(len(data))
            choice = draw.random()
            if choice < 0.4:
                data[at] = draw.randrange(256)
            elif choice < 0.6:
                del data[at : at + draw.randrange(1, 50)]
            elif choice < 0.8:
                data[at:at] = draw.randbytes(draw.randrange(1, 20))
            else:
                data[at:at] = data[: draw.randrange(1, 200)]
        found = _kinds(tmp_path / name, bytes(data))
        assert found <= 9


def _kinds(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return sum(1 for one in records(path, Intake("quarantine")) if len(one.block) <= BLOCK_BYTES)


SHARED = Path(os.environ.get("TRIVIUM_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "warc_samples"


@pytest.mark.skipif(not SHARED.exists(), reason="the sample is not here")
def test_the_sample_of_warcio() -> None:
    intake = Intake()
    (found,) = read_documents(Source(path=str(SHARED / "example.warc.gz")), intake)
    assert found.meta["title"] == "Example Domain" and found.meta["url"] == "http://example.com/"
    assert found.id == "urn:uuid:a9c51e3e-0221-11e7-bf66-0242ac120005"
    assert intake.skipped == {"warcinfo record": 2, "request record": 2, "revisit record": 1}
