"""Token shards are the same for any number of threads, encoder and batch, and stop cleanly when they are not wanted."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from trivium.data import tokenise
from trivium.data.documents import Document
from trivium.errors import DataError
from trivium.tokenizers.kinds import train_kind

SENTENCE = "The fox, 東京 and the dog. "
DOCUMENTS = [Document(id=f"{n}", text=SENTENCE * (n % 9) + f"{n}", source="x") for n in range(300)]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.tokens, b.tokens)
        and a.tokens.dtype == b.tokens.dtype
        and np.array_equal(a.lengths, b.lengths)
        and np.array_equal(a.sizes, b.sizes)
        and list(a.ids) == list(b.ids)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_any_number_of_threads(kind, monkeypatch):
    monkeypatch.setattr(tokenise, "_BATCH_BYTES", 500)
    tokenizer = train_kind(kind, [SENTENCE * 20], vocab_size=300)
    wanted = list(tokenise.tokenise(DOCUMENTS, tokenizer, shard_bytes=5000, workers=1))
    assert len(wanted) > 5
    assert [name for shard in wanted for name in shard.ids] == [document.id for document in DOCUMENTS]
    ids = [token for shard in wanted for token in shard.tokens.tolist()]
    assert ids == [token for document in DOCUMENTS for token in tokenizer.encode_document(document.text)]
    assert all(shard.sizes.sum() >= 5000 for shard in wanted[:-1])
    for workers in (2, 4, 7):
        assert same(list(tokenise.tokenise(DOCUMENTS, tokenizer, shard_bytes=5000, workers=workers)), wanted)
    tokenizer.__dict__["fast"] = None
    assert same(list(tokenise.tokenise(DOCUMENTS, tokenizer, shard_bytes=5000, workers=2)), wanted)
    monkeypatch.setattr(tokenise, "_BATCH_BYTES", 100_000)
    assert same(list(tokenise.tokenise(DOCUMENTS, tokenizer, shard_bytes=5000, workers=2)), wanted)


def test_no_thread_stays_behind_and_errors_arrive():
    tokenizer = train_kind("bpe", [SENTENCE * 20], vocab_size=300)
    before = threading.active_count()
    some = tokenise.tokenise(DOCUMENTS * 50, tokenizer, shard_bytes=2000, workers=3)
    next(some)
    some.close()
    assert threading.active_count() == before

    def broken():
        yield from DOCUMENTS
        raise DataError("a broken row")

    with pytest.raises(DataError, match="broken row"):
        list(tokenise.tokenise(broken(), tokenizer, workers=2))
    assert threading.active_count() == before


def test_not_everything_is_read_ahead(monkeypatch):
    monkeypatch.setattr(tokenise, "_BATCH_BYTES", 100)
    tokenizer = train_kind("bpe", [SENTENCE * 20], vocab_size=300)
    read = 0

    def counted():
        nonlocal read
        for document in DOCUMENTS * 10:
            read += 1
            yield document

    shards = tokenise.tokenise(counted(), tokenizer, shard_bytes=1000, workers=2)
    next(shards)
    shards.close()
    assert read < 60
    assert list(tokenise.tokenise([], tokenizer)) == []
