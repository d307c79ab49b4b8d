"""Token sequences in flat vectors, in memory or memory-mapped: what a data set reads and a loader gathers from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivium.data.batch import IGNORE

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TokenTable:
    """Q sequences inside one or more flat token vectors ("shards").

    tokens:  one vector of unsigned integers a shard; may be memory-mapped.
    trained: for each shard which of its tokens are targets, or None where all are.
    weights: for each shard how much each of its tokens counts as a target; None: each counts 1.
    shard, start: [Q] where a sequence's first token lies.
    length:  [Q] number of the sequence's *inputs*.
    next_token: True: a sequence of n inputs is n + 1 tokens, and each input predicts the next token.
                False: a sequence is n tokens, and what is predicted is not said here (prompts, what a method makes its
                own examples of); `trained` then only says which tokens count as targets.
    """

    tokens: Sequence[NDArray[np.unsignedinteger]]
    trained: Sequence[NDArray[np.bool_] | None]
    shard: Ints
    start: Ints
    length: Ints
    next_token: bool = True
    weights: Sequence[NDArray[np.float32]] | None = None

    def span(self, sequence: int) -> tuple[int, int, int]:
        """(shard, first token, one past the last token) of a sequence, with the token that is only a target."""
        start = int(self.start[sequence])
        return int(self.shard[sequence]), start, start + int(self.length[sequence]) + self.next_token

    def ids(self, sequence: int) -> NDArray[np.int64]:
        """All tokens of a sequence."""
        shard, start, end = self.span(sequence)
        return self.tokens[shard][start:end].astype(np.int64)

    def flags(self, sequence: int) -> NDArray[np.bool_]:
        """For each token of a sequence whether it is a target."""
        shard, start, end = self.span(sequence)
        trained = self.trained[shard]
        flags = np.full(end - start, self.next_token) if trained is None else np.array(trained[start:end])
        if self.next_token:
            flags[:1] = False
        return flags

    def weights_of(self, sequence: int) -> list[float] | None:
        """How much each token of a sequence counts as a target; None: each target counts 1."""
        shard, start, end = self.span(sequence)
        return None if self.weights is None else self.weights[shard][start:end].tolist()

    def gather(self, sequences: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets) of several sequences, one after the other; IGNORE where nothing is trained."""
        lengths, shards, at = self._places(sequences)
        total = len(at)
        if len(sequences) and (shards == shards[0]).all():
            return self._gather_from(int(shards[0]), at)
        inputs, targets = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
        shard_of_token = np.repeat(shards, lengths)
        for shard in np.unique(shards).tolist():
            here = shard_of_token == shard
            inputs[here], targets[here] = self._gather_from(shard, at[here])
        return inputs, targets

    def gather_weights(self, sequences: Ints) -> NDArray[np.float32]:
        """Weight of the target of each input, in the order of `gather`; 0 where nothing is trained."""
        assert self.weights is not None
        lengths, shards, at = self._places(sequences)
        found = np.empty(len(at), dtype=np.float32)
        shard_of_token = np.repeat(shards, lengths)
        for shard in np.unique(shards).tolist():
            here = shard_of_token == shard
            found[here] = self.weights[shard][at[here] + 1]
        return found

    def _places(self, sequences: Ints) -> tuple[Ints, Ints, Ints]:
        """(length of each sequence, its shard, place of each input in its shard)."""
        lengths = self.length[sequences]
        at = np.arange(int(lengths.sum())) + np.repeat(self.start[sequences] - (np.cumsum(lengths) - lengths), lengths)
        return lengths, self.shard[sequences], at

    def _gather_from(self, shard: int, at: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets) at these places of one shard."""
        tokens, trained = self.tokens[shard], self.trained[shard]
        inputs = tokens[at].astype(np.int64)
        if not self.next_token:
            return inputs, np.full(len(at), IGNORE, dtype=np.int64)
        targets = tokens[at + 1].astype(np.int64)
        if trained is not None:
            targets[~trained[at + 1]] = IGNORE
        return inputs, targets

    def trained_counts(self) -> Ints:
        """[Q] how many targets each sequence has."""
        counts = self.length * self.next_token
        for shard, trained in enumerate(self.trained):
            if trained is None:
                continue
            total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(trained, dtype=np.int64)])
            here = np.flatnonzero(self.shard == shard)
            start = self.start[here] + self.next_token
            counts[here] = total[start + self.length[here]] - total[start]
        return counts


def narrowest(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Little-endian type that holds every token id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
