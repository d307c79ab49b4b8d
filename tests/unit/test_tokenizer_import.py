"""SentencePiece and tiktoken files that are damaged, hostile or of another kind are refused in a few lines."""

from __future__ import annotations

import base64
import random
import struct

import pytest

from trivium.cli.main import run
from trivium.errors import TokenizerError
from trivium.tokenizers.protobuf import fields
from trivium.tokenizers.ranks import import_tiktoken
from trivium.tokenizers.sentencepiece import import_sentencepiece
from trivium.tokenizers.tokenizer import Tokenizer


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def value(number: int, content: int) -> bytes:
    return varint(number << 3) + varint(content)


def piece(text: str, score: float = -1.0, kind: int = 1) -> bytes:
    return message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + value(3, kind))


BASE = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("\u2581") + piece("a", -2)
BPE = message(2, value(3, 2))


def load(tmp_path, data: bytes) -> Tokenizer:
    path = tmp_path / "x.model"
    path.write_bytes(data)
    return import_sentencepiece(path)


@pytest.mark.parametrize("kind", [b"", BPE])
def test_a_small_model(tmp_path, kind):
    tokenizer = load(tmp_path, BASE + piece("aa", -1.5) + kind)
    assert tokenizer.encode("aa a") == [3, 5, 3, 4]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",  # a pickle
        b"\xff" * 40,
        BASE[:-3],
        message(1, b"\x0a\xff"),
        BASE + piece("a"),
        BASE + piece(""),
        BASE + piece("b", float("nan")),
        BASE + piece("b", kind=9),
        BASE + message(1, message(1, b"\xff\xfe")),
        BASE + value(1, 7),
        BASE + message(2, value(3, 9)),
        BASE + message(2, value(3, 3)),  # whole words
        BASE + message(2, value(24, 1)),  # spaces at the end
        BASE + message(2, value(35, 1)),  # bytes that are not there
        piece("a") + piece("b"),  # nothing unknown
        BASE + message(3, message(2, b"abc")),
        BASE + message(3, message(2, struct.pack("<I", 1024) + b"\xff" * 1024)),
        BASE + message(3, message(2, struct.pack("<I", 1 << 31) + b"\0" * 1024)),
        BASE + message(3, message(2, struct.pack("<I", 1024) + struct.pack("<256I", *[1 << 31 | 5] * 256) + b"x\0")),
    ],
    ids=range(20),
)
def test_other_files_are_refused(tmp_path, data):
    with pytest.raises(TokenizerError) as caught:
        load(tmp_path, data)
    assert len(str(caught.value).splitlines()) <= 5


def test_random_damage_never_ends_in_anything_but_a_message(tmp_path):
    draw = random.Random(0)
    whole = BASE + message(3, message(2, struct.pack("<I", 1024) + bytes(1024) + b"x\0") + value(3, 1)) + BPE
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        data = data[: draw.randrange(len(data))] if draw.random() < 0.3 else data
        try:
            load(tmp_path, bytes(data)).encode("a <s> é text")
        except TokenizerError as error:
            assert len(str(error).splitlines()) <= 5


def test_the_wire_format_says_where():
    with pytest.raises(ValueError, match="byte"):
        list(fields(b"\x0a\x05ab"))
    assert list(fields(b"\x08\x96\x01")) == [(1, 0, 150)]


def ranks(more: str = "") -> str:
    return "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)) + more


def token(text: bytes, rank: int) -> str:
    return f"{base64.b64encode(text).decode()} {rank}\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "256"),
        (ranks("abc\n"), ":257"),
        (ranks("!!!! 300\n"), ":257"),
        (ranks(token(b"ab", 256) + token(b"ab", 257)), ":258"),
        (ranks(token(b"ab", 3)), "same rank"),
        (ranks(token(b"ab", -3)), ":257"),
        (ranks(token(b"ab", 1 << 40)), ":257"),
        (ranks(token(b"a" * 5000, 256)), ":257"),
        (ranks().replace("AA== 0\n", ""), "1 of the 256"),
        (ranks(), "check the name of the encoding"),
        (ranks(token(b"ab", 50256)), "same id"),
    ],
)
def test_other_ranks_are_refused(tmp_path, text, match):
    (tmp_path / "x.tiktoken").write_text(text)
    with pytest.raises(TokenizerError, match=match) as caught:
        import_tiktoken(tmp_path / "x.tiktoken", encoding="gpt2")
    assert len(str(caught.value).splitlines()) <= 5


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tiktoken").write_text(ranks(token(b"ab", 256)))
    command = ["tokenizer", "import", "x.tiktoken", "--encoding", "llama3", "--special", "<|end|>=260"]
    assert run([*command, "--output", "t"]) == 0
    assert Tokenizer.load("t").encode_document("abc")[0] == 256
    assert Tokenizer.load("t").eos_id == 260
    (tmp_path / "m.model").write_bytes(BASE)
    assert run(["tokenizer", "import", "m.model", "--output", "s"]) == 0
    assert Tokenizer.load("s").encode("a") == [3, 4]
    for wrong in (["x.tiktoken"], ["m.model", "--encoding", "gpt2"], ["x.bin"], ["x.tiktoken", "--encoding", "gpt9"]):
        assert run(["tokenizer", "import", *wrong, "--output", "w"]) == 2
    assert not (tmp_path / "w").exists()
