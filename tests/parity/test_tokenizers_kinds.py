"""Every kind of vocabulary that is trained here reads the same in transformers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.tokenizers.kinds import train_kind
from trivium.tokenizers.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Größe naïve 東京, said Alice.\n" * 10,
    "a fox  and\ta dog\n" * 10,
]
KINDS = {
    "wordpiece": {"vocab_size": 120},
    "wordpiece, cased": {"vocab_size": 120, "lowercase": False},
    "unigram": {"vocab_size": 360},
    "unigram, text as it is": {"vocab_size": 360, "normalise": "none", "prefix_space": False},
    "char-bpe": {"vocab_size": 360},
    "char-bpe, NFKC": {"vocab_size": 360, "normalise": "nfkc", "lowercase": True},
    "word": {"vocab_size": 80},
    "char": {"normalise": "nfc"},
    "byte": {"normalise": "nfkc"},
}
SAMPLES = [*TEXTS, "", " ", "  a  b ", "ÿ\x00😀 e\u0301 ﬁ ①", "<0x41>", "x" * 300, "▁a", "A\r\nB"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    found = {}
    for name, options in KINDS.items():
        folder = tmp_path_factory.mktemp("kind")
        train_kind(name.partition(",")[0], TEXTS, **options).save(folder)
        found[name] = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    return found


def same(ours, theirs, text: str) -> None:
    assert ours.encode(text, parse_special=True) == theirs(text, add_special_tokens=False).input_ids
    ids = ours.encode(text)
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_samples(pairs, kind):
    ours, theirs = pairs[kind]
    for text in SAMPLES:
        same(ours, theirs, text)
    assert (ours.bos_id, ours.eos_id) in (
        (theirs.bos_token_id, theirs.eos_token_id),
        (theirs.cls_token_id, theirs.sep_token_id),
    )
    assert ours.pad_id == theirs.pad_token_id
    assert ours.vocab_size == len(theirs)
    framed = ours.encode_document("the fox")
    assert theirs("the fox").input_ids == (framed if "wordpiece" in kind else framed[:-1])


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=50))
def test_any_text(pairs, text):
    for ours, theirs in pairs.values():
        same(ours, theirs, text)


def test_wordpiece_is_a_vocabulary_for_bert(pairs):
    _, theirs = pairs["wordpiece"]
    assert theirs.mask_token == "[MASK]"
    assert theirs("a fox", "a dog").input_ids.count(theirs.sep_token_id) == 2
