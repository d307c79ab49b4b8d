"""Cleaning, and signatures: duplicates are found like datasketch finds them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from trivium.data.cleaning import clean
from trivium.data.dedup import PLACES, Signer, clusters, similarity

WORDS = [f"word{n}" for n in range(400)]


def text(seed: int, count: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def altered(original: str, share: float, seed: int = 0) -> str:
    """The same text with some of its words replaced."""
    draw = random.Random(seed)
    return " ".join(f"new{draw.random()}" if draw.random() < share else word for word in original.split())


def jaccard(one: str, other: str) -> float:
    signer = Signer()
    a, b = set(signer.shingles(one).tolist()), set(signer.shingles(other).tolist())
    return len(a & b) / len(a | b)


# Cleaning


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("a\r\nb\rc\u2028d\x0be", "a\nb\nc\nd\ne"),
        ("cafe\u0301", "café"),
        ("a\ufeffb\x00c\x1bd\x7fe\x9cf", "abcdef"),
        ("a  \nb\t\n\n\n\n\n\nc\n\n", "a\nb\n\n\nc"),
        ("\n\n  indented\n\tkept", "  indented\n\tkept"),
        ("a\xa0b", "a b"),
        ("日本語 😀 ünï", "日本語 😀 ünï"),
        ("", ""),
        (" \n\t\r\n", ""),
    ],
)
def test_cleaning(raw, wanted):
    assert clean(raw) == wanted
    assert clean(wanted) == wanted


@pytest.mark.parametrize(
    "worst",
    ["a" + "\u0301\u0316" * 500_000, " " * 10**6, "\n" * 3_000_000, "\r" * 1_000_000, "é" * 2_000_000, "a" * 5_000_000],
    ids=["marks", "spaces", "lines", "returns", "letters", "one word"],
)  # fmt: skip
def test_cleaning_and_signing_are_linear(worst):
    start = time.process_time()
    Signer().signature(clean(worst))
    assert time.process_time() - start < 3


# Signatures


def test_the_estimate_is_that_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    signer = Signer()
    ours, theirs = [], []
    for seed in range(30):
        one = text(seed)
        other = altered(one, 0.005 * (seed % 10), seed)
        true = jaccard(one, other)
        ours.append(float(similarity(signer.signature(one), signer.signature(other))) - true)
        sketches = []
        for each in (one, other):
            sketch = datasketch.MinHash(num_perm=PLACES)
            words = each.split()
            sketch.update_batch([" ".join(words[at : at + 5]).encode() for at in range(len(words) - 4)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    assert abs(np.mean(ours)) < 0.02
    assert np.std(ours) < 1.5 * np.std(theirs) + 0.005
    assert max(map(abs, ours)) < 0.17


def test_case_and_punctuation_do_not_count_but_words_do():
    signer = Signer()
    plain = signer.signature("One two three four five six seven eight nine")
    assert similarity(plain, signer.signature("one, TWO three: four five -- six seven eight (nine)!")) == 1
    assert similarity(plain, signer.signature("nine eight seven six five four three two one")) < 0.2


def test_signatures_are_the_same_on_every_machine():
    found = Signer().signature("The quick brown fox jumps over the lazy dog")
    assert found[:4].tolist() == [3783493335, 3372128385, 3866395723, 3866395723]
    assert Signer().signature("").shape == (PLACES,)


def test_near_duplicates_are_found_and_others_are_not():
    signer = Signer()
    texts, origin = [], []
    for seed in range(150):
        original = text(seed)
        for number, share in enumerate((0, 0.01, 0.3)):
            texts.append(altered(original, share, seed))
            origin.append((seed, number))
    found = clusters(
        np.stack([signer.signature(each) for each in texts]),
        [bytes([0]) * 8 + bytes(str(n), "ascii") for n in range(len(texts))],
    )
    near = [
        found[3 * seed + 1] == 3 * seed for seed in range(150) if jaccard(texts[3 * seed], texts[3 * seed + 1]) > 0.85
    ]
    assert len(near) > 100
    assert np.mean(near) > 0.95
    far = [n for n, (_, number) in enumerate(origin) if number == 2]
    assert all(found[n] == n for n in far)
    assert all(origin[n][0] == origin[found[n]][0] for n in range(len(texts)))


def test_equal_texts_are_one_cluster_whatever_their_signatures():
    signatures = np.random.default_rng(0).integers(0, 1 << 32, (4, PLACES), dtype=np.uint32)
    assert clusters(signatures, [b"a", b"b", b"a", b"b"]).tolist() == [0, 1, 0, 1]
    assert clusters(np.zeros((0, PLACES), dtype=np.uint32), []).tolist() == []


def test_the_planted_duplicates_of_real_articles_are_found(shared_articles):
    folder, texts = shared_articles
    ids = [line.split(" ", 1)[0] for line in texts]
    signer = Signer()
    signatures = np.stack([signer.signature(line.split(" ", 1)[1]) for line in texts])
    found = clusters(signatures, [bytes(str(n), "ascii") for n in range(len(texts))])
    pairs = {frozenset((ids[n], ids[first])) for n, first in enumerate(found.tolist()) if n != first}
    truth = {frozenset(line.split()) for line in (folder / "articles_1000.truth").read_text().splitlines()}
    assert pairs == truth


@pytest.fixture
def shared_articles():
    import gzip
    import os

    folder = Path(os.environ.get("TRIVIUM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "minhash_articles"
    if not folder.is_dir():
        pytest.skip("needs the shared data sets")
    return folder, gzip.decompress((folder / "articles_1000.train.gz").read_bytes()).decode().splitlines()
