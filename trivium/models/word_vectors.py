"""Start the embeddings of a new model from word vectors.

A token that spells a word of the file gets that word's vector; all other rows keep their random start. The vectors
are moved so that their mean is zero (most vectors share a large common part, which says nothing about words: Mu and
Viswanath, 2018) and scaled, all by one number, to the standard deviation of the random rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivium.errors import ModelError

Floats = NDArray[np.floating[Any]]


def matches(tokens: Sequence[str | None], index: Mapping[str, int]) -> list[tuple[int, int]]:
    """(token, row of the vectors) for each token that spells a word, as it is or else in lower case.

    tokens: the word each token spells, None for what is no word.
    index:  word -> its row.
    """
    found = []
    for token, word in enumerate(tokens):
        row = None if word is None else index.get(word, index.get(word.lower()))
        if row is not None:
            found.append((token, row))
    return found


def fitted(vectors: Floats, width: int, *, seed: int) -> Floats:
    """[n, width] from [n, D]: as they are, or by a random matrix with orthonormal rows or columns.

    To a larger width that keeps all angles and distances exactly, to a smaller one about.
    """
    size = vectors.shape[1]
    if size == width:
        return vectors
    random = np.random.default_rng([seed, size, width])
    columns, _ = np.linalg.qr(random.standard_normal((max(size, width), min(size, width))))
    return np.asarray(vectors @ (columns.T if size < width else columns))


def set_embeddings(
    weight: Tensor,
    tokens: Sequence[str | None],
    index: Mapping[str, int],
    matrix: Floats,
    *,
    scale: float,
    seed: int,
    width: Literal["project", "exact"] = "project",
    where: str = "model.word_vectors",
) -> str:
    """Set rows of the embedding `weight` [V, H] in place; says in one sentence how many.

    tokens, index: see `matches`.  matrix: [words, D].  scale: standard deviation that the rows get.
    seed:  of the projection.  width: `exact` refuses vectors of another size than H.
    """
    if width == "exact" and matrix.shape[1] != weight.shape[1]:
        raise ModelError(
            f"the word vectors have {matrix.shape[1]} numbers, the embeddings {weight.shape[1]}",
            where=where,
            fix=f"train vectors with --size {weight.shape[1]}, or set model.word_vectors_width=project",
        )
    found = matches(tokens, index)
    if len({row for _, row in found}) < 2:
        raise ModelError(
            "no two tokens of the tokenizer are words of the word vectors",
            where=where,
            value=", ".join(list(index)[:5]),
            fix="train the vectors on text of the same language (trivium tokenizer vectors)",
        )
    numbers, rows = (np.array(part) for part in zip(*found, strict=True))
    chosen = matrix[rows].astype(np.float64)
    chosen = fitted(chosen - chosen.mean(axis=0), weight.shape[1], seed=seed)
    spread = float(np.sqrt((chosen**2).mean()))
    if not spread:
        raise ModelError("all word vectors of the tokens are the same", where=where, fix="train them for longer")
    with torch.no_grad():
        weight[torch.from_numpy(numbers)] = torch.from_numpy(chosen * (scale / spread)).to(weight)
    how = (
        ""
        if matrix.shape[1] == weight.shape[1]
        else f" (projected from {matrix.shape[1]} numbers to {weight.shape[1]})"
    )
    return f"{len(found)} of {len(tokens)} embeddings start from word vectors{how}; the others are random"
