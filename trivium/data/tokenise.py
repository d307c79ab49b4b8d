"""Documents to shards of tokens, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivium.data.documents import Document
from trivium.data.table import Ints, narrowest

if TYPE_CHECKING:
    from trivium.tokenizers.tokenizer import Tokenizer

SHARD_BYTES = 32 << 20
"""Text in one shard: about half a minute of work, which is what a kill can cost."""
_BATCH_BYTES = 1 << 20


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


def tokenise(
    documents: Iterable[Document], tokenizer: Tokenizer, *, shard_bytes: int = SHARD_BYTES
) -> Iterator[TokenShard]:
    """Shards of at least `shard_bytes` of text; where one ends depends on the documents only."""
    dtype = narrowest(tokenizer.vocab_size)
    encoded: list[NDArray[np.unsignedinteger]] = []
    sizes: list[int] = []
    ids: list[str] = []
    texts: list[str] = []
    waiting = size = 0

    def encode() -> None:
        encoded.extend(np.array(found, dtype=dtype) for found in _encode(tokenizer, texts))
        texts.clear()

    for document in documents:
        length = len(document.text.encode())
        texts.append(document.text)
        sizes.append(length)
        ids.append(document.id)
        waiting, size = waiting + length, size + length
        if waiting >= _BATCH_BYTES:
            encode()
            waiting = 0
        if size >= shard_bytes:
            encode()
            yield _shard(encoded, sizes, ids, dtype)
            encoded, sizes, ids, waiting, size = [], [], [], 0, 0
    encode()
    if ids:
        yield _shard(encoded, sizes, ids, dtype)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterable[Sequence[int]]:
    batch = getattr(tokenizer, "encode_documents", None)
    return batch(texts) if batch else map(tokenizer.encode_document, texts)


def _shard(
    encoded: list[NDArray[np.unsignedinteger]], sizes: list[int], ids: list[str], dtype: np.dtype[np.unsignedinteger]
) -> TokenShard:
    return TokenShard(
        tokens=np.concatenate(encoded) if encoded else np.zeros(0, dtype=dtype),
        lengths=np.array([len(found) for found in encoded], dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        ids=ids,
    )
