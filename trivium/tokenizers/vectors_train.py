"""Train word vectors on a stream of texts.

    from trivium.tokenizers.vectors_train import train_vectors
    vectors = train_vectors(texts, architecture="skipgram", size=100)
    vectors.nearest("king")

Each epoch reads the corpus in a new order of pieces of 8192 words, and each update takes words from several places at
once. On collections of books that is better than reading them one after the other, where the last one is remembered
best. The same texts, settings and number of threads give the same vectors, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivium.errors import TokenizerError, TrainingDiverged
from trivium.threads import use_threads
from trivium.tokenizers.vectors import WordVectors
from trivium.tokenizers.vectors_step import STEPS, Step, loss, predictions, shared
from trivium.tokenizers.vectors_text import Corpus, Ints, Vocabulary

Architecture = Literal["skipgram", "cbow"]
Report = Callable[[int, int | None, float | None], None]
"""Called with words done, words in all (None while the texts are read) and the loss of one prediction."""

LEARNING_RATES = {"skipgram": 0.025, "cbow": 0.05}
CENTRES = 16
"""Centres of one stream in one update."""
STREAMS = 32
"""Most streams in one update."""
FORCE, LIMIT = 6.0, 1.0
"""Updates of one vector in one step, times the learning rate. They are computed from the same vectors and added up, so
too many shoot over the target. Above FORCE for the most frequent word fewer streams are read; words above LIMIT get a
lower rate of their own."""
_MEASURE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How vectors are trained.

    architecture: `skipgram` predicts each centre word from each word around it, `cbow` from their mean.
    size:      numbers in a vector.
    window:    most words on each side; for each centre the real number is drawn from 1 to `window`.
    negatives: noise words for each prediction, drawn in proportion to count ** `noise_power`.
    min_count: rarer words get no vector; they are left out of the text, or all become `<unk>` if `unknown` is set.
    max_words: most words that get a vector.
    subsample: words that make up more than this share of the text are left out at random (0: none).
    lr:        learning rate at the beginning, default 0.025 for skip-gram and 0.05 for CBOW; falls linearly to min_lr.
    threads:   CPU threads; default: as torch is set.
    """

    architecture: Architecture = "skipgram"
    size: int = 100
    window: int = 5
    negatives: int = 5
    noise_power: float = 0.75
    min_count: int = 5
    max_words: int | None = None
    unknown: bool = False
    lowercase: bool = False
    subsample: float = 1e-3
    epochs: int = 5
    lr: float | None = None
    min_lr: float = 1e-4
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.architecture not in STEPS:
            raise _refused("architecture", self.architecture, f"use one of {', '.join(STEPS)}")
        least = {"size": 1, "window": 1, "negatives": 1, "min_count": 1, "epochs": 1, "max_words": 2, "threads": 1}
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise _refused(name, value, f"use {limit} or more")
        if not 0 < self.peak < math.inf or not 0 <= self.min_lr <= self.peak:
            raise _refused("lr", f"{self.peak} falling to {self.min_lr}", "use positive rates, lr not below min_lr")
        if not 0 <= self.subsample < 1 or not 0 <= self.noise_power < math.inf:
            raise _refused("subsample", self.subsample, "use a share of the text like 1e-3, or 0 for no subsampling")
        if not 0 <= self.seed < 1 << 63:
            raise _refused("seed", self.seed, "use a whole number from 0")

    @property
    def peak(self) -> float:
        """The learning rate at the beginning."""
        return LEARNING_RATES[self.architecture] if self.lr is None else self.lr


def _refused(name: str, value: object, fix: str) -> TokenizerError:
    return TokenizerError(f"word vectors cannot be trained with this {name}", where=name, value=value, fix=fix)


def train_vectors(
    texts: Iterable[str],
    *,
    settings: Settings | None = None,
    progress: Report | None = None,
    scratch: Path | None = None,
    **changes: object,
) -> WordVectors:
    """Vectors of the words of `texts`, a stream that is read once; words of different texts are no neighbours.

    changes: fields of `Settings`, instead of `settings`.
    progress: told how far the work is, about every hundred updates.
    scratch: folder for 4 bytes a word while it runs; default: the system's folder for temporary files.

    TokenizerError if the texts hold fewer than two different frequent words; TrainingDiverged if the rate is too high.
    """
    settings = settings or Settings(**changes)  # type: ignore[arg-type]
    with Corpus(scratch) as corpus, _threads(settings.threads):
        report = progress or (lambda done, total, loss: None)
        corpus.read(texts, lowercase=settings.lowercase, progress=lambda done: report(done, None, None))
        vocabulary = corpus.vocabulary(
            min_count=settings.min_count, max_words=settings.max_words, unknown=settings.unknown
        )
        if len(vocabulary.words) < 2:
            raise TokenizerError(
                "the texts hold too few words for vectors",
                value=f"{corpus.distinct} different words in {corpus.total}, "
                f"{len(vocabulary.words)} of them at least {settings.min_count} times",
                fix="give more text, or lower min_count",
            )
        training = _Training(settings, vocabulary, corpus)
        losses = training.run(report)
        return WordVectors(
            vocabulary.words,
            training.inputs.numpy(),
            contexts=training.outputs.numpy(),
            facts={
                "words_read": corpus.total,
                "documents": corpus.documents,
                "distinct_words": corpus.distinct,
                "words": len(vocabulary.words),
                "words_with_a_vector": int(vocabulary.counts.sum()),
                "losses": losses,
            },
        )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    use_threads(number or before)
    try:
        yield
    finally:
        use_threads(before)


def keep_probability(counts: Ints, subsample: float) -> NDArray[np.float64]:
    """[V] share of the occurrences of each word that is kept: sqrt(t / f) + t / f, at most 1 (as in the program)."""
    if not subsample:
        return np.ones(len(counts))
    ratio = subsample * counts.sum() / counts
    return np.asarray(np.minimum(1.0, np.sqrt(ratio) + ratio))


def noise_distribution(counts: Ints, power: float) -> NDArray[np.float64]:
    """[V] probability of each word to be drawn as noise."""
    weights = counts.astype(np.float64) ** power
    return np.asarray(weights / weights.sum())


def updates_of(settings: Settings, kept: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """[V] how often each vector is updated for one centre, on average: as input or as output, whichever is more.

    kept: [V] occurrences that subsampling leaves.
    """
    share, negatives, reach = kept / kept.sum(), settings.negatives, settings.window + 1
    as_input, as_output = share * (1 + negatives), share + negatives * noise
    # A window holds `reach` words on average; CBOW divides each change of an input by that, twice.
    if settings.architecture == "skipgram":
        return np.asarray(reach * np.maximum(as_input, as_output))
    return np.asarray(np.maximum(as_input / reach, as_output))


class _Training:
    """Vectors, and the passes over the corpus that improve them."""

    def __init__(self, settings: Settings, vocabulary: Vocabulary, corpus: Corpus) -> None:
        self.settings = settings
        self.corpus = corpus
        self.final = vocabulary.final
        self.keep = keep_probability(vocabulary.counts, settings.subsample)
        noise = noise_distribution(vocabulary.counts, settings.noise_power)
        self.noise = np.cumsum(noise)
        self.noise[-1] = 1.0  # whatever rounding made of the sum
        self.hits = torch.from_numpy((settings.negatives * noise).astype(np.float32))
        updates = CENTRES * updates_of(settings, self.keep * vocabulary.counts, noise)
        self.streams = int(np.clip(FORCE / (settings.peak * updates.max()), 1, STREAMS))
        if settings.architecture == "cbow":  # whole groups share noise words
            self.streams = self.streams // 8 * 8 or self.streams
        self.limits = torch.from_numpy((LIMIT / (self.streams * updates)).astype(np.float32))
        shape = (len(vocabulary.words), settings.size)
        random = np.random.default_rng([settings.seed, 0])
        start = (random.random(shape, dtype=np.float32) - np.float32(0.5)) / np.float32(settings.size)
        self.inputs, self.outputs = torch.from_numpy(start), torch.zeros(shape)
        self.rows = CENTRES + 2 * settings.window
        distance = np.abs(np.arange(self.rows) - settings.window - np.arange(CENTRES)[:, None])
        distance[distance == 0] = self.rows  # a centre is not its own context
        self.distance = torch.from_numpy(distance)

    def run(self, report: Report) -> list[float]:
        """All epochs; the mean loss of each."""
        return [self._epoch(epoch, report) for epoch in range(self.settings.epochs)]

    def _epoch(self, epoch: int, report: Report) -> float:
        seed, epochs = self.settings.seed, self.settings.epochs
        total = self.corpus.total * epochs
        losses: list[float] = []
        for numbers, segment, before in self.corpus.blocks(np.random.default_rng([seed, 1, epoch])):
            random = np.random.default_rng([seed, 2, epoch, before])
            ids = self.final[numbers]
            kept = (ids >= 0) & (random.random(len(ids)) < self.keep[ids])
            begin = epoch * self.corpus.total + before
            for number, (share, step) in enumerate(self._steps(ids[kept], segment[kept], random)):
                done = begin + int(share * len(ids))
                if number % _MEASURE_EVERY == 0:
                    losses.append(self._measure(step))
                    report(done, total, losses[-1])
                rate = self.settings.peak + (self.settings.min_lr - self.settings.peak) * done / total
                self._update(step, rate)
            report(begin + len(ids), total, losses[-1] if losses else None)
        return float(np.mean(losses)) if losses else math.nan

    def _steps(self, ids: Ints, segment: Ints, random: np.random.Generator) -> Iterator[tuple[float, Step]]:
        """(share of the block that is done, next batch); the streams are the block, cut into equal parts."""
        streams, window, count = self.streams, self.settings.window, len(ids)
        steps = -(-count // (streams * CENTRES))
        length = steps * CENTRES
        padding = streams * length - count
        words = torch.from_numpy(np.pad(ids, (window, window + padding)))
        segments = torch.from_numpy(np.pad(segment, (window, window + padding), constant_values=-1))
        reach = torch.from_numpy(random.integers(1, window + 1, streams * length))
        reach[count:] = 0
        groups, drawn = shared(self.settings.architecture, self.settings.negatives, streams, CENTRES, self.rows)
        for number in range(steps):
            at = number * CENTRES
            noise = np.searchsorted(self.noise, random.random((groups, drawn)), side="right")
            near = self.distance <= reach.as_strided((streams, CENTRES, 1), (length, 1, 1), at)
            near &= segments.as_strided((streams, 1, self.rows), (length, 1, 1), at) == segments.as_strided(
                (streams, CENTRES, 1), (length, 1, 1), at + window
            )
            yield (
                number / steps,
                Step(
                    rows=words.as_strided((streams, self.rows), (length, 1), at),
                    centres=words.as_strided((streams, CENTRES), (length, 1), at + window),
                    pairs=near.float(),
                    negatives=torch.from_numpy(noise),
                ),
            )

    def _update(self, step: Step, rate: float) -> None:
        STEPS[self.settings.architecture](
            self.inputs,
            self.outputs,
            step,
            self.hits,
            negatives=self.settings.negatives,
            rates=lambda words: self.limits.index_select(0, words).clamp_(max=rate),
        )

    def _measure(self, step: Step) -> float:
        """Mean loss of a prediction before the step; TrainingDiverged if it is far above that of knowing nothing."""
        kind, negatives = self.settings.architecture, self.settings.negatives
        sum_of: Tensor = loss(kind, self.inputs, self.outputs, step, self.hits, negatives=negatives)
        value = float(sum_of) / max(1.0, predictions(kind, step))
        if not value < 4 * (1 + negatives) * math.log(2):
            raise TrainingDiverged(
                "the word vectors grow without bound",
                where="lr",
                value=self.settings.peak,
                fix="lower the learning rate, or train on more text",
            )
        return value
