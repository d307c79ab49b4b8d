"""How near written texts are to the texts that were wanted: BLEU, chrF and ROUGE.

BLEU and chrF are those of sacrebleu (Post 2018, arXiv:1804.08771), with the signature that makes figures comparable.
ROUGE (Lin 2004) is computed here: the usual Python package for it is no longer kept up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trivium.errors import TriviumError
from trivium.evaluation.intervals import Figure, Floats, with_intervals


@dataclass(frozen=True)
class Scores:
    """How near the texts are.

    values:     by name, 0 to 100; `exact` and `copied` are shares, 0 to 1.
    signatures: how BLEU and chrF were computed.
    samples:    number of texts.
    figures:    the values with their intervals, if they were asked for.
    """

    values: Mapping[str, float]
    signatures: Mapping[str, str]
    samples: int
    figures: Mapping[str, Figure]


def generation_scores(
    sources: Sequence[str], targets: Sequence[str], outputs: Sequence[str], *, resamples: int = 0, seed: int = 0
) -> Scores:
    """BLEU, chrF, ROUGE-1, ROUGE-2 and ROUGE-L of `outputs` against `targets`, how many are right to the letter, and
    how many are a copy of the source.

    sources, targets, outputs: one of each for every sample. resamples: of the rows, for intervals (Koehn 2004).
    Needs sacrebleu (`pip install trivium[evaluation]`).
    """
    if not targets or len({len(sources), len(targets), len(outputs)}) > 1:
        raise TriviumError(
            "each sample needs a source, a target and an output",
            value=f"{len(sources)} sources, {len(targets)} targets, {len(outputs)} outputs",
        )
    corpus, signatures = _corpus_scores(targets, outputs)
    pairs = [(_words(output), _words(target)) for output, target in zip(outputs, targets, strict=True)]
    rows = {f"rouge{size}": [100 * rouge_n(*pair, size) for pair in pairs] for size in (1, 2)}
    rows["rougeL"] = [100 * rouge_l(*pair) for pair in pairs]
    rows["exact"] = [float(output.strip() == target.strip()) for output, target in zip(outputs, targets, strict=True)]
    rows["copied"] = [float(output.strip() == source.strip()) for output, source in zip(outputs, sources, strict=True)]

    def statistic(weights: Floats) -> dict[str, Floats]:
        means = {name: (weights @ np.array(row)) / weights.sum(1) for name, row in rows.items()}
        return {**{name: score(weights) for name, score in corpus.items()}, **means}

    figures = with_intervals(statistic, len(targets), seed=seed, resamples=resamples)
    values = {name: figure.value for name, figure in figures.items()}
    return Scores(values, signatures, len(targets), figures)


def _corpus_scores(
    targets: Sequence[str], outputs: Sequence[str]
) -> tuple[dict[str, Callable[[Floats], Floats]], dict[str, str]]:
    """BLEU and chrF of all texts together, by sacrebleu: figures for weights [B, N] of the texts; and signatures."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise TriviumError(
            "BLEU and chrF need the package sacrebleu", fix="pip install 'trivium[evaluation]'"
        ) from None
    scores: dict[str, Callable[[Floats], Floats]] = {}
    signatures: dict[str, str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        # What it counts in each text, as it sums them up itself; its own resampling cannot be given a seed.
        counts = np.array(metric._extract_corpus_statistics(list(outputs), [list(targets)]), dtype=np.float64)
        scores[name] = partial(_scored, metric, counts)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def _scored(metric: Any, counts: Floats, weights: Floats) -> Floats:
    sums = weights @ counts
    return np.array([float(metric._compute_score_from_stats(row.tolist()).score) for row in sums])


def rouge_n(output: Sequence[str], target: Sequence[str], size: int) -> float:
    """F1 of the runs of `size` words that both texts have, counted as often as both have them."""
    found, wanted = (Counter(zip(*(words[at:] for at in range(size)), strict=False)) for words in (output, target))
    return _f1((found & wanted).total(), found.total(), wanted.total())


def rouge_l(output: Sequence[str], target: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    row = [0] * (len(target) + 1)
    for word in output:
        before = 0
        for place, other in enumerate(target, start=1):
            here = row[place]
            row[place] = before + 1 if word == other else max(here, row[place - 1])
            before = here
    return _f1(row[-1], len(output), len(target))


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0


def _words(text: str) -> list[str]:
    """Words in lower case; in all scripts, unlike the usual package, which knows ASCII only."""
    return re.findall(r"\w+", text.lower())
