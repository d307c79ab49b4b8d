"""Imported SentencePiece models give the ids that SentencePiece gives."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from trivium.tokenizers.sentencepiece import import_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

WORDS = ["the", "of", "and", "Alice", "queen", "rabbit", "little", "said", "that", "was", "time", "12", "3.14", "isn't"]
KINDS = {
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "unigram without bytes": {"model_type": "unigram"},
    "unigram, text as it is": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "unigram with symbols": {
        "model_type": "unigram",
        "user_defined_symbols": ["<user>", "@@", "##x"],
        "pad_id": 3,
    },
    "unigram, case folded": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe like Llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "bpe": {"model_type": "bpe"},
    "bpe with symbols": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["<user>", "@@"],
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "bpe with symbols and a space in front": {"model_type": "bpe", "user_defined_symbols": ["<user>", "@@"]},
    "characters": {"model_type": "char", "vocab_size": 90},
}
ODD = [
    *"abc ABC  \n\t\r.,'\"<>/0x41s",
    *["<s>", "</s>", "<unk>", "<pad>", "<0x41>", "\u2581", "  ", "<user>", "@@", "##x", "é", "e\u0301", "ﬁ", "①"],
    *["東京", "привет", "😀", "👍🏽", "👩‍👩‍👧", "\u200b", "\ufeff", "\u3000", "ｱｶﾞ", "ß", "İ", "\x07", "각"],
    *["\u1100\u1161", "\U0001f1e9\U0001f1ea", "Alice", "the ", "\u00a0", "\u2028"],
]
FIXED = ["", " ", "   ", "\n", " a", "a ", "  a  b  ", "▁", "▁a", "<0x41>", "<s>", "a" * 500, " " * 100]


def corpus() -> list[str]:
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=12)).capitalize() + "." for _ in range(600)]
    return [*lines, *["Größe naïve 東京 привет 😀 é ﬁ ① 1234567", "def f(x):\n    return  x"] * 20]


def trained(place: Path, settings: dict) -> Path:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **{"vocab_size": 420, **settings},
    )
    path = place / "m.model"
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_ids(tmp_path, kind):
    path = trained(tmp_path, KINDS[kind])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = import_sentencepiece(path)
    draw = random.Random(1)
    text = " ".join(corpus())
    texts = [text[at : at + draw.randrange(200)] for at in (draw.randrange(len(text)) for _ in range(500))]
    texts += ["".join(draw.choices(ODD, k=draw.randrange(1, 25))) for _ in range(1500)] + FIXED
    if "in front" in kind:
        texts = [
            text for text in texts if text.strip(" \u2581\u3000\u00a0\t\r\n\u200b\ufeff\u2028") not in ("@@", "<user>")
        ]
    if "folded" in kind:
        texts = [text for text in texts if "İ" not in text]  # becomes i and a dot, an accent behind a letter
    wrong = [text for text in texts if theirs.encode(text) != ours.encode(text)]
    assert not wrong, (wrong[0], theirs.encode(wrong[0], out_type=str), [ours.token(n) for n in ours.encode(wrong[0])])
    assert ours.vocab_size == theirs.vocab_size()
    assert (ours.eos_id, ours.bos_id) == (theirs.eos_id(), theirs.bos_id())
    if KINDS[kind].get("byte_fallback"):
        assert all(ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)) for text in texts[:500])


@pytest.mark.parametrize("kind", ["unigram", "bpe like Llama", "bpe with symbols"])
def test_the_folder_reads_the_same_in_transformers(tmp_path, kind):
    ours = import_sentencepiece(trained(tmp_path, KINDS[kind]))
    ours.save(tmp_path / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    for text in [*corpus()[-3:], *FIXED, "😀 @@ <user> e\u0301"]:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, parse_special=True), text
        assert theirs(text).input_ids == ours.encode(text, bos=True, parse_special=True)
