"""Documents to shards of tokens, in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivium.data.documents import Document
from trivium.data.table import Ints, narrowest
from trivium.threads import usable_cores

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

SHARD_BYTES = 32 << 20
"""Text in one shard: a few seconds of work, which is what a kill can cost."""
_BATCH_BYTES = 1 << 20
_AHEAD = 2
"""Batches that wait or are encoded, for each thread."""


@dataclass(frozen=True)
class TokenShard:
    """Tokenised documents.

    tokens:  all tokens, one document after the other, each with its BOS and EOS.
    lengths: [documents] tokens of each.
    sizes:   [documents] bytes of the text of each, in UTF-8.
    ids:     [documents] their names.
    """

    tokens: NDArray[np.unsignedinteger]
    lengths: Ints
    sizes: Ints
    ids: Sequence[str]


@dataclass
class _Batch:
    """Documents that one thread encodes; `ends` with the last ones of a shard."""

    texts: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    ends: bool = False


def tokenise(
    documents: Iterable[Document], tokenizer: Tokenizer, *, shard_bytes: int = SHARD_BYTES, workers: int | None = None
) -> Generator[TokenShard, None, None]:
    """Shards of at least `shard_bytes` of text; where one ends depends on the documents only.

    workers: threads that encode while this one reads; default: RAYON_NUM_THREADS, else all cores. Both encoders work
        outside of Python's lock. The shards are the same for any number.
    """
    workers = workers or _cores()
    getattr(tokenizer, "fast", None)  # made once, before there are several threads
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenise")
    waiting: deque[tuple[_Batch, Future[Iterable[Sequence[int]]]]] = deque()
    done: list[tuple[_Batch, list[NDArray[np.unsignedinteger]]]] = []
    dtype = narrowest(tokenizer.vocab_size)

    def finish(most: int) -> Iterator[TokenShard]:
        """The shards that are whole when at most so many batches still wait."""
        while len(waiting) > most:
            batch, encoded = waiting.popleft()
            done.append((batch, [np.asarray(ids, dtype=dtype) for ids in encoded.result()]))
            if batch.ends:
                yield _shard(done, dtype)
                done.clear()

    try:
        for batch in _batches(documents, shard_bytes):
            waiting.append((batch, pool.submit(_encode, tokenizer, batch.texts)))
            yield from finish(_AHEAD * workers)
        yield from finish(0)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(documents: Iterable[Document], shard_bytes: int) -> Iterator[_Batch]:
    batch, waiting, size = _Batch(), 0, 0
    for document in documents:
        length = len(document.text.encode())
        batch.texts.append(document.text)
        batch.sizes.append(length)
        batch.ids.append(document.id)
        waiting, size = waiting + length, size + length
        if waiting >= _BATCH_BYTES or size >= shard_bytes:
            batch.ends = size >= shard_bytes
            yield batch
            batch, waiting, size = _Batch(), 0, 0 if batch.ends else size
    if batch.ids or size:
        batch.ends = True
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterable[Sequence[int]]:
    arrays = getattr(tokenizer, "document_arrays", None)
    return arrays(texts) if arrays else list(map(tokenizer.encode_document, texts))


def _shard(
    done: Sequence[tuple[_Batch, Sequence[NDArray[np.unsignedinteger]]]], dtype: np.dtype[np.unsignedinteger]
) -> TokenShard:
    encoded = [ids for _, found in done for ids in found]
    return TokenShard(
        tokens=np.concatenate(encoded) if encoded else np.zeros(0, dtype=dtype),
        lengths=np.array([len(found) for found in encoded], dtype=np.int64),
        sizes=np.array([size for batch, _ in done for size in batch.sizes], dtype=np.int64),
        ids=[name for batch, _ in done for name in batch.ids],
    )


def _cores() -> int:
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else usable_cores()
